"""Which labels a low-label experiment may see: class-balanced, nested, and the same on every machine.

Within each class the samples are put in an order by a hash of (seed, key); a fraction takes the first of them. So 1 %
is contained in 10 % and 10 % in everything, and a new batch of images moves few samples in or out.
"""

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from simclr_core.data.order import uniform


def subset(labels: NDArray[np.integer], keys: NDArray[np.uint8], fraction: str, seed: int) -> NDArray[np.int64]:
    """Positions, ascending, of the labeled samples that a label budget contains.

    ``labels`` [n] are class numbers, negative where there is none; ``keys`` uint8 [n, 32]; ``fraction`` is a decimal
    such as "0.01", taken exactly. Each class gives its share rounded to a whole number (half to even), at least one.
    """
    share = Fraction(fraction)
    assert 0 < share <= 1, fraction
    taken = [members[: max(1, round(share * len(members)))] for members in _ordered_classes(labels, keys, seed)]
    return np.sort(np.concatenate(taken))


def folds(labels: NDArray[np.integer], keys: NDArray[np.uint8], count: int, seed: int) -> NDArray[np.int64]:
    """The fold, 0 to count - 1, of every sample [n]; every sample must have a label.

    The folds of a class differ by at most one sample, and so do the folds as a whole: dealing continues where the class
    before it stopped.
    """
    assert count > 0
    assert bool(np.all(labels >= 0))
    fold = np.empty(len(labels), dtype=np.int64)
    fold[np.concatenate(_ordered_classes(labels, keys, seed))] = np.arange(len(labels)) % count
    return fold


def _ordered_classes(labels: NDArray[np.integer], keys: NDArray[np.uint8], seed: int) -> list[NDArray[np.int64]]:
    """For each class that occurs, the positions of its samples in hash order; one empty list if none has a label."""
    assert len(labels) == len(keys)
    labeled = np.flatnonzero(labels >= 0)
    words = np.ascontiguousarray(keys[labeled, :8]).view("<u8")[:, 0]  # a part of a SHA-256 is as good a name
    ranks = uniform(seed, 0, words, 0, 1)[:, 0]
    ordered = labeled[np.lexsort((ranks, labels[labeled]))]
    return np.split(ordered, np.flatnonzero(np.diff(labels[ordered])) + 1)
