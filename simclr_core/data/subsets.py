"""Which labels a low-label experiment may see: class-balanced, nested, and the same on every machine.

Within each class the samples are put in an order by a hash of (seed, key); a fraction takes the first of them. So 1 %
is contained in 10 % and 10 % in everything, and a new batch of images moves few samples in or out.
"""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from simclr_core.data.order import uniform


@dataclass(frozen=True)
class LabelDraw:
    """Which labels an experiment may see: ``positions``, ascending, drawn for the label budget ``budget``."""

    budget: str
    positions: NDArray[np.int64]


def draw_labels(
    labels: NDArray[np.integer],
    keys: NDArray[np.uint8],
    fractions: tuple[str, ...],
    per_class: tuple[int, ...],
    count: int,
    seed: int,
) -> dict[str, list[LabelDraw]]:
    """By label budget, ``count`` draws with the seeds ``seed``, ``seed`` + 1, ...: shares, then numbers per class.

    A budget of more than half of the labels is drawn once: what draws have in common does not tell how they differ. A
    number per class that takes all labels is left out, being the share of 1.
    """
    known = int(np.sum(labels >= 0))
    found: dict[str, list[LabelDraw]] = {}
    for budget in (*fractions, *(f"{number} per class" for number in per_class)):

        def draw(number: int, budget: str = budget) -> LabelDraw:
            if budget in fractions:
                return LabelDraw(budget, subset(labels, keys, budget, seed + number))
            return LabelDraw(budget, per_class_subset(labels, keys, int(budget.split()[0]), seed + number))

        first = draw(0)
        if budget in fractions or len(first.positions) < known:
            again = range(1, count) if 2 * len(first.positions) <= known else ()
            found[budget] = [first, *map(draw, again)]
    return found


def subset(labels: NDArray[np.integer], keys: NDArray[np.uint8], fraction: str, seed: int) -> NDArray[np.int64]:
    """Positions, ascending, of the labeled samples that a label budget contains.

    ``labels`` [n] are class numbers, negative where there is none; ``keys`` uint8 [n, 32]; ``fraction`` is a decimal
    such as "0.01", taken exactly. Each class gives its share rounded to a whole number (half to even), at least one.
    """
    share = Fraction(fraction)
    assert 0 < share <= 1, fraction
    taken = [members[: max(1, round(share * len(members)))] for members in _ordered_classes(labels, keys, seed)]
    return np.sort(np.concatenate(taken))


def per_class_subset(labels: NDArray[np.integer], keys: NDArray[np.uint8], count: int, seed: int) -> NDArray[np.int64]:
    """Positions, ascending, of ``count`` labeled samples of each class, or all that it has; arguments as ``subset``."""
    return np.sort(np.concatenate([members[:count] for members in _ordered_classes(labels, keys, seed)]))


def folds(labels: NDArray[np.integer], keys: NDArray[np.uint8], count: int, seed: int) -> NDArray[np.int64]:
    """The fold, 0 to count - 1, of every sample [n]; every sample must have a label.

    Samples with the same key stay together and count as one, with the label of the first. The folds of a class differ
    by at most one, and so do the folds as a whole: dealing continues where the class before it stopped.
    """
    assert count > 0
    assert bool(np.all(labels >= 0))
    names = np.ascontiguousarray(keys).view(f"V{keys.shape[1]}")[:, 0]
    _, first, member_of = np.unique(names, return_index=True, return_inverse=True)
    fold = np.empty(len(first), dtype=np.int64)
    fold[np.concatenate(_ordered_classes(labels[first], keys[first], seed))] = np.arange(len(first)) % count
    return fold[member_of]


def _ordered_classes(labels: NDArray[np.integer], keys: NDArray[np.uint8], seed: int) -> list[NDArray[np.int64]]:
    """For each class that occurs, the positions of its samples in hash order; one empty list if none has a label."""
    assert len(labels) == len(keys)
    labeled = np.flatnonzero(labels >= 0)
    words = np.ascontiguousarray(keys[labeled, :8]).view("<u8")[:, 0]  # a part of a SHA-256 is as good a name
    ranks = uniform(seed, 0, words, 0, 1)[:, 0]
    ordered = labeled[np.lexsort((ranks, labels[labeled]))]
    return np.split(ordered, np.flatnonzero(np.diff(labels[ordered])) + 1)
