"""Undo: take a batch back as if it had not been ingested, and keep its files from coming in again.

    simclr ingest --undo 0003        simclr ingest --redo 0003

The batch keeps its folder and its number. Its bytes go, and each content's record says what was undone: so this
belongs to data/raw, and an earlier ``data/raw.dvc`` brings the batch back. What other batches say of contents whose
bytes go is undone with it, those batches first: until the batch itself has changed, in one step, an ingest or the same
command completes it. Versions that have the batch keep it in DVC's cache.

What was undone comes in when its source says something else of it, or when the batch is taken again. An image that was
held out does not become a training image by silence: where labels.csv does not say its split or does not name it any
more, what it said before holds, as it does for contents in use.
"""

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from deploy.artifact import publish, recover
from deploy.failpoint import failpoint
from pipeline.dvc import cache
from pipeline.dvc.client import add, exclusive
from pipeline.dvc.project import RAW, read_tracked
from pipeline.errors import IngestError
from pipeline.ingest.claims import UNCLAIMED, describe_images, find_splits
from pipeline.ingest.layout import Place, Reading
from pipeline.ingest.raw import (
    OCCURRENCES,
    REDONE,
    REPLACED,
    UNDONE,
    Occurrence,
    batches,
    list_tar,
    read_records,
    tars,
)
from pipeline.ingest.sources import Source
from pipeline.ingest.stamps import STAMPS, Stamps
from pipeline.workspace import Workspace

Record = dict[str, Any]


def undo(workspace: Workspace, name: str) -> list[str]:
    """Take a batch back; returns what has changed, for a person.

    Raises:
        IngestError: there is no such batch.
        DvcError: the versions that have it cannot be read.
        BusyError: another process holds the workspace.
    """
    with exclusive(workspace.root, "undo"):
        batch = _find(workspace, name)
        name = batch.name
        before = find_splits(batches(workspace.raw))
        images, labels = _take_back(workspace.raw, batch)
        after = find_splits(batches(workspace.raw))
        _track(workspace)
        with cache.opened(workspace.root) as objects:
            used = {
                use.version for uses in objects.uses().values() for use in uses if use.path.startswith(f"{RAW}/{name}/")
            }
    if not images and not labels:
        return [f"batch {name}: nothing of it is in use, it was undone before"]
    parts = [f"{describe_images(images)} removed from data/raw"] if images else []
    parts += [f"what it said of {describe_images(labels, 'other ')} taken back"] if labels else []
    freed = sum(split == "train" and before[sha256] == "test" for sha256, split in after.items())
    releases = sorted({one for version in used for one in version.split(",") if "@" in one})
    lines = [f"batch {name} is undone: {', '.join(parts)}; `simclr run` trains without it"]
    if freed:
        lines.append(
            f"{describe_images(freed)} that it held out {'is' if freed == 1 else 'are'} trained on, as before it; "
            f"`simclr ingest --redo {name}` holds them out again"
        )
    if releases:
        lines.append(
            f"{', '.join(releases)} had it, and stays as it is with its data; what serves changes with the next "
            "release, or at once with `simclr release rollback`"
        )
    return [
        *lines,
        "your files stay where they are, and an ingest leaves them out; one that is moved to another class or gets "
        f"another label is taken, and `simclr ingest --redo {name}` takes them all again",
    ]


def redo(workspace: Workspace, name: str) -> str:
    """Let the next ingest take the files of an undone batch, where they are still in its sources; returns its name.

    Raises:
        IngestError: there is no such batch, or it is not undone.
        BusyError: another process holds the workspace.
    """
    with exclusive(workspace.root, "redo"):
        name = _find(workspace, name).name
        marked = [
            batch for batch in batches(workspace.raw) if any(_undone_by(one) == name for one in read_records(batch))
        ]
        if not marked:
            raise IngestError(f"batch {name} is not undone; `simclr ingest` takes what is new")
        for batch in marked:
            _rewrite(batch, lambda one: _redone(one) if _undone_by(one) == name else one, tars(batch))
        _track(workspace)
    return name


def complete(raw: Path) -> None:
    """Remove what a killed process left among the batches, and complete an undo that it had begun."""
    for path in raw.glob(".*.partial-*"):
        recover(raw / path.name[1:].partition(".partial-")[0])
    there = {batch.name: batch for batch in batches(raw)}
    marks = {name for batch in there.values() for one in read_records(batch, UNDONE) if (name := _undone_by(one))}
    for name in marks & there.keys():
        _take_back(raw, there[name])


def _find(workspace: Workspace, name: str) -> Path:
    """The batch of this name; of a number, the only one that has it."""
    complete(workspace.raw)
    there = {batch.name: batch for batch in batches(workspace.raw)}
    same = [name] if name in there else [one for one in there if name.isdecimal() and int(one) == int(name)]
    if len(same) != 1:
        known = ", ".join([*there][-5:]) or "none; `dvc checkout data/raw.dvc` restores what is tracked"
        raise IngestError(f"{name!r} is not a batch of {workspace.raw}; the newest are: {known}")
    return there[same[0]]


def _take_back(raw: Path, batch: Path) -> tuple[int, int]:
    """Returns how many contents lose their bytes, and of how many others something is taken back."""
    gone = {sha256 for path in tars(batch) for sha256 in list_tar(path)}
    said = {one["sha256"] for one in read_records(batch) if one["occurrences"]}

    def mark(one: Record) -> Record:
        return {
            "sha256": one["sha256"],
            "occurrences": [],
            UNDONE: {"batch": batch.name, "occurrences": one["occurrences"]},
        }

    for other in batches(raw):
        if other != batch and any(_is_of(one, gone) for one in read_records(other)):
            _rewrite(other, lambda one: mark(one) if _is_of(one, gone) else one, tars(other))
            failpoint("undo.other")
    if gone or said:
        _rewrite(batch, lambda one: mark(one) if one["occurrences"] else one, [])
        failpoint("undo.batch")
    return len(gone), len(said - gone)


def _is_of(record: Record, contents: Collection[str]) -> bool:
    return bool(record["occurrences"]) and record["sha256"] in contents


def _undone_by(record: Record) -> str | None:
    mark = record.get(UNDONE)
    return mark["batch"] if mark and not mark.get(REDONE) else None


def _redone(record: Record) -> Record:
    """The content may come in again. What was said of it stays: what was held out is not trained on in silence."""
    return record | {UNDONE: record[UNDONE] | {REDONE: True}}


def _rewrite(batch: Path, change: Callable[[Record], Record], kept: Collection[Path]) -> None:
    """Replace a batch, in one step, by one with other records and the same bytes, of those ``kept``."""

    def lines() -> Iterator[str]:
        for one in read_records(batch):
            yield json.dumps({key: value for key, value in change(one).items() if value is not None}) + "\n"

    with publish(batch, replace=True) as folder:
        for tar in kept:
            cache.link(tar, folder / tar.name)
        with (folder / OCCURRENCES).open("w", encoding="utf-8") as file:
            file.writelines(lines())


def _track(workspace: Workspace) -> None:
    """Track data/raw as it is now; what is known of the sources' files stays true."""
    tracked = workspace.raw.with_suffix(".dvc").exists()
    before = read_tracked(workspace.root, RAW).md5 if tracked else None
    add(workspace.root, workspace.raw)
    failpoint("undo.tracked")
    stamps = Stamps(workspace.scratch / STAMPS)
    if stamps.raw == before is not None:
        stamps.record({}, read_tracked(workspace.root, RAW).md5, ())


class Undone(NamedTuple):
    """The batch with which a content was undone, what its sources said, and whether it may come in again."""

    batch: str
    occurrences: tuple[Occurrence, ...]
    redone: bool = False

    @property
    def held_out(self) -> bool:
        last = {(one.source, one.path): one.split for one in self.occurrences}
        return "test" in last.values()

    def holds(self, source: str, split: str, label: str | None, group: str | None = None) -> bool:
        """Whether it stays out, because the source says again what was undone."""
        said = {(one.split, one.label, one.group) for one in self.occurrences if one.source in (source, None)}
        return not self.redone and (split, label, group) in said

    def of(self, source: str, path: str) -> Occurrence | None:
        """What the source said last of this file."""
        said = [one for one in self.occurrences if one.path == path and one.source in (source, None)]
        return said[-1] if said and said[-1].split != REPLACED else None


def read_undone(batches: Sequence[Path]) -> dict[str, Undone]:
    """SHA-256 → what was undone, of contents of which no later batch says something."""
    undone: dict[str, Undone] = {}
    for batch in batches if any(True for one in batches for _ in read_records(one, UNDONE)) else ():
        for record in read_records(batch):
            if record["occurrences"]:
                undone.pop(record["sha256"], None)
            elif mark := record.get(UNDONE):
                said = tuple(Occurrence(**seen) for seen in mark["occurrences"])
                before = undone.get(record["sha256"])
                said = (*before.occurrences, *said) if before else said
                undone[record["sha256"]] = Undone(mark["batch"], said, mark.get(REDONE, False))
    return undone


class KeptOut(NamedTuple):
    """Contents that were purged, or undone with their batch."""

    purged: Collection[str]
    undone: Mapping[str, Undone]

    def __contains__(self, sha256: object) -> bool:
        return sha256 in self.purged or sha256 in self.undone

    def reason(self, sha256: str, source: Source, place: Place) -> str | None:
        """Why a file with these bytes does not come in again; None if it does."""
        if sha256 in self.purged:
            return "was purged; remove it from there"
        undone = self.undone.get(sha256)
        if undone and undone.holds(source.identity, *place):
            return f"undone with batch {undone.batch}; `simclr ingest --redo {undone.batch}` takes it again"
        return None

    def held_out(self, sha256: str) -> bool:
        """Whether an undone batch had it in the test set."""
        return sha256 in self.undone and self.undone[sha256].held_out

    def recall(self, sha256: str, source: Source, path: str, place: Place, reading: Reading) -> Place:
        """The place of a file, with what labels.csv said before its batch was undone, and does not take back now."""
        undone = self.undone.get(sha256)
        before = undone.of(source.identity, path) if undone else None
        if before and before.split == "test" and path in reading.unsplit:
            return place._replace(split="test")
        if before and place == UNCLAIMED and path not in reading.named:
            return Place(before.split, before.label, before.group)
        return place
