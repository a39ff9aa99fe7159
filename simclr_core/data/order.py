"""Stateless randomness: the order of an epoch and every augmentation draw are pure functions of integers.

Nothing here has a state to save, so resuming at any step costs nothing, and what a sample goes through depends neither
on the number of ranks or worker threads nor on the batch it sits in. Imports no torch.
"""

from dataclasses import dataclass
from math import isqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray

Words = NDArray[np.uint64]

GOLDEN: Words = np.array([0x9E3779B97F4A7C15], np.uint64)  # 2^64 / golden ratio: SplitMix64's increment
ROUNDS = 12  # with 8, a chi-square test over all orders of 5 or 6 samples still sees the grid; with 12 it does not
ORDER, DRAWS, WINDOWS = 0, 1, 2  # first word of every hash: keeps the uses apart under one seed
WINDOW_BYTES = 2**31  # of the shards whose images are mixed: what a machine can keep in memory of slow storage


@dataclass(frozen=True)
class Order:
    """In which order the ``images`` of an epoch are seen, each once; any image may be next to any other."""

    seed: int
    images: int

    def positions(self, epoch: int, slots: ArrayLike) -> NDArray[np.int64]:
        """The image at each of the epoch's ``slots`` [m]: int64 [m]."""
        return permuted(self.seed, epoch, slots, self.images)


class ShardOrder:
    """Likewise, shard by shard, for storage that is slow where reads are scattered.

    In each epoch the shards are shuffled and cut into windows: those that begin within the same ``window_bytes``. The
    images of a window are shuffled together. So an epoch reads each shard in one stretch of its steps.

    Examples:
        >>> order = ShardOrder(seed=0, shards=[0, 0, 0, 1, 1, 2], sizes=[5] * 6, window_bytes=10)
        >>> whole = order.positions(epoch=0, slots=range(6))
        >>> sorted(whole.tolist())
        [0, 1, 2, 3, 4, 5]
        >>> order.positions(epoch=0, slots=[4, 1]).tolist() == whole[[4, 1]].tolist()
        True
    """

    def __init__(self, seed: int, shards: ArrayLike, sizes: ArrayLike, window_bytes: int = WINDOW_BYTES) -> None:
        """``shards`` [n], ascending, is the shard that each image is in, and ``sizes`` [n] its bytes there."""
        self.seed = seed
        of_images = np.asarray(shards, np.int64)
        assert (np.diff(of_images) >= 0).all()
        _, self._first, self._counts = np.unique(of_images, return_index=True, return_counts=True)
        self._bytes = np.add.reduceat(np.asarray(sizes, np.int64), self._first)
        self._window_bytes = window_bytes

    def positions(self, epoch: int, slots: ArrayLike) -> NDArray[np.int64]:
        """The image at each of the epoch's ``slots`` [m]: int64 [m]."""
        shards, windows = self.windows(epoch)
        counts = self._counts[shards]
        ends = np.cumsum(counts)
        wanted = np.atleast_1d(np.asarray(slots, np.int64))
        places = np.empty_like(wanted)
        of_slots = windows[np.searchsorted(ends, wanted, side="right")]
        for window in np.unique(of_slots).tolist():
            here, shards_here = of_slots == window, windows == window
            begin, count = int((ends - counts)[shards_here][0]), int(counts[shards_here].sum())
            places[here] = begin + permuted(_seed_of(self.seed, window), epoch, wanted[here] - begin, count)
        turn = np.searchsorted(ends, places, side="right")
        return self._first[shards[turn]] + places - (ends - counts)[turn]

    def windows(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The shards in the order of the epoch, and the window of each, ascending; both int64 [shards]."""
        count = len(self._first)
        shards = permuted(_seed_of(self.seed, -1), epoch, np.arange(count), count)
        before = np.cumsum(self._bytes[shards]) - self._bytes[shards]
        return shards, before // self._window_bytes


def permuted(seed: int, epoch: int, slots: ArrayLike, n: int) -> NDArray[np.int64]:
    """The sample at each of the epoch's ``slots`` [m], which lie in [0, n): int64 [m], one to one over [0, n).

    A generalized Feistel network on a grid of at least n cells, walked again from every cell that is not below n (Black
    and Rogaway 2002, "Ciphers with Arbitrary Finite Domains"). O(1) per slot: a rank asks for its own, at any step.

    Examples:
        >>> whole = permuted(seed=0, epoch=3, slots=range(10), n=10)
        >>> sorted(whole.tolist()) == list(range(10))
        True
        >>> permuted(seed=0, epoch=3, slots=[7, 8], n=10).tolist() == whole[[7, 8]].tolist()
        True
    """
    cells: Words = np.atleast_1d(np.asarray(slots, np.uint64))
    assert cells.size == 0 or int(cells.max()) < n, f"slots up to {cells.max()} do not lie in [0, {n})"
    rows = isqrt(max(n - 1, 0)) + 1
    columns = max(-(-n // rows), 1)
    keys = [_hash(ORDER, seed, epoch, turn) for turn in range(ROUNDS)]
    cells = _feistel(cells, keys, rows, columns)
    while (outside := np.flatnonzero(cells >= n)).size:
        cells[outside] = _feistel(cells[outside], keys, rows, columns)
    return cells.astype(np.int64)


def uniform(seed: int, epoch: int, samples: ArrayLike, view: int, count: int) -> NDArray[np.float64]:
    """``count`` uniform numbers in [0, 1) for each of ``samples`` [n], non-negative: float64 [n, count].

    Each (seed, epoch, view, sample) hashes to the start of a separate SplitMix64 stream (Steele, Lea and Flood 2014).
    """
    streams = _hash(DRAWS, seed, epoch, view, np.atleast_1d(np.asarray(samples)).astype(np.uint64))
    steps = GOLDEN * np.arange(1, count + 1).astype(np.uint64)
    draws = _mix(streams[:, None] + steps) >> np.uint64(11)  # a float64 holds 53 bits
    return draws.astype(np.float64) * 2.0**-53


def _seed_of(seed: int, window: int) -> int:
    return int(_hash(WINDOWS, seed, window)[0])


def _feistel(cells: Words, keys: list[Words], rows: int, columns: int) -> Words:
    """Turn by turn, shift every cell along its column by a hash of the column, then along its row by one of the row."""
    height, width = np.uint64(rows), np.uint64(columns)
    row: Words = cells // width
    column: Words = cells % width
    for turn, key in enumerate(keys):
        if turn % 2:
            column = (column + _mix(key + row * GOLDEN) % width) % width
        else:
            row = (row + _mix(key + column * GOLDEN) % height) % height
    return row * width + column


def _hash(*integers: int | Words) -> Words:
    """One 64-bit hash of integers, taken modulo 2^64, and arrays of them: [1], or [n] when one has n."""
    state: Words = np.zeros(1, np.uint64)
    for value in integers:
        key: Words = np.array([value % 2**64], np.uint64) if isinstance(value, int) else value
        state = _mix((state ^ key) + GOLDEN)
    return state


def _mix(words: Words) -> Words:
    """SplitMix64's output function: a bijection of 64-bit words that spreads every input bit over all output bits."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
