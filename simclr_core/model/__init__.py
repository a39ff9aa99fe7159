"""Networks: encoder, projection head, batch normalization, recomputed activations, and how models are kept in files.

Nothing here knows a loss, a data set or a stage.
"""
