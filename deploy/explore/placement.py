"""A map of many embeddings that new images do not move: a layout of a few landmarks, all others placed among these.

Landmarks are the first images. Some method, such as t-SNE, arranges them, so the same landmarks from the same encoder
have the same places whatever is added later. Every other image is placed by the landmarks nearest to it, by cosine.
They may be on two islands, and their mean would then be in the sea between. So the island with most of their weight
decides, and the image is at the weighted mean of the landmarks there: inside of it, and next to those that it resembles
most.

The cost of an image is one product with the landmarks, so it grows with the number of images and not with its square.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float16] | NDArray[np.float32]
Layout = Callable[[NDArray[np.float32]], NDArray[np.float32] | None]
"""Vectors [n, dim] of length 1 → places [n, 2]; None where there is nothing to arrange."""

FEWEST = 10  # images of a map
NEAREST = 10  # landmarks that place an image
ISLAND = 0.12  # of the map from its center: landmarks nearer to each other are on one island
BLOCK = 4096  # images at a time


class Place(NamedTuple):
    """``points`` float32 [n, 2], NaN where there is no map; ``novelty`` float32 [n], 0 to 2: how far an image is from
    the landmark nearest to it, as 1 - cosine; NaN where there is no other landmark."""

    points: NDArray[np.float32]
    novelty: NDArray[np.float32]


def place(vectors: Vectors, landmarks: int, layout: Layout) -> Place:
    """Where each image is on the map, from -1 to 1.

    Args:
        vectors: [n, dim] of length 1.
        landmarks: how many of the first are landmarks.
        layout: what arranges these.
    """
    count = len(vectors)
    points, novelty = np.full((count, 2), np.nan, np.float32), np.full(count, np.nan, np.float32)
    known = np.asarray(vectors[:landmarks], np.float32)
    places = layout(known) if landmarks >= FEWEST else None
    if places is not None:
        places = scaled(places)
        points[:landmarks] = places
    for start, found in cosines(vectors, known):
        rows = np.arange(start, start + len(found))
        own = rows[rows < landmarks]
        found[own - start, own] = -np.inf  # an image is not new because it is a landmark
        if landmarks > 1:
            novelty[rows] = 1 - found.max(axis=1)
        others = rows >= landmarks
        if places is not None and others.any():
            points[rows[others]] = among(places, found[others])
    return Place(points, novelty.clip(0, 2))


def scaled(points: NDArray[np.float32]) -> NDArray[np.float32]:
    """Centered, with the outermost coordinate at 1."""
    centered = points - (points.max(axis=0) + points.min(axis=0)) / 2
    found: NDArray[np.float32] = (centered / max(float(np.abs(centered).max()), np.finfo(np.float32).tiny)).astype(
        np.float32
    )
    return found


def among(places: NDArray[np.float32], cosines: NDArray[np.float32]) -> NDArray[np.float32]:
    """The places [n, 2] of images with these cosines [n, m] to the landmarks at ``places`` [m, 2], scaled."""
    k = min(NEAREST, cosines.shape[1])
    nearest = np.argpartition(-cosines, k - 1, axis=1)[:, :k]
    near = np.take_along_axis(cosines, nearest, axis=1)
    best = near.max(axis=1, keepdims=True)
    spread = np.maximum(best - near.mean(axis=1, keepdims=True), 1e-6)  # so that weights do not depend on the scale
    weights = np.exp((near - best) / spread)
    around = places[nearest]  # [n, k, 2]
    together = np.linalg.norm(around[:, :, None] - around[:, None], axis=3) < ISLAND  # [n, k, k]
    island = np.einsum("nij,nj->ni", together, weights).argmax(axis=1)
    kept = np.where(together[np.arange(len(island)), island], weights, 0)
    placed: NDArray[np.float32] = np.einsum("nk,nkd->nd", kept / kept.sum(axis=1, keepdims=True), around)
    return placed.astype(np.float32)


def cosines(vectors: Vectors, bank: NDArray[np.float32]) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Blocks of the cosines with every row of ``bank``, and at which row each begins; nothing for an empty bank."""
    if not len(bank):
        return
    for start in range(0, len(vectors), BLOCK):
        yield start, np.asarray(vectors[start : start + BLOCK], np.float32) @ bank.T
