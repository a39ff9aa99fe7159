"""Weights from elsewhere: where they are, how their file is read safely, whose names match, and their normalization.

Nothing here trains. How training adapts them is in ``pretraining/adaptation.py``.
"""
