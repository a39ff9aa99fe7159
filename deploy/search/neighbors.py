"""The nearest neighbors of queries among the rows of an index that pass a mask and the conditions on their metadata."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deploy.errors import ArgumentError, IndexMismatchError, require_truth
from deploy.search.exact import find_nearest, rescore
from deploy.search.files import Contents
from deploy.search.filters import Where, passing
from deploy.search.vectors import as_array, scale

Found = tuple[NDArray[np.int64], NDArray[np.float64]]


class Matches(NamedTuple):
    """The nearest neighbors of each query, nearest first; equal scores in order of rows.

    Attributes:
        ids: for each query, the ids of its neighbors.
        rows: int64 [queries, k], their rows in the index.
        scores: float32 [queries, k], cosine similarities or inner products.
    """

    ids: list[list[str]]
    rows: NDArray[np.int64]
    scores: NDArray[np.float32]


class Pair(NamedTuple):
    """Two nearly identical vectors: their ids, and their cosine similarity."""

    first: str
    second: str
    cosine: float


def find_neighbors(
    index: Contents, queries: ArrayLike, k: int, mask: ArrayLike | None, where: Where | None, approximate: bool
) -> Found:
    """Return rows int64 and scores float64, both [q, min(k, rows that pass)], best first.

    Raises:
        ArgumentError: an argument has a value that is not allowed, or the index has no graph.
        IndexMismatchError: the queries are not numbers [q, dim].
    """
    require_truth(approximate=approximate)
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise ArgumentError(f"k={k!r}; give an integer of 1 or more")
    vectors = _check_queries(index, queries)
    allowed = _allowed(index, mask, where)
    k = min(int(k), index.card.count if allowed is None else int(np.count_nonzero(allowed)))
    if not approximate:
        return _find_exactly(index, vectors, k, allowed)
    if index.graph is None:
        raise ArgumentError("the index has no graph; save it with approximate=True, or search without approximate=True")
    candidates = index.graph.candidates(vectors, k, allowed)
    if candidates is None or candidates.shape[1] < k:
        return _find_exactly(index, vectors, k, allowed)
    rows, scores = rescore(index.vectors, vectors, candidates, k)
    few = rows[:, -1] < 0  # the graph does not reach enough rows of these
    if few.any():
        rows[few], scores[few] = _find_exactly(index, vectors[few], k, allowed)
    return rows, scores


def _find_exactly(index: Contents, vectors: NDArray[np.float32], k: int, allowed: NDArray[np.bool_] | None) -> Found:
    rows = None if allowed is None else np.flatnonzero(allowed)
    return find_nearest(index.vectors, vectors, k, index.card.longest, rows)


def _check_queries(index: Contents, queries: ArrayLike) -> NDArray[np.float32]:
    vectors, dim = np.atleast_2d(as_array("queries", queries)), index.card.dim
    if vectors.ndim != 2 or vectors.shape[1] != dim or vectors.dtype.kind not in "fiu":
        given = f"{vectors.dtype} {list(vectors.shape)}"
        raise IndexMismatchError(f"queries are {given}, the index holds vectors [{dim}]; give numbers [q, {dim}]")
    return scale(vectors, index.card.metric, "query {}".format).astype(np.float32)


def _allowed(index: Contents, mask: ArrayLike | None, where: Where | None) -> NDArray[np.bool_] | None:
    count = index.card.count
    allowed = passing(index.columns, where, count) if where is not None else None
    if mask is None:
        return allowed
    given = np.asarray(mask)
    if given.shape != (count,) or given.dtype != np.bool_:
        raise ArgumentError(f"mask is {given.dtype} {list(given.shape)}; give bool [{count}], one for each row")
    return given if allowed is None else given & allowed
