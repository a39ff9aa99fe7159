"""Exact maximum inner product search in bounded memory, by numpy alone.

A tile of scores comes from one float32 matrix product; only what is close enough to the k-th best so far to be among
the k best is scored again in float64. So the answer is exact, ties included, and the same whether a query comes alone
or in a batch, on one thread or on many.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

TILE = 1 << 20  # scores at a time: 4 MB
TILE_QUERIES = 256
GROUP = 64
COPIED = 1 << 21  # values of vectors at a time: 8 MB
GATHERED = 1 << 20  # float64 products at a time: 8 MB

Vectors = NDArray[np.float32] | NDArray[np.float16]


class Hits(NamedTuple):
    """Scored (query, row) pairs, best first within each query."""

    queries: NDArray[np.int64]
    rows: NDArray[np.int64]
    scores: NDArray[np.float64]


def nearest(
    vectors: Vectors, queries: NDArray[np.float32], k: int, longest: float, rows: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The ``k`` rows of ``vectors`` [n, dim] with the largest inner product with each of ``queries`` [q, dim].

    Args:
        longest: no row of ``vectors`` is longer.
        rows: search these rows only, in ascending order.

    Returns:
        rows int64 and scores float64, both [q, min(k, rows searched)]; best first, of equal scores the first row first.
    """
    k = min(k, len(vectors) if rows is None else len(rows))
    found = [
        _nearest(vectors, part, k, longest, rows)
        for part in np.split(queries, range(TILE_QUERIES, len(queries), TILE_QUERIES))
    ]
    shape = (len(queries), k)
    return (
        np.concatenate([hits.rows for hits in found]).reshape(shape),
        np.concatenate([hits.scores for hits in found]).reshape(shape),
    )


def rescored(
    vectors: Vectors, queries: NDArray[np.float32], pairs: tuple[NDArray[np.int64], NDArray[np.int64]], k: int
) -> Hits:
    """The ``k`` best for each query of the given pairs (positions in ``queries``, rows of ``vectors``)."""
    scores = inner_products(queries, pairs[0], vectors, pairs[1])
    return _best(Hits(pairs[0], pairs[1], scores), k)


def pairs_above(vectors: Vectors, threshold: float, longest: float) -> Iterator[Hits]:
    """All pairs of rows with an inner product of ``threshold`` or more, a tile at a time.

    ``queries`` of the hits holds the earlier row of each pair.
    """
    margin = rounding(vectors.shape[1], longest * longest)
    for first in range(0, len(vectors), TILE_QUERIES):
        earlier = _floats(vectors[first : first + TILE_QUERIES])
        for start, scores in _tiles(vectors, earlier, None, first):
            left, right = _positions(scores >= np.float32(threshold - margin))
            left, right = left + first, right + start
            left, right = left[left < right], right[left < right]
            exact = inner_products(vectors, left, vectors, right)
            kept = exact >= threshold
            yield Hits(left[kept], right[kept], exact[kept])


def inner_products(
    left: Vectors, left_rows: NDArray[np.int64], right: Vectors, right_rows: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Of each pair of rows, in float64: the same for equal rows wherever they lie, as BLAS does not promise."""
    scores = np.empty(len(left_rows))
    step = max(1, GATHERED // left.shape[1])
    for start in range(0, len(scores), step):
        part = slice(start, start + step)
        products = left[left_rows[part]].astype(np.float64) * right[right_rows[part]]
        scores[part] = products.sum(axis=1)
    return scores


def rounding(dim: int, size: float) -> float:
    """Twice what a float32 inner product of ``dim`` terms can be wrong by (Higham 2002, section 3.1).

    ``size`` is the product of the lengths of the two vectors.
    """
    return 2 * (dim + 2) * 2.0**-24 * size


def _nearest(
    vectors: Vectors, queries: NDArray[np.float32], k: int, longest: float, rows: NDArray[np.int64] | None
) -> Hits:
    margin = rounding(vectors.shape[1], longest) * np.linalg.norm(queries.astype(np.float64), axis=1)
    best = Hits(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))
    if k == 0:
        return best
    floor = np.full(len(queries), -np.inf)
    for start, scores in _tiles(vectors, queries, rows):
        query, row = _candidates(scores, floor, margin, k)
        row = row + start if rows is None else rows[row + start]
        exact = inner_products(queries, query, vectors, row)
        best = Hits(
            np.concatenate([best.queries, query]),
            np.concatenate([best.rows, row]),
            np.concatenate([best.scores, exact]),
        )
        best = _best(best, k)
        counts = np.bincount(best.queries, minlength=len(queries))
        full = counts == k
        floor[full] = best.scores[np.cumsum(counts)[full] - 1] - margin[full]
    return best


def _tiles(
    vectors: Vectors, queries: NDArray[np.float32], rows: NDArray[np.int64] | None, first: int = 0
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Scores [q, tile] from position ``first`` on, and the position of each tile. The next tile takes its memory."""
    count = len(vectors) if rows is None else len(rows)
    height = TILE // max(1, len(queries))
    if rows is not None or vectors.dtype != np.float32:  # then a tile has a copy of its vectors, too
        height = max(1, min(height, COPIED // vectors.shape[1]))
    memory = np.empty(len(queries) * min(height, count), np.float32)
    for start in range(first, count, height):
        stop = min(start + height, count)
        block = vectors[start:stop] if rows is None else vectors[rows[start:stop]]
        scores = memory[: len(queries) * (stop - start)].reshape(len(queries), stop - start)
        yield start, np.matmul(queries, _floats(block).T, out=scores)


def _candidates(
    scores: NDArray[np.float32], floor: NDArray[np.float64], margin: NDArray[np.float64], k: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions in ``scores`` [q, tile] that may be among the k best: few, because ``floor`` or a bound from the tile
    itself, less what both can be wrong by, is not above the k-th best.
    """
    width = scores.shape[1]
    above = scores >= floor.astype(np.float32)[:, None]
    if width > k and np.count_nonzero(above) > 4 * k * len(scores):
        above = scores >= np.maximum(floor, _reached_by(scores, k) - margin).astype(np.float32)[:, None]
    return _positions(above)


def _positions(wanted: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """np.nonzero of a matrix, in a tenth of its time."""
    return np.divmod(np.flatnonzero(wanted), wanted.shape[1])


def _reached_by(scores: NDArray[np.float32], k: int) -> NDArray[np.float32]:
    """A score that at least ``k`` of each row reach: the k-th largest of the maxima of groups."""
    group = min(GROUP, scores.shape[1] // k)
    count = scores.shape[1] // group
    maxima = scores[:, : count * group].reshape(len(scores), count, group).max(axis=2)
    reached: NDArray[np.float32] = np.partition(maxima, count - k, axis=1)[:, count - k]
    return reached


def _best(hits: Hits, k: int) -> Hits:
    order = np.lexsort((hits.rows, -hits.scores, hits.queries))
    queries = hits.queries[order]
    rank = np.arange(len(order)) - np.searchsorted(queries, queries)
    kept = order[rank < k]
    return Hits(hits.queries[kept], hits.rows[kept], hits.scores[kept])


def _floats(block: Vectors) -> NDArray[np.float32]:
    return np.asarray(block, np.float32)
