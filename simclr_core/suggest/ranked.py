"""Images in the order of one number: how unsure the probe is of them, and how far they are from what is labeled."""

import numpy as np
from numpy.typing import NDArray

from simclr_core.evaluation.knn import nearest
from simclr_core.suggest.pool import Features

NEIGHBOR = 5  # the fifth nearest: a few images of one burst do not make a neighborhood


def margins(probabilities: NDArray[np.floating]) -> NDArray[np.float64]:
    """How much surer the probe is of its first answer than of its second: [n], of ``probabilities`` [n, classes >= 2]
    (Scheffer et al. 2001, "Active Hidden Markov Models for Information Extraction", section 3).

    Examples:
        >>> margins(np.array([[0.25, 0.75], [0.5, 0.5]])).tolist()
        [0.5, 0.0]
    """
    first, second = -np.partition(-probabilities, 1, axis=1)[:, :2].T
    found: NDArray[np.float64] = first.astype(np.float64) - second
    return found


def novelties(features: Features, labeled: NDArray[np.bool_]) -> NDArray[np.float64]:
    """1 - cosine to the fifth nearest labeled image, or, without labels, to the fifth nearest other one: [n].

    ``features`` [n, d], rows of length 1. Where there are fewer, the farthest counts.
    """
    bank = features[labeled] if labeled.any() else features
    rank = NEIGHBOR if labeled.any() else NEIGHBOR + 1  # the nearest is the image itself
    cosines = nearest(bank, features, rank)[0].numpy()
    return np.maximum(1 - cosines[:, -1].astype(np.float64), 0)
