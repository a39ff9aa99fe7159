"""The end of every ingest: how many files each class has in each split, and what a person may not have meant."""

from collections import Counter
from collections.abc import Iterator, Sequence

from deploy.failure import printable
from deploy.folders.files import describe_passed_over
from deploy.images import heif
from deploy.plural import counted
from pipeline.ingest.layout import Reading
from pipeline.ingest.sources import Source

SHOWN_CLASSES = 20
SHOWN_NOTES = 20
WIDTH = 40  # of a class's name


def tabulate(sources: Sequence[Source], readings: Sequence[Reading]) -> list[str]:
    """Lines of a table, split x class, of all files in the sources; then what was passed over, and notes."""
    counts: Counter[tuple[str, str | None]] = Counter()
    notes: Counter[str] = Counter()
    for source, reading in zip(sources, readings, strict=True):
        taken = source.files.keys() - source.passed_over.keys()
        counts.update((place.split, place.label) for path, place in reading.places.items() if path in taken)
        notes.update(reading.notes)
        notes.update(heif.ADVICE for path in source.files if heif.is_unread(path))
    notes.update(_unknown_classes(counts))
    lines = [text + _files(number) for text, number in sorted(notes.items())]
    if len(lines) > SHOWN_NOTES:
        lines[SHOWN_NOTES:] = [f"{counted(len(lines) - SHOWN_NOTES, 'more note')} of these kinds"]
    passed = [line for source in sources for line in describe_passed_over(source.passed_over)]
    return [*_table(counts), *passed, *(f"note: {printable(line, None)}" for line in lines)]


def _files(number: int) -> str:
    return f" ({counted(number, 'file')})" if number else ""


def _table(counts: Counter[tuple[str, str | None]]) -> Iterator[str]:
    labels = sorted({label for _, label in counts if label is not None})
    rest = labels[SHOWN_CLASSES:]
    groups: dict[str, Sequence[str | None]] = {printable(label, None): [label] for label in labels[:SHOWN_CLASSES]}
    groups |= {counted(len(rest), "more class"): rest} if rest else {}
    if not labels or any(label is None for _, label in counts):
        groups["(no class)"] = [None]
    width = min(WIDTH, max(map(len, groups)))
    yield f"{'class':<{width}}  {'train':>9}  {'test':>9}"
    for name, group in groups.items():
        train, test = (sum(counts[split, label] for label in group) for split in ("train", "test"))
        yield f"{name[:width]:<{width}}  {train:>9,}  {test:>9,}"


def _unknown_classes(counts: Counter[tuple[str, str | None]]) -> dict[str, int]:
    """Classes of the test images that no training image has, where any has a class."""
    trained = {label for split, label in counts if split == "train" and label is not None}
    return {
        f"class {label!r} is in test/ alone; put images of it into labeled/{label}/, or correct its name": number
        for (split, label), number in counts.items()
        if split == "test" and label is not None and trained and label not in trained
    }
