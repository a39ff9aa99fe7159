"""Drift of embeddings: does an encoder see something in the newest images that the earlier ones do not have?

Three statistics, each held against what chance does to it (see ``calibration``): how well a logistic regression tells
new from earlier ones, their maximum mean discrepancy, and the share of new images that lie further from the earlier
ones than these do from each other. SimCLR learns to overlook color and blur: ``drift`` looks at those.
"""

from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from pipeline.reports import Statistic
from pipeline.validation.drift.calibration import CLASSIFIER, SPLITS, calibrate, random_splits
from pipeline.validation.drift.distances import Array, domain_auroc, mmd_squared, older_neighbor, squared_distances

MMD, NOVEL = "mmd", "novel_share"
MMD_FLOOR = 0.05  # every eighth image of a class never seen gives as much (Fashion-MNIST, the encoder of the demo)
COMPONENTS = 64  # more dimensions mean more chance and no more signal: Rabanser et al. 2019, "Failing Loudly"
NEIGHBOR = 5  # the fifth nearest: a few images of one burst do not make a neighborhood
FAR = 0.99  # quantile of the distances of earlier images to each other; this share of the new ones is novel by chance
OUTLIER = 5.0  # standard deviations; features of the classifier end there
CLASSIFIER_SAMPLE = 1000


@dataclass(frozen=True)
class Comparison:
    """Every statistic with its threshold, and how often chance alone gives as large a discrepancy."""

    statistics: tuple[Statistic, ...]
    mmd_p_value: float

    @property
    def drifted(self) -> tuple[str, ...]:
        """Names of the statistics beyond their thresholds, the furthest first."""
        beyond = (one for one in self.statistics if one.drifted)
        return tuple(one.name for one in sorted(beyond, key=lambda one: -one.effect / one.threshold))


def compare(reference: Array, batch: Array, *, auroc: float, novel_share: float) -> Comparison:
    """Compare embeddings of the newest batch with embeddings of earlier images by the same encoder.

    Args:
        reference: [n, d], in random order.
        batch: [m, d], in random order.
        auroc, novel_share: the largest effects that are not drift, however many images show them.
    """
    floors = {CLASSIFIER: auroc - 0.5, MMD: MMD_FLOOR, NOVEL: novel_share}
    part = min(len(batch), len(reference) // 2)
    with threadpool_limits(1):  # thousands of small products, which more threads make slower
        both = principal_components(np.concatenate([reference, batch]))
        earlier, new = both[: len(reference)], both[len(reference) :]
        squared = squared_distances(earlier)
        width = float(np.median(squared[np.triu_indices(len(squared), 1)]))
        splits = random_splits(len(earlier), part)
        chance = _effects(_standardized(earlier, earlier), squared, _kernel(squared, width), splits)
        # The batch takes the place of the first images of the reference, which leaves the sizes of the splits.
        pool = np.concatenate([earlier[part:], new[:part]])
        squared = squared_distances(pool)
        kernel, newer = _kernel(squared, width), np.arange(len(pool)) >= len(pool) - part
        observed = _effects(_standardized(pool, earlier), squared, kernel, newer[np.newaxis])
        permuted = mmd_squared(kernel, splits)
        as_large = int(np.sum(permuted >= mmd_squared(kernel, newer)))
    effects = {name: float(effect[0]) for name, effect in observed.items()}
    return Comparison(tuple(calibrate(effects, chance, floors)), round((1 + as_large) / (1 + SPLITS), 4))


def most_novel(reference: Array, batch: Array, count: int) -> list[tuple[int, int, float]]:
    """The ``count`` images of the batch that are furthest from the earlier ones, the furthest first.

    Args:
        reference, batch: [n, d] and [m, d], of length 1.

    Returns:
        for each its row, that of the earlier image nearest to it, and how far their embeddings are apart.
    """
    cosine = batch @ reference.T
    rank = min(NEIGHBOR, len(reference))
    neighbor = -np.partition(-cosine, rank - 1, axis=1)[:, rank - 1]
    nearest = cosine.argmax(axis=1)
    furthest = np.argsort(neighbor, kind="stable")[:count]
    return [
        (int(row), int(nearest[row]), float(np.linalg.norm(batch[row] - reference[nearest[row]]))) for row in furthest
    ]


def principal_components(vectors: Array, count: int = COMPONENTS) -> Array:
    """The coordinates of vectors [n, d] along the ``count`` directions in which they vary most: float64, centered.

    With no more than ``count`` dimensions they are only centered.
    """
    centered: Array = vectors - vectors.mean(axis=0, dtype=np.float64)
    if vectors.shape[1] <= count:
        return centered
    _, axes = np.linalg.eigh(centered.T @ centered)
    projected: Array = centered @ axes[:, -count:]
    return projected


def _effects(features: Array, squared: Array, kernel: Array, newer: Array) -> dict[str, Array]:
    """Every effect, [splits], for masks [splits, n] of what counts as new."""
    aurocs = [domain_auroc(features[rows], mask[rows]) for mask in newer for rows in [_balanced(mask)]]
    distances = older_neighbor(squared, newer, NEIGHBOR)
    limits = (np.quantile(row[~mask], FAR) for row, mask in zip(distances, newer, strict=True))
    novel = [(row[mask] > limit).mean() for row, mask, limit in zip(distances, newer, limits, strict=True)]
    return {
        CLASSIFIER: np.maximum(np.array(aurocs) - 0.5, 0.0),
        MMD: np.sqrt(np.maximum(mmd_squared(kernel, newer), 0.0)),
        NOVEL: np.array(novel),
    }


def _kernel(squared: Array, width: float) -> Array:
    """The RBF kernel whose width is a typical distance; all alike where there is none."""
    kernel: Array = np.exp(-squared / (2 * max(width, np.finfo(np.float64).tiny)))
    return kernel


def _standardized(vectors: Array, reference: Array) -> Array:
    spread = np.maximum(reference.std(axis=0), 1e-6)  # embeddings have length 1, in float32
    features: Array = ((vectors - reference.mean(axis=0)) / spread).clip(-OUTLIER, OUTLIER)
    return features


def _balanced(newer: Array) -> Array:
    """The rows for the classifier: the first of each group, few enough to be quick."""
    new, old = np.flatnonzero(newer), np.flatnonzero(~newer)
    share = min(len(new), len(old), CLASSIFIER_SAMPLE // 2)
    return np.concatenate([new[:share], old[: CLASSIFIER_SAMPLE - share]])
