"""Several labels of one image as one text, which raw batches, the manifest and the prepared images all hold.

An image has one label, several, or, where a person has looked and none of the classes is there, none of them: that is
said of it too, and differs from an image of which nothing is said. The labels of a set stand in one order, separated by
the unit separator of ASCII, which no class has in its name; so sets are equal where their texts are, and what compares
or counts labels need not know of them. One label alone is its name, as before.
"""

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

SEPARATOR = "\x1f"
NONE_OF_THEM = SEPARATOR  # the set without a label
BETWEEN, NOTHING = "|", "-"  # as people write and see them: cat|dog, and - for none of the classes


def join(labels: Iterable[str]) -> str:
    """The text of a set of labels.

    Examples:
        >>> join(["dog", "cat"]), join(["cat"]), join([])
        ('cat\\x1fdog', 'cat', '\\x1f')
    """
    names = sorted(set(labels))
    return SEPARATOR.join(names) if names else NONE_OF_THEM


def members(text: str) -> tuple[str, ...]:
    """The labels of the set that ``join`` wrote; of one label, that label."""
    return tuple(name for name in text.split(SEPARATOR) if name)


def members_of(texts: Iterable[str | None]) -> set[str]:
    """Every label of these sets; None: nothing is said."""
    return {name for text in texts if text is not None for name in members(text)}


def is_set(text: str | None) -> bool:
    """Whether it says another number of labels than one."""
    return text is not None and SEPARATOR in text


def describe(text: str) -> str:
    """As people write it: ``cat|dog``, and ``-`` for none of the classes. One label that is written so is in quotes.

    Examples:
        >>> describe(join(["dog", "cat"])), describe("cat|dog"), describe(NONE_OF_THEM), describe("-")
        ('cat|dog', "'cat|dog'", '-', "'-'")
    """
    names = members(text)
    quoted = not is_set(text) and (text == NOTHING or BETWEEN in text)
    return repr(text) if quoted else BETWEEN.join(names) or NOTHING


def rarest(targets: NDArray[np.bool_]) -> NDArray[np.int64]:
    """For each image the class of its labels that the fewest images have: int64 [n]; ``classes`` where it has none.

    ``targets`` is bool [n, classes]. It stands for the labels of an image where images are drawn or divided class by
    class: so that rare classes are in every part.
    """
    images, classes = targets.shape
    counts = np.where(targets, targets.sum(axis=0), images + 1)
    least = counts.argmin(axis=1) if classes else np.zeros(images, np.int64)
    return np.where(targets.any(axis=1), least, classes).astype(np.int64)


def strata(labels: NDArray[np.integer] | NDArray[np.bool_]) -> NDArray[np.int64]:
    """The class by which an image is drawn or divided: its label, of ``labels`` [n], or the rarest of its labels, of
    bool [n, classes]."""
    return labels.astype(np.int64) if labels.ndim == 1 else rarest(labels.astype(bool))


def as_targets(labels: NDArray[np.integer] | NDArray[np.bool_], classes: int) -> NDArray[np.bool_]:
    """Which of the classes each image has, bool [n, classes], of the class of each [n] too."""
    return labels.astype(bool) if labels.ndim == 2 else labels[:, None] == np.arange(classes)


def rarest_of(counts: Mapping[str | None, int]) -> dict[str, int]:
    """The same of counted texts: how many labeled images there are of each class that is the rarest of some; ``-`` for
    those of none. Of images with one label each it is their number by label."""
    if not any(map(is_set, counts)):
        return {text: count for text, count in counts.items() if text is not None}
    total = count_members(counts)
    found: dict[str, int] = {}
    for text, count in counts.items():
        if text is not None:
            name = min(members(text), key=lambda one: (total[one], one), default=NOTHING)
            found[name] = found.get(name, 0) + count
    return found


def effective_images(counts: Mapping[str | None, int]) -> float:
    """Of counted texts, how many images with equal parts in a mean over the classes would make it as sure (Kish 1965,
    "Survey Sampling"); ``multi_label.precision.Spread`` has the same of [n, classes].

    Examples:
        >>> [round(effective_images(counts), 1) for counts in ({"cat": 10, "dog": 10}, {"cat": 19, "dog": 1})]
        [20.0, 3.8]
    """
    total = count_members(counts)
    squares = (count * sum(1 / total[name] for name in members(text or "")) ** 2 for text, count in counts.items())
    return len(total) ** 2 / sum(squares) if total else 0.0


def count_members(counts: Mapping[str | None, int]) -> dict[str, int]:
    """Of counted texts, how many images have each label."""
    found: dict[str, int] = {}
    for text, count in counts.items():
        for name in members(text or ""):
            found[name] = found.get(name, 0) + count
    return found
