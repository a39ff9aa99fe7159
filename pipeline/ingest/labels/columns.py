"""The columns of a table of labels: those that are read, and others that seem to say what is held out.

Data sets come with a split in many forms: words (``subset``: train, test, unlabeled), numbers (``partition``: 0, 1, 2)
or a truth value (``is_valid``: True, False). Only a column named split is read, since a wrong guess would train on test
images; a table in which another column seems to be one is refused, and any other that is not used is noted.
"""

from collections.abc import Collection, Sequence

from deploy.failure import printable
from deploy.plural import listed
from pipeline.ingest.labels.names import HELD_OUT, PERHAPS_HELD_OUT, TRAINED, fold, words_of

READ = ("path", "label", "labels", "split", "group")
RECORDED = ("who", "when", "why")  # what `simclr explore` notes of a decision, for people
NAMES = {"label", "labels", "group"}  # of which a table has one at least
SPLIT_NAMES = {"split", "splits", "subset", "partition", "phase"}  # what else may be in such a column than a split?
SPLIT_WORDS = HELD_OUT | PERHAPS_HELD_OUT | TRAINED | {"unlabeled", "unlabelled", "unsup", "extra", "support", "both"}
BEFORE = {"is", "in", "for", "use", "used", "to"}  # words before a split in the name of a truth value
TRUE, FALSE = {"true", "t", "yes", "y", "1", "1.0", "x"}, {"", "false", "f", "no", "n", "0", "0.0"}
SHOWN_COLUMNS = 5


def names_files(columns: Collection[str]) -> bool:
    """Whether a table with these columns says something of files."""
    return "path" in columns and not NAMES.isdisjoint(columns)


def describe_unused(columns: Sequence[str]) -> str:
    """Which columns are not read; empty if all are."""
    unused = [repr(printable(column, None)) for column in columns if column and column not in (*READ, *RECORDED)]
    if not unused:
        return ""
    kind = "column" if len(unused) == 1 else "columns"
    return f"{kind} {listed(unused, SHOWN_COLUMNS)} not used; those that are read: {', '.join(READ)}"


def says_what_is_held_out(column: str, cells: Sequence[str]) -> bool:
    """Whether a column that is not read seems to be a split, by its name and what is in it."""
    if column in READ:
        return False
    found = [fold(cell) for cell in cells]
    return _is_truth(column, found) or _has_parts(column, found) or _has_words(found)


def _is_truth(column: str, cells: Sequence[str]) -> bool:
    """Whether it says of each image that it is held out or not, or that it is trained on or not: ``is_valid``."""
    words = words_of(column)
    name = "".join(words[1:] if words[:1] and words[0] in BEFORE else words).removeprefix("is")
    if not set(cells) <= TRUE | FALSE:
        return False
    return bool(name in HELD_OUT and set(cells) & TRUE) or bool(name in TRAINED and set(cells) & FALSE)


def _has_parts(column: str, cells: Sequence[str]) -> bool:
    """Whether it has the name of a split, and more than one value."""
    return not SPLIT_NAMES.isdisjoint(words_of(column)) and len(set(cells)) > 1


def _has_words(cells: Sequence[str]) -> bool:
    """Whether most of what is in it are words of splits, one of what is held out among them."""
    filled = ["".join(words_of(cell)) for cell in cells if cell]
    splits = [word for word in filled if word in SPLIT_WORDS]
    return 2 * len(splits) > len(filled) and not (HELD_OUT | PERHAPS_HELD_OUT).isdisjoint(splits)
