"""Exact maximum inner product search in bounded memory, with numpy only.

One float32 matrix product gives a tile of scores. Only the rows that are close enough to the k-th best so far to be
among the k best are scored again in float64. Therefore the answer is exact, including ties, and does not depend on the
batch of a query or on the number of threads.
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


def find_nearest(
    vectors: Vectors, queries: NDArray[np.float32], k: int, longest: float, rows: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Find the ``k`` rows of ``vectors`` [n, dim] with the largest inner product with each of ``queries`` [q, dim].

    Args:
        longest: upper bound of the lengths of the rows of ``vectors``.
        rows: search only these rows, in ascending order.

    Returns:
        rows int64 and scores float64, both [q, min(k, rows searched)]; best first, equal scores in order of rows.
    """
    k = min(k, len(vectors) if rows is None else len(rows))
    found = [
        _find_nearest(vectors, part, k, longest, rows)
        for part in np.split(queries, range(TILE_QUERIES, len(queries), TILE_QUERIES))
    ]
    shape = (len(queries), k)
    return (
        np.concatenate([hits.rows for hits in found]).reshape(shape),
        np.concatenate([hits.scores for hits in found]).reshape(shape),
    )


def rescore(
    vectors: Vectors, queries: NDArray[np.float32], rows: NDArray[np.int64], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the ``k`` best of the ``rows`` [q, m] given for each query, and their scores, as ``find_nearest`` does.

    A row of -1 stands for a missing one; its score is -inf.
    """
    query = np.arange(len(rows))
    scores = inner_products(queries, query.repeat(rows.shape[1]), vectors, rows.ravel()).reshape(rows.shape)
    scores[rows < 0] = -np.inf
    best = np.lexsort((rows, -scores))[:, :k]
    return rows[query[:, None], best], scores[query[:, None], best]


def inner_products(
    left: Vectors, left_rows: NDArray[np.int64], right: Vectors, right_rows: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the inner product of each pair of rows, in float64.

    Equal rows give equal products wherever they are in memory, which BLAS does not guarantee.
    """
    scores = np.empty(len(left_rows))
    step = max(1, GATHERED // left.shape[1])
    for start in range(0, len(scores), step):
        part = slice(start, start + step)
        products = left[left_rows[part]].astype(np.float64) * right[right_rows[part]]
        scores[part] = products.sum(axis=1)
    return scores


def rounding_bound(dim: int, size: float) -> float:
    """Return twice the largest rounding error of a float32 inner product of ``dim`` terms (Higham 2002, section 3.1).

    ``size`` is the product of the lengths of the two vectors.
    """
    return 2 * (dim + 2) * 2.0**-24 * size


def _find_nearest(
    vectors: Vectors, queries: NDArray[np.float32], k: int, longest: float, rows: NDArray[np.int64] | None
) -> Hits:
    margin = rounding_bound(vectors.shape[1], longest) * np.linalg.norm(queries.astype(np.float64), axis=1)
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
    vectors: Vectors, queries: NDArray[np.float32], rows: NDArray[np.int64] | None
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yield the position and scores [q, tile] of each tile. All tiles share one buffer."""
    count = len(vectors) if rows is None else len(rows)
    height = TILE // max(1, len(queries))
    if rows is not None or vectors.dtype != np.float32:  # then each tile also copies its vectors
        height = max(1, min(height, COPIED // vectors.shape[1]))
    memory = np.empty(len(queries) * min(height, count), np.float32)
    for start in range(0, count, height):
        stop = min(start + height, count)
        block = vectors[start:stop] if rows is None else vectors[rows[start:stop]]
        scores = memory[: len(queries) * (stop - start)].reshape(len(queries), stop - start)
        yield start, np.matmul(queries, _floats(block).T, out=scores)


def _candidates(
    scores: NDArray[np.float32], floor: NDArray[np.float64], margin: NDArray[np.float64], k: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the positions in ``scores`` [q, tile] that may be among the k best.

    A score below ``floor``, or below a bound from the tile itself, each reduced by the rounding error, cannot be.
    """
    width = scores.shape[1]
    above = scores >= floor.astype(np.float32)[:, None]
    if width > k and np.count_nonzero(above) > 4 * k * len(scores):
        above = scores >= np.maximum(floor, _lower_bound(scores, k) - margin).astype(np.float32)[:, None]
    return _positions(above)


def _positions(wanted: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """np.nonzero of a matrix, ten times as fast."""
    return np.divmod(np.flatnonzero(wanted), wanted.shape[1])


def _lower_bound(scores: NDArray[np.float32], k: int) -> NDArray[np.float32]:
    """Return a lower bound of the k-th best score of each row: the k-th largest of the maxima of groups."""
    group = min(GROUP, scores.shape[1] // k)
    count = scores.shape[1] // group
    maxima = scores[:, : count * group].reshape(len(scores), count, group).max(axis=2)
    bound: NDArray[np.float32] = np.partition(maxima, count - k, axis=1)[:, count - k]
    return bound


def _best(hits: Hits, k: int) -> Hits:
    order = np.lexsort((hits.rows, -hits.scores, hits.queries))
    queries = hits.queries[order]
    rank = np.arange(len(order)) - np.searchsorted(queries, queries)
    kept = order[rank < k]
    return Hits(hits.queries[kept], hits.rows[kept], hits.scores[kept])


def _floats(block: Vectors) -> NDArray[np.float32]:
    return np.asarray(block, np.float32)
