"""Approximate nearest neighbors with usearch: an HNSW graph (Malkov & Yashunin 2018) in a file next to the vectors.

The graph only proposes candidates; their scores are computed from the exact vectors. It stores its vectors as bfloat16,
which processors multiply faster than float16. Vectors are only ever added to it: those of deleted rows stay as ways
through the graph, until they are a quarter of it and it is built again.
"""

import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.errors import ArgumentError, IndexFormatError, MissingExtraError
from deploy.failure import install_command
from deploy.search.arrays import write_array
from deploy.search.exact import Vectors
from deploy.search.graph_file import check_graph
from deploy.session import available_cpus

GRAPH, GRAPH_ROWS = "neighbours.usearch", "graph_rows.npy"
BLOCK = 8192
# A search for k neighbors takes at least this many candidates; in the tests they include 0.95 of the true ten nearest.
CANDIDATES = 64
SCORED = 32  # or 2 k nearest candidates are scored exactly: bfloat16 confuses those that are nearly as near
CONNECTIVITY, EXPANSION = 16, 128  # M and ef_construction; usearch's defaults, which the benchmark names
ONE_THREAD = 1024  # entries: threads that add to a smaller graph, or a smaller block, miss each other's
MAX_DELETED = 0.25  # of the vectors in a graph
MIN_SHARE = 0.05  # of the vectors in a graph that have to pass a filter; exact search takes no longer for fewer


class Graph:
    """The graph of an open index, mapped into memory. Safe to use from many threads.

    ``rows`` int64 [entries] are the rows of its entries, -1 for a deleted one; None if entry i is row i. ``verify`` has
    every number of its file checked before it is first used.
    """

    def __init__(self, path: Path, rows: NDArray[np.int64] | None, count: int, dim: int, verify: bool) -> None:
        self._path, self._count, self._dim, self._verify = path, count, dim, verify
        self.rows = np.arange(count) if rows is None else rows
        self._content = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.empty(0, np.uint8)
        self._threads = available_cpus()  # it reads files of the control group, longer than a search takes
        self._index: Any = None
        self._lock = threading.Lock()  # usearch would use the same scratch memory for two simultaneous calls

    def candidates(
        self, queries: NDArray[np.float32], k: int, allowed: NDArray[np.bool_] | None = None
    ) -> NDArray[np.int64] | None:
        """Return rows [q, candidates] that should include the ``k`` best for each of ``queries`` [q, dim].

        Those of a query are in the order of nearness; where it has fewer than others, -1 follows.

        Args:
            allowed: bool [count], the rows that may be returned; None for all.

        Returns:
            None if there are so few rows to choose from, or no queries, that exact search is the better choice.

        Raises:
            MissingExtraError: usearch is not installed; exact search works without it.
            IndexFormatError: the file is not a graph of these vectors.
        """
        share = (self._count if allowed is None else np.count_nonzero(allowed)) / max(1, len(self.rows))
        if share < MIN_SHARE or not len(queries):
            return None
        count = min(math.ceil(max(4 * k, CANDIDATES) / share), len(self.rows))
        with self._lock:
            self._index = self.load(view=True) if self._index is None else self._index
            found = self._index.search(queries, count, threads=min(len(queries), self._threads))
        keys = found.keys.reshape(len(queries), -1).astype(np.int64)
        rows = self.rows[keys] if len(queries) == 1 else self._named(keys, found.counts)
        if allowed is not None:
            rows[~allowed[rows]] = -1
        if rows.min() < 0:
            rows = rows[np.arange(len(rows))[:, None], np.argsort(rows < 0, axis=1, kind="stable")]
        return rows[:, : max(2 * k, SCORED)]

    def _named(self, keys: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the rows of the first ``counts`` keys of each query; what follows them has no meaning."""
        found = np.arange(keys.shape[1]) < counts[:, None]
        return np.where(found, self.rows[np.where(found, keys, 0)], -1)

    def load(self, view: bool) -> Any:
        """Return usearch's index, only to read if ``view``."""
        usearch = _usearch()
        try:
            if self._verify:
                check_graph(self._content, len(self.rows), self._dim)
            index = usearch.restore(self._content, view=view)
        except (RuntimeError, ValueError) as error:
            raise IndexFormatError(f"{self._path}: {error}; build the index again") from error
        if index is None or (len(index), index.ndim) != (len(self.rows), self._dim):
            shape = f"{len(self.rows)} vectors [{self._dim}]"
            raise IndexFormatError(f"{self._path}: not a graph of {shape}; build the index again")
        return index


def write_graph(directory: Path, vectors: Vectors, old: Graph | None = None, kept: Any = None) -> int:
    """Write the graph of ``vectors``, whose rows have length 1, into ``directory``; return how many entries it has.

    Args:
        old, kept: the graph of an earlier state of the index, and which of its rows are the first of ``vectors``.
    """
    rows = np.empty(0, np.int64)
    graph = None
    if old is not None and len(kept) >= (1 - MAX_DELETED) * len(old.rows):
        places = np.full(len(old.rows) + 1, -1)  # the last is of the entries that were deleted before
        places[kept] = np.arange(len(kept))
        graph, rows = old.load(view=False), places[old.rows]
    done = 0 if graph is None else len(kept)
    if graph is None:
        graph = _usearch()(
            ndim=vectors.shape[1], metric="ip", dtype="bf16", connectivity=CONNECTIVITY, expansion_add=EXPANSION
        )
    added = np.arange(done, len(vectors))
    starts = [done, *range(done + ONE_THREAD, len(vectors), BLOCK)]
    for start, stop in zip(starts, [*starts[1:], len(vectors)], strict=True):
        block = np.asarray(vectors[start:stop], np.float32)
        keys = np.arange(len(block), dtype=np.uint64) + len(graph)
        few = min(len(graph), len(block)) < ONE_THREAD
        graph.add(keys, block, threads=1 if few else available_cpus())
    graph.save(str(directory / GRAPH))
    with write_array(directory / GRAPH_ROWS, np.int64) as append:
        append(np.concatenate([rows, added]))
    return len(graph)


def check_metric(metric: str) -> None:
    """Check, before any work, that the graph supports this metric and that usearch is installed."""
    if metric != "cosine":
        raise ArgumentError(f"metric={metric!r}; approximate search needs vectors of equal length: choose cosine")
    _usearch()


def _usearch() -> Any:
    try:
        from usearch.index import Index
    except ImportError as error:
        raise MissingExtraError(
            f"approximate search needs usearch; install it with {install_command('search')}"
        ) from error
    return Index
