"""Names of classes: those that are not allowed, and those that differ only in how they are written."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from difflib import get_close_matches

from deploy.plural import counted
from pipeline.errors import IngestError
from pipeline.ingest.labels.groups import MISSING
from pipeline.ingest.labels.names import fold
from pipeline.ingest.layout import Reading
from pipeline.ingest.raw import Occurrence
from simclr_core.data import label_sets


def refuse_twins(readings: Sequence[Reading], classes: Sequence[str] | None) -> None:
    """Raise IngestError if labels differ in capitals, blanks or Unicode form alone, and ``classes`` has not both."""
    counts = Counter(
        name for reading in readings for one in reading.places.values() for name in label_sets.members(one.label or "")
    )
    found = _twins(counts, classes)
    if found:
        named = ", ".join(
            " and ".join(f"{one!r} ({counted(counts[one], 'file')})" for one in group) for group in found[:3]
        )
        raise IngestError(
            f"classes differ in nothing but capitals, blanks or Unicode form: {named}; give each class one name in the "
            "folders and in labels.csv, or list both in ingest.classes if they are two"
        )


def describe_names(labels: Collection[str], classes: Sequence[str] | None) -> Iterator[str]:
    """Notes on the labels of all batches: those of earlier ones may not be in any source now."""
    if unlisted := sorted(set(labels) - set(classes or labels)):
        yield (
            f"note: earlier batches have classes that are not in ingest.classes, and are still trained on: "
            f"{', '.join(map(repr, unlisted[:5]))}; list them, or give their files another label or a blank one"
        )
    for label in sorted(set(labels) - set(classes or ())):
        if fold(label) in MISSING:
            yield (
                f"note: {label!r} is a class, and also what programs write for a missing value; leave the cell blank "
                "where the label is not known, or list it in ingest.classes"
            )
    for group in _twins(labels, classes):
        named = " and ".join(map(repr, group))
        yield (
            f"note: {named} are separate classes, and differ in nothing but capitals, blanks or Unicode form from one "
            "batch to another; give the files of one of them the other name, or list both in ingest.classes"
        )


def check_labels(occurrences: Iterable[Occurrence], classes: Sequence[str]) -> None:
    """Raise IngestError if a label is not listed: it is mistyped, or ingest.classes lacks it."""
    unknown: dict[str, list[str]] = {}
    for occurrence in occurrences:
        for label in label_sets.members(occurrence.label or ""):
            if label not in classes:
                unknown.setdefault(label, []).append(occurrence.path)
    faults = [
        f"{label!r} ({paths[0]!r}{f' and {len(paths) - 1} more' if len(paths) > 1 else ''}{_suggest(label, classes)})"
        for label, paths in sorted(unknown.items())
    ]
    if faults:
        raise IngestError(
            f"labels not listed in ingest.classes: {'; '.join(faults[:5])}; allowed: {', '.join(classes)}; "
            "correct the folder's name or labels.csv, or add the class to ingest.classes in params.yaml"
        )


def _suggest(label: str, classes: Sequence[str]) -> str:
    close = get_close_matches(label, classes, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _twins(labels: Collection[str], classes: Sequence[str] | None) -> list[list[str]]:
    twins = defaultdict[str, list[str]](list)
    for label in sorted(labels):
        twins["".join(fold(label).split())].append(label)
    return [group for group in twins.values() if len(group) > 1 and not set(group) <= set(classes or ())]
