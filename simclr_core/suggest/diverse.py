"""k-center greedy: each choice is the image farthest from all that are labeled or chosen (Sener and Savarese 2018,
"Active Learning for Convolutional Neural Networks: A Core-Set Approach", ICLR, algorithm 1).

No image is then farther from a label than twice the least that is possible with this number of labels. Without a label
the first choice is the image nearest to the mean of all.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simclr_core.evaluation.knn import nearest
from simclr_core.suggest.pool import BLOCK, Features, cosine_distances


@dataclass(frozen=True)
class Diverse:
    """Chosen positions, in order, and how far each was from all that was labeled or chosen before it: 1 - cosine."""

    positions: NDArray[np.int64]
    distances: NDArray[np.float64]


def spread_out(features: Features, labeled: NDArray[np.bool_], groups: NDArray[np.int64], count: int) -> Diverse:
    """Choose up to ``count`` images without a label, one of each group; arguments as ``typical.most_typical``.

    Memory is a number for each image.
    """
    distances = _to_nearest(features, features[labeled])
    open_ones, found, gaps = ~labeled, list[int](), list[float]()
    while len(found) < count and open_ones.any():
        if np.isfinite(distances[0]):
            chosen = int(np.where(open_ones, distances, -np.inf).argmax())
            gaps.append(max(0.0, float(distances[chosen])))
        else:
            center = _mean(features)
            chosen = int(np.where(open_ones, cosine_distances(features, center), np.inf).argmin())
            gaps.append(float("nan"))
        found.append(chosen)
        open_ones &= groups != groups[chosen]
        np.minimum(distances, cosine_distances(features, features[chosen]), out=distances)
    return Diverse(np.array(found, np.int64), np.array(gaps))


def _to_nearest(features: Features, centers: Features) -> NDArray[np.float32]:
    """1 - cosine of each row to the nearest center; infinite without centers."""
    if not len(centers):
        return np.full(len(features), np.inf, np.float32)
    return 1 - nearest(centers, features, 1)[0].numpy()[:, 0]


def _mean(features: Features) -> Features:
    total = sum(
        features[start : start + BLOCK].sum(axis=0, dtype=np.float64) for start in range(0, len(features), BLOCK)
    )
    return np.asarray(total / len(features), np.float32)
