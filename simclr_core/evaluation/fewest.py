"""How many images some proofs and statistics need; with fewer there is no statistic, or a weaker proof.

Here, because a run is planned without PyTorch.
"""

from collections.abc import Collection

PARITY_IMAGES = 32
"""On which onnxruntime is usually compared with PyTorch at the least; ``export`` takes up to 64."""

CALIBRATION_LABELS = 30
"""Below, the temperature of a classifier would follow single images."""

MOST_FOLDS = 5
"""Into which labeled images are divided where there are no test images."""


def fold_count(images: Collection[int]) -> int:
    """The number of folds for classes with these numbers of labeled ``images``; 0 where nothing can be estimated.

    Five, or what the most frequent class has. Rare classes do not lower it: fewer folds would leave every classifier
    with fewer labels. At least two classes need two images each, so that every fold can be asked about what its
    classifier has seen.
    """
    if sum(count > 1 for count in images) < 2:
        return 0
    return min(MOST_FOLDS, max(images))
