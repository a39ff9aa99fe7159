"""The nearest neighbors of queries among the rows of an index that pass a mask and the conditions on their metadata."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deploy.errors import ArgumentError, IndexMismatchError
from deploy.search.exact import find_nearest, rescore
from deploy.search.files import Contents
from deploy.search.filters import Where, passing
from deploy.search.vectors import scale

Found = tuple[NDArray[np.int64], NDArray[np.float64]]


def find_neighbors(
    index: Contents, queries: ArrayLike, k: int, mask: ArrayLike | None, where: Where | None, approximate: bool
) -> Found:
    """Return rows int64 and scores float64, both [q, min(k, rows that pass)], best first.

    Raises:
        ArgumentError: an argument has a value that is not allowed, or the index has no graph.
        IndexMismatchError: the queries are not numbers [q, dim].
    """
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise ArgumentError(f"k={k!r}; give an integer of 1 or more")
    vectors = _check_queries(index, queries)
    allowed = _allowed(index, mask, where)
    rows = None if allowed is None else np.flatnonzero(allowed)
    k = min(int(k), index.card.count if rows is None else len(rows))
    if not approximate:
        return find_nearest(index.vectors, vectors, k, index.card.longest, rows)
    if index.graph is None:
        raise ArgumentError("the index has no graph; save it with approximate=True, or search without approximate=True")
    pairs = index.graph.candidates(vectors, k, allowed)
    if pairs is None:
        return find_nearest(index.vectors, vectors, k, index.card.longest, rows)
    hits = rescore(index.vectors, vectors, pairs, k)
    if len(hits.rows) == len(vectors) * k:
        return hits.rows.reshape(len(vectors), k), hits.scores.reshape(len(vectors), k)
    found = np.empty((len(vectors), k), np.int64), np.empty((len(vectors), k))
    enough = np.bincount(hits.queries, minlength=len(vectors)) == k
    for one, values in zip(found, (hits.rows, hits.scores), strict=True):
        one[enough] = values[enough[hits.queries]].reshape(-1, k)
    # Of the others the graph does not reach enough rows.
    found[0][~enough], found[1][~enough] = find_nearest(index.vectors, vectors[~enough], k, index.card.longest, rows)
    return found


def _check_queries(index: Contents, queries: ArrayLike) -> NDArray[np.float32]:
    vectors, dim = np.atleast_2d(np.asarray(queries)), index.card.dim
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
