"""Weights from elsewhere: where they are, how their file is read safely, whose names match, and their normalization.

Nothing here trains. How training adapts them is in ``model/layer_rates.py``, when it ends in ``early_stopping.py``.
"""

FOLDER = "weights"  # of a workspace: files to begin with, which DVC watches
DIGITS = 12  # of a hash, in the name of a start
