"""Numbers in sentences: "1 batch", "2,000 batches", "a, b and 1,200 more", "6 min"; and tables of them."""

from collections.abc import Sequence


def counted(number: int, noun: str) -> str:
    """``number`` and ``noun``, which is given in the singular; the regular plural where the number asks for it."""
    return f"{number:,} {noun if number == 1 else plural(noun)}"


def plural(noun: str) -> str:
    """The regular plural of the last word of ``noun``."""
    if noun.endswith(("s", "x", "ch", "sh")) and not noun.endswith("epoch"):  # spoken as k
        return f"{noun}es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return f"{noun[:-1]}ies"
    return f"{noun}s"


def listed(names: Sequence[str], most: int, separator: str = ", ") -> str:
    """The first ``most`` of ``names``, and how many more there are."""
    shown, more = separator.join(names[:most]), len(names) - most
    return f"{shown}{separator.rstrip(', ')} and {more:,} more" if more > 0 else shown


def duration(seconds: float) -> str:
    """In seconds below a minute and a half, in hours from an hour and a half on."""
    if seconds < 90:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def align(rows: Sequence[Sequence[str]], numbers: bool = False) -> list[str]:
    """A line for each row, with the cells of a column below each other.

    Args:
        numbers: put every column but the first to the right.
    """
    columns = [
        [f"{cell:{'>' if numbers and place else '<'}{max(map(len, column))}}" for cell in column]
        for place, column in enumerate(zip(*rows, strict=True))
    ]
    return ["  ".join(cells).rstrip() for cells in zip(*columns, strict=True)]
