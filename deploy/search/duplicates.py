"""All pairs of rows with an inner product of at least a threshold, exactly, without comparing every pair in full.

Rows are rotated so that the first coordinates hold most of their length (principal components, by subspace iteration:
Halko, Martinsson, Tropp 2011). Then two bounds leave out most pairs, and neither leaves out a pair of the answer:

    window   rows in the order of their first coordinate: if it differs by more than their distance may be, so do they
    bound    a·b <= p·q + |a - p| |b - q| (Cauchy-Schwarz) for their first coordinates p and q: a product of 65 terms

The other pairs are multiplied in full, and those that may be part of the answer once more in float64.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from deploy.search.exact import Hits, Vectors, inner_products, rounding_bound

COORDINATES = 64
SAMPLED = 1 << 21  # values of the rows that the axes are found with: 16 MB
ROUNDS = 3
ROWS, COLUMNS = 256, 4096  # of a tile
BLOCK = 4096
DENSE = 0.02  # of a tile: if more pairs remain, one product of matrices is cheaper than that of each pair


def pairs_above(vectors: Vectors, threshold: float, longest: float) -> Iterator[Hits]:
    """Yield all pairs of rows with an inner product of at least ``threshold``, one tile at a time.

    Memory grows with the rows: 65 float32 for each. ``queries`` of the hits holds the earlier row of each pair.
    """
    if not len(vectors):
        return
    margin = rounding_bound(vectors.shape[1], longest * longest)
    least = threshold - 4 * margin  # the rotation rounds as well
    short = _shorten(vectors, margin)
    order = np.argsort(short[:, 0], kind="stable")
    for column in short.T:  # one after the other: a sorted copy would take as much memory again
        column[:] = column[order]
    first = short[:, 0].astype(np.float64)
    window = np.sqrt(max(0.0, 2 * longest * longest - 2 * least)) + margin
    for start in range(0, len(order), ROWS):
        left = short[start : start + ROWS]
        end = int(np.searchsorted(first, first[start + len(left) - 1] + window, "right"))
        for begin in range(start, end, COLUMNS):
            bounds = left @ short[begin : min(begin + COLUMNS, end)].T
            if bounds.max() < least:
                continue
            rows = order[start : start + ROWS], order[begin : begin + bounds.shape[1]]
            if np.count_nonzero(bounds >= least) > DENSE * bounds.size:
                bounds = np.matmul(*_multiplicands(vectors, *rows), out=bounds)
            one, other = np.divmod(np.flatnonzero(bounds >= least), bounds.shape[1])
            later = begin + other > start + one
            pair = np.sort(np.stack([rows[0][one[later]], rows[1][other[later]]]), axis=0)
            products = inner_products(vectors, pair[0], vectors, pair[1])
            kept = products >= threshold
            yield Hits(pair[0][kept], pair[1][kept], products[kept])


def _multiplicands(
    vectors: Vectors, left: NDArray[np.int64], right: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    return np.asarray(vectors[left], np.float32), np.asarray(vectors[right], np.float32).T


def _shorten(vectors: Vectors, slack: float) -> NDArray[np.float32]:
    """Return float32 [n, 1 + coordinates]: the first coordinates of each row, and the length of what they leave out.

    ``slack`` is added to the square of that length, so that rounding cannot make it shorter than it is.
    """
    axes = _principal_axes(vectors)
    short = np.empty((len(vectors), axes.shape[1] + 1), np.float32)
    for start in range(0, len(vectors), BLOCK):
        block = np.asarray(vectors[start : start + BLOCK], np.float32)
        part = block @ axes
        short[start : start + BLOCK, :-1] = part
        squares = np.square(block, dtype=np.float64).sum(axis=1) - np.square(part, dtype=np.float64).sum(axis=1)
        short[start : start + BLOCK, -1] = np.sqrt(np.maximum(squares, 0) + slack)
    return short


def _principal_axes(vectors: Vectors) -> NDArray[np.float32]:
    """Return orthonormal axes [dim, at most 64], those that hold most of the length of a sample of rows first."""
    dim = vectors.shape[1]
    sample = np.asarray(vectors[:: -(-len(vectors) * dim // SAMPLED)], np.float64)
    axes = np.random.default_rng(0).standard_normal((dim, min(COORDINATES, dim)))
    for _ in range(ROUNDS):
        axes = np.linalg.qr(sample.T @ (sample @ axes))[0]
    short = sample @ axes
    _, turn = np.linalg.eigh(short.T @ short)
    return np.asarray(axes @ turn[:, ::-1], np.float32, order="C")
