"""How many images some proofs and statistics need; with fewer there is no statistic, or a weaker proof.

Here, because a run is planned without PyTorch.
"""

PARITY_IMAGES = 32
"""On which onnxruntime is usually compared with PyTorch at the least; ``export`` takes up to 64."""

CALIBRATION_LABELS = 30
"""Below, the temperature of a classifier would follow single images."""
