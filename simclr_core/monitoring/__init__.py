"""What watches a training: its history, diagnostics of the features, TensorBoard and other trackers.

Nothing here may change a result.
"""
