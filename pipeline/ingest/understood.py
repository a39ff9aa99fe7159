"""The end of every ingest: how many files each class has in each split, and what a person may not have meant."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

from deploy.failure import printable
from deploy.folders.files import describe_passed_over
from deploy.images import heif
from deploy.plural import counted
from pipeline.ingest.layout import Reading
from pipeline.ingest.sources import Source, find_repeated
from simclr_core.data import label_sets

SHOWN_CLASSES = 20
ABSENT = ""  # no class has this name
SHOWN_NOTES = 20
WIDTH = 40  # of a class's name


def tabulate(
    sources: Sequence[Source],
    readings: Sequence[Reading],
    others: Mapping[tuple[str, str | None], int] = MappingProxyType({}),
) -> list[str]:
    """Lines of a table, split x class, of all files in the sources; then what was passed over, and notes.

    A file with several labels is counted for each of them, and one that two sources list, once.

    Args:
        others: split, label → number of files that are in the sources, and left out of these lists of them.
    """
    counts = Counter(others)
    notes: Counter[str] = Counter()
    repeated = find_repeated(sources)
    for source, reading, twice in zip(sources, readings, repeated, strict=True):
        if source.files and source.files.keys() <= twice:
            continue
        taken = source.files.keys() - source.passed_over.keys() - twice
        counts.update((place.split, place.label) for path, place in reading.places.items() if path in taken)
        notes.update(reading.notes)
        notes.update(heif.ADVICE for path in source.files if heif.is_unread(path))
    by_class = _by_class(counts)
    notes.update(_unknown_classes(by_class))
    if several := sum(number for (_, label), number in counts.items() if label_sets.is_set(label)):
        notes[
            "an image may have several labels here; a class that a labeled image does not have, by a table or by its "
            "folder, counts as absent from it"
        ] = several
    passed = [
        line
        for source, twice in zip(sources, repeated, strict=True)
        for line in describe_passed_over({path: why for path, why in source.passed_over.items() if path not in twice})
    ]
    return [*_table(by_class), *passed, *(f"note: {line}" for line in list_notes(notes))]


def list_notes(notes: Counter[str]) -> list[str]:
    """As lines, each with its number of files."""
    lines = [printable(text + _files(number), None) for text, number in sorted(notes.items())]
    if len(lines) > SHOWN_NOTES:
        lines[SHOWN_NOTES:] = [f"{counted(len(lines) - SHOWN_NOTES, 'more note')} of these kinds"]
    return lines


def _files(number: int) -> str:
    return f" ({counted(number, 'file')})" if number else ""


def _by_class(counts: Counter[tuple[str, str | None]]) -> Counter[tuple[str, str | None]]:
    """Files by split and class, of several labels for each; ABSENT is that of files with none of the classes."""
    found: Counter[tuple[str, str | None]] = Counter()
    for (split, label), number in counts.items():
        classes = (None,) if label is None else label_sets.members(label) or (ABSENT,)
        found.update({(split, name): number for name in classes})
    return found


def _table(counts: Counter[tuple[str, str | None]]) -> Iterator[str]:
    labels = sorted({label for _, label in counts if label})
    rest = labels[SHOWN_CLASSES:]
    groups: dict[str, Sequence[str | None]] = {printable(label, None): [label] for label in labels[:SHOWN_CLASSES]}
    groups |= {counted(len(rest), "more class"): rest} if rest else {}
    if any(label == ABSENT for _, label in counts):
        groups["(none of them)"] = [ABSENT]
    if not labels or any(label is None for _, label in counts):
        groups["(no class)"] = [None]
    width = min(WIDTH, max(map(len, groups)))
    yield f"{'class':<{width}}  {'train':>9}  {'test':>9}"
    for name, group in groups.items():
        train, test = (sum(counts[split, label] for label in group) for split in ("train", "test"))
        yield f"{name[:width]:<{width}}  {train:>9,}  {test:>9,}"


def _unknown_classes(counts: Counter[tuple[str, str | None]]) -> dict[str, int]:
    """Classes of the test images that no training image has, where any has a class."""
    trained = {label for split, label in counts if split == "train" and label}
    return {
        f"class {label!r} is in test/ alone; put images of it into labeled/{label}/, or correct its name": number
        for (split, label), number in counts.items()
        if split == "test" and label and trained and label not in trained
    }
