"""Weights from elsewhere: where they are, how their file is read safely, whose names match, and their normalization.

Nothing here trains: ``pretraining/adaptation.py`` says how training adapts them, ``early_stopping.py`` when it ends.
"""

FOLDER = "weights"  # of a workspace: files to begin with, which DVC watches
DIGITS = 12  # of a hash, in the name of a start
