"""Approximate nearest neighbors with usearch: an HNSW graph (Malkov & Yashunin 2018) in a file next to the vectors.

The graph only proposes candidates; their scores are computed from the exact vectors.
"""

import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.errors import ArgumentError, IndexFormatError, MissingExtraError
from deploy.search.exact import Vectors
from deploy.session import available_cpus

GRAPH = "neighbours.usearch"
BLOCK = 8192
# A search for k neighbors takes at least this many candidates; in the tests they include 0.95 of the true ten nearest.
CANDIDATES = 64


class Graph:
    """The graph of an open index, mapped into memory. Safe to use from many threads."""

    def __init__(self, path: Path, shape: tuple[int, int]) -> None:
        self._path, self._shape = path, shape
        self._index: Any = None
        self._lock = threading.Lock()  # usearch would use the same scratch memory for two simultaneous calls

    def candidates(self, queries: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return pairs (position in ``queries`` [q, dim], row): at most max(4 k, 64) for each query.

        Raises:
            MissingExtraError: usearch is not installed; exact search works without it.
            IndexFormatError: the file is not a graph of these vectors.
        """
        count = min(max(4 * k, CANDIDATES), self._shape[0])
        if not count or not len(queries):
            return np.empty(0, np.int64), np.empty(0, np.int64)
        with self._lock:
            self._index = self._open() if self._index is None else self._index
            found = self._index.search(queries, count, threads=min(len(queries), available_cpus()))
        each = [found.keys] if len(queries) == 1 else [matches.keys for matches in found]
        return np.repeat(np.arange(len(each)), [len(keys) for keys in each]), np.concatenate(each).astype(np.int64)

    def _open(self) -> Any:
        usearch = _usearch()
        try:
            index = usearch.restore(str(self._path), view=True)
        except (RuntimeError, ValueError) as error:
            raise IndexFormatError(f"{self._path}: {error}; build the index again") from error
        if index is None or (len(index), index.ndim) != self._shape:
            count, dim = self._shape
            raise IndexFormatError(f"{self._path}: not a graph of {count} vectors [{dim}]; build the index again")
        return index


def write_graph(directory: Path, vectors: Vectors) -> None:
    """Build the graph of ``vectors``, whose rows have length 1, and write it into ``directory``."""
    graph = _usearch()(ndim=vectors.shape[1], metric="ip", dtype="f16")
    for start in range(0, len(vectors), BLOCK):
        block = np.asarray(vectors[start : start + BLOCK], np.float32)
        graph.add(np.arange(start, start + len(block), dtype=np.uint64), block, threads=available_cpus())
    graph.save(str(directory / GRAPH))


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
            "approximate search needs usearch; install it with `pip install 'simclr-pipeline[search]'`"
        ) from error
    return Index
