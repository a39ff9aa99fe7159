"""The map of a workspace: t-SNE of the earliest images, all others placed among them (``deploy.explore.placement``).

t-SNE (``simclr_core.evaluation.embedding_map``) has a fixed seed. So with the same encoder images that are ingested
later do not move the earlier ones.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from deploy.explore import placement
from deploy.explore.placement import Place, Vectors, cosines
from simclr_core.evaluation.embedding_map import coordinates

MOST_LANDMARKS = 3000  # t-SNE takes 10 s for them on a core
FEWEST_LANDMARKS = 1000  # whole batches are landmarks until there are that many


def count_landmarks(batches: Sequence[str], most: int = MOST_LANDMARKS, fewest: int = FEWEST_LANDMARKS) -> int:
    """How many of the first images are landmarks: those of whole batches until there are enough, so that a later batch
    does not become one.

    Args:
        batches: of each image, in order of ingestion.

    Examples:
        >>> count_landmarks(["1"] * 1500 + ["2"] * 900)
        1500
        >>> count_landmarks(["1"] * 400 + ["2"] * 900), count_landmarks(["1"] * 5000)
        (1300, 3000)
    """
    enough = next((row for row in range(fewest, len(batches)) if batches[row] != batches[row - 1]), len(batches))
    return min(enough, most)


def place(vectors: Vectors, landmarks: int) -> Place:
    """Where each image is on the map: ``vectors`` [n, dim] of length 1, in order of ingestion."""
    return placement.place(vectors, landmarks, coordinates)


def nearest_labeled(
    vectors: Vectors, labeled: NDArray[np.int64], most: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Of each image the ``most`` nearest of the ``labeled`` rows other than itself, nearest first, and their cosines:
    [n, most] each; -1 and NaN where there are fewer."""
    bank = np.asarray(vectors[labeled], np.float32)
    rows = np.full((len(vectors), most), -1, np.int64)
    scores = np.full((len(vectors), most), np.nan, np.float32)
    k = min(most, len(labeled))
    if not k:
        return rows, scores
    column = np.full(len(vectors), -1, np.int64)
    column[labeled] = np.arange(len(labeled))
    for start, found in cosines(vectors, bank):
        here = np.arange(start, start + len(found))
        own = here[column[here] >= 0]
        found[own - start, column[own]] = -np.inf
        nearest = np.argpartition(-found, k - 1, axis=1)[:, :k]
        near = np.take_along_axis(found, nearest, axis=1)
        order = np.lexsort((nearest, -near), axis=1)
        near = np.take_along_axis(near, order, axis=1)
        rows[here, :k] = np.where(np.isfinite(near), labeled[np.take_along_axis(nearest, order, axis=1)], -1)
        scores[here, :k] = np.where(np.isfinite(near), near, np.nan)
    return rows, scores
