"""Check the file of a graph before usearch reads it, which trusts every number in it and crashes on a wrong one.

Its parts, of usearch 2 (``index_dense.hpp`` and ``index.hpp``):

    rows and bytes of a row, 4 bytes each, and the vectors
    64 bytes that begin with "usearch"
    number of nodes, links of a node, links at level 0, highest level, first node: 8 bytes each
    the level of each node: 2 bytes
    each node: its key in 8 bytes, its level in 2, and for each level from 0 the number of its links, then their places
"""

import numpy as np
from numpy.typing import NDArray

from deploy.errors import ArgumentError

MAGIC = b"usearch"
NODES = 8192  # at a time
MOST_LEVELS = 64


def check_graph(content: NDArray[np.uint8], entries: int, dim: int) -> None:
    """Raise ArgumentError unless each number in the file of ``entries`` vectors [dim] of 2 bytes is in its range."""
    start = 8 + entries * dim * 2
    nodes = start + 64 + 40 + 2 * entries
    _require(len(content) >= nodes, "ends early")
    _require(_numbers(content, 0, 4, 2) == [entries, dim * 2], "has other vectors")
    _require(content[start : start + len(MAGIC)].tobytes() == MAGIC, "has no header")
    if not entries:
        return
    count, links, base_links, highest, first = _numbers(content, start + 64, 8, 5)
    levels = content[nodes - 2 * entries : nodes].view("<i2").astype(np.int64)
    most = int(levels.max())
    _require(count == entries and links < 2**16 and base_links < 2**16, "has other nodes")
    _require(levels.min() >= 0 and most == highest < MOST_LEVELS, "has wrong levels")
    _require(first < entries and levels[first] == most, "begins at a wrong node")
    base, step = 4 * (1 + base_links), 4 * (1 + links)
    ends = nodes + np.cumsum(10 + base + step * levels)
    _require(len(content) == ends[-1], "is of another size")
    starts = ends - (10 + base + step * levels)
    for begin in range(0, entries, NODES):
        at = starts[begin : begin + NODES]
        _require(bool((_gather(content, at, 8).view("<u8") < entries).all()), "has wrong keys")
        _require(
            np.array_equal(_gather(content, at + 8, 2).view("<i2")[:, 0], levels[begin : begin + NODES]), "differs"
        )
    for level in range(most + 1):
        size, above = (base, np.arange(entries)) if level == 0 else (step, np.flatnonzero(levels >= level))
        at = starts[above] + 10 + (0 if level == 0 else base + step * (level - 1))
        for begin in range(0, len(at), NODES):
            lists = _gather(content, at[begin : begin + NODES], size).view("<u4").astype(np.int64)
            used = np.arange(size // 4 - 1) < lists[:, :1]
            places = np.where(used, lists[:, 1:], first)
            _require(bool((lists[:, 0] < size // 4).all() and (places < entries).all()), "has wrong links")
            _require(bool((levels[places] >= level).all()), "links a node at a level that it lacks")


def _require(condition: bool, fault: str) -> None:
    if not condition:
        raise ArgumentError(f"the graph {fault}")


def _numbers(content: NDArray[np.uint8], start: int, size: int, count: int) -> list[int]:
    return [int.from_bytes(content[at : at + size], "little") for at in range(start, start + size * count, size)]


def _gather(content: NDArray[np.uint8], starts: NDArray[np.int64], size: int) -> NDArray[np.uint8]:
    """Return ``size`` bytes from each start: uint8 [starts, size]."""
    return np.ascontiguousarray(content[starts[:, None] + np.arange(size)])
