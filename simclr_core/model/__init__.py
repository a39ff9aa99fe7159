"""Networks: encoder, projection head, batch normalization, recomputed activations, and how models are kept in files.

Nothing here knows a loss, a data set or a stage.
"""

FORMAT_VERSION = 1  # of model directories and checkpoints
