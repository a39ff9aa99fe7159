"""Networks: encoder, projection head, batch normalization, recomputed activations.

Nothing here knows a loss, a data set or a stage.
"""
