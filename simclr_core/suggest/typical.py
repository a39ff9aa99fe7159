"""TypiClust: the most typical image of each large cluster without a label (Hacohen et al. 2022, "Active Learning on a
Budget: Opposite Strategies Suit High and Low Budgets", ICML, section 3).

The features are divided by k-means into a cluster for each label there is and each that is asked for, at most 500, so
that the labels reach into every part of the images. In turn the cluster with the fewest labels gives its most typical
image, of equals the largest: the one whose mean distance to its 20 nearest neighbors in the cluster is smallest.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from simclr_core.evaluation.knn import nearest
from simclr_core.suggest.pool import Features

NEIGHBORS = 20
MOST_CLUSTERS = 500
SMALLEST = 5  # images; smaller clusters are asked when all others have no image left
FITTED = 20_000  # images that k-means sees
BANK = 5_000  # members of a cluster among which neighbors are looked for
SEED = 0


@dataclass(frozen=True)
class Typical:
    """Chosen positions, in order; of each the images in its cluster, and the labels these have before anything is
    chosen."""

    positions: NDArray[np.int64]
    sizes: NDArray[np.int64]
    labels: NDArray[np.int64]


def most_typical(features: Features, labeled: NDArray[np.bool_], groups: NDArray[np.int64], count: int) -> Typical:
    """Choose up to ``count`` images without a label, one of each group.

    Args:
        features: [n, d], rows of length 1.
        labeled: [n], which images have a label.
        groups: [n], equal where images show one thing.
    """
    clusters = divide(features, min(int(labeled.sum()) + count, MOST_CLUSTERS))
    number = int(clusters.max(initial=-1)) + 1
    sizes = np.bincount(clusters, minlength=number)
    labels = np.bincount(clusters[labeled], minlength=number)
    queues: dict[int, list[int]] = {}
    given, open_ones, taken, found = labels.copy(), np.ones(number, bool), set[int](), list[int]()
    while len(found) < count and open_ones.any():
        # Small ones last: a few images far from all others teach little of the rest.
        order = np.lexsort((np.arange(number), -sizes, given, sizes < SMALLEST, ~open_ones))
        cluster = int(order[0])
        if cluster not in queues:
            members = np.flatnonzero((clusters == cluster) & ~labeled)
            queues[cluster] = members[np.argsort(mean_distances(features, members), kind="stable")].tolist()[::-1]
        queue = queues[cluster]
        while queue and int(groups[queue[-1]]) in taken:
            queue.pop()
        if not queue:
            open_ones[cluster] = False
            continue
        found.append(queue.pop())
        taken.add(int(groups[found[-1]]))
        given[cluster] += 1
    chosen = np.array(found, np.int64)
    return Typical(chosen, sizes[clusters[chosen]], labels[clusters[chosen]])


def divide(features: Features, count: int) -> NDArray[np.int64]:
    """The cluster of each row, int64 [n], of at most ``count``; the same on every machine with the same arithmetic.

    Of many rows, k-means sees some at equal distances: prepared images are in the order of their SHA-256.
    """
    if not len(features) or count < 2:
        return np.zeros(len(features), np.int64)
    from sklearn.cluster import KMeans

    seen = features[:: -(-len(features) // FITTED)]
    distinct = len(np.unique(seen, axis=0))
    with threadpool_limits(1):  # threads would add up in any order
        fitted = KMeans(min(count, distinct), n_init=1, random_state=SEED).fit(seen)
        clusters: NDArray[np.int64] = fitted.predict(features).astype(np.int64)
    return clusters


def mean_distances(features: Features, members: NDArray[np.int64]) -> NDArray[np.float64]:
    """From each of the ``members`` of a cluster to its nearest neighbors in it: [members]. Of one member, 0."""
    if len(members) < 2:
        return np.zeros(len(members))
    inside = features[members]
    bank = inside[:: -(-len(members) // BANK)]
    cosines = nearest(bank, inside, NEIGHBORS + 1)[0].numpy().astype(np.float64)
    distances = np.sqrt(np.maximum(2 - 2 * cosines, 0))
    # The first is the image itself, or, of a bank without it, a neighbor more.
    found: NDArray[np.float64] = distances[:, 1:].mean(axis=1)
    return found
