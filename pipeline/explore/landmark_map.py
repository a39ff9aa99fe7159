"""A map of many embeddings that new images do not move: t-SNE of a few landmarks, all others placed among these.

Landmarks are the earliest images. t-SNE (``simclr_core.evaluation.embedding_map``) arranges them once, from a fixed
seed, so the same landmarks from the same encoder have the same places whatever is ingested later. Every other image is
placed by the landmarks nearest to it, by cosine. They may be on two islands, and their mean would then be in the sea
between. So the island with most of their weight decides, and the image is at the weighted mean of the landmarks there:
inside of it, and next to those that it resembles most.

The cost of an image is one product with the landmarks, so it grows with the number of images and not with its square.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simclr_core.evaluation.embedding_map import MIN_IMAGES, coordinates

Vectors = NDArray[np.float16] | NDArray[np.float32]

MOST_LANDMARKS = 3000  # t-SNE takes 20 s for them on a core
FEWEST_LANDMARKS = 1000  # whole batches are landmarks until there are that many
NEAREST = 10  # landmarks that place an image
ISLAND = 0.06  # of the extent of the map: landmarks nearer to each other are on one island
BLOCK = 4096  # images at a time
UNKNOWN = np.nan


class Place(NamedTuple):
    """``points`` float32 [n, 2], NaN where there is no map; ``novelty`` float32 [n], 0 to 2: how far an image is from
    the landmark nearest to it, as 1 - cosine; NaN where there is no other landmark."""

    points: NDArray[np.float32]
    novelty: NDArray[np.float32]


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
    """Where each image is on the map.

    Args:
        vectors: [n, dim] of length 1, in order of ingestion.
        landmarks: how many of the first are landmarks.
    """
    count = len(vectors)
    points, novelty = np.full((count, 2), UNKNOWN, np.float32), np.full(count, UNKNOWN, np.float32)
    known = np.asarray(vectors[:landmarks], np.float32)
    layout = coordinates(known) if landmarks >= MIN_IMAGES else None
    if layout is not None:
        layout = scaled(layout)
        points[:landmarks] = layout
    for start, cosines in _cosines(vectors, known):
        rows = np.arange(start, start + len(cosines))
        own = rows[rows < landmarks]
        cosines[own - start, own] = -np.inf  # an image is not new because it is a landmark
        if landmarks > 1:
            novelty[rows] = 1 - cosines.max(axis=1)
        others = rows >= landmarks
        if layout is not None and others.any():
            points[rows[others]] = among(layout, cosines[others])
    return Place(points, novelty.clip(0, 2))


def scaled(points: NDArray[np.float32]) -> NDArray[np.float32]:
    """Centered, with the outermost coordinate at 1."""
    centered = points - (points.max(axis=0) + points.min(axis=0)) / 2
    found: NDArray[np.float32] = (centered / max(float(np.abs(centered).max()), np.finfo(np.float32).tiny)).astype(
        np.float32
    )
    return found


def among(layout: NDArray[np.float32], cosines: NDArray[np.float32]) -> NDArray[np.float32]:
    """The places [n, 2] of images with these cosines [n, m] to the landmarks at ``layout`` [m, 2], scaled."""
    k = min(NEAREST, cosines.shape[1])
    nearest = np.argpartition(-cosines, k - 1, axis=1)[:, :k]
    near = np.take_along_axis(cosines, nearest, axis=1)
    best = near.max(axis=1, keepdims=True)
    spread = np.maximum(best - near.mean(axis=1, keepdims=True), 1e-6)  # so that weights do not depend on the scale
    weights = np.exp((near - best) / spread)
    places = layout[nearest]  # [n, k, 2]
    apart = np.linalg.norm(places[:, :, None] - places[:, None], axis=3)  # [n, k, k]
    together = apart < 2 * ISLAND
    island = np.einsum("nij,nj->ni", together, weights).argmax(axis=1)
    kept = np.where(together[np.arange(len(island)), island], weights, 0)
    placed: NDArray[np.float32] = np.einsum("nk,nkd->nd", kept / kept.sum(axis=1, keepdims=True), places)
    return placed.astype(np.float32)


def nearest_labeled(
    vectors: Vectors, labeled: NDArray[np.int64], most: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Of each image the ``most`` nearest of the ``labeled`` rows other than itself, nearest first, and their cosines:
    [n, k] each; -1 where there are fewer."""
    bank = np.asarray(vectors[labeled], np.float32)
    rows = np.full((len(vectors), most), -1, np.int64)
    scores = np.full((len(vectors), most), np.nan, np.float32)
    k = min(most, len(labeled))
    if not k:
        return rows, scores
    column = np.full(len(vectors), -1, np.int64)
    column[labeled] = np.arange(len(labeled))
    for start, cosines in _cosines(vectors, bank):
        here = np.arange(start, start + len(cosines))
        own = here[column[here] >= 0]
        cosines[own - start, column[own]] = -np.inf
        found = np.argpartition(-cosines, k - 1, axis=1)[:, :k]
        near = np.take_along_axis(cosines, found, axis=1)
        order = np.lexsort((found, -near), axis=1)
        near = np.take_along_axis(near, order, axis=1)
        rows[here, :k] = np.where(np.isfinite(near), labeled[np.take_along_axis(found, order, axis=1)], -1)
        scores[here, :k] = np.where(np.isfinite(near), near, np.nan)
    return rows, scores


def _cosines(vectors: Vectors, bank: NDArray[np.float32]) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Blocks of the cosines with every row of ``bank``, and at which row each begins; empty for an empty bank."""
    if not len(bank):
        return
    for start in range(0, len(vectors), BLOCK):
        yield start, np.asarray(vectors[start : start + BLOCK], np.float32) @ bank.T
