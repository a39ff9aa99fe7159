"""Ingest: copy what is new in a folder, a glob or a bucket into a frozen raw batch, and leave the source as it is.

    simclr ingest inbox photos/2026-11 's3://bucket/camera-7/*.jpg'

A file is known by the SHA-256 of its bytes, so renamed or copied files add nothing; one that has not changed since an
earlier ingest (``pipeline.ingest.stamps``) is not read again. In a source, ``labeled/<class>/``
and ``test/<class>/`` carry labels, and so does ``labels.csv`` (columns path, label and optionally split); everything
else is unlabelled training data. Whether a file is an image at all is for the validate stage to say.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path, PurePosixPath

from deploy.artifact import publish
from deploy.failpoint import failpoint
from pipeline.dvc.client import add, exclusive
from pipeline.dvc.project import RAW, read_tracked
from pipeline.errors import IngestError
from pipeline.ingest.raw import OCCURRENCES, Occurrence, batches, read_occurrences
from pipeline.ingest.sources import LABELS, Source, list_source
from pipeline.ingest.stamps import STAMPS, Key, Stamps
from pipeline.params import read
from pipeline.workspace import Workspace
from simclr_core.data.shards import portions, write_tar


@dataclass(frozen=True)
class IngestResult:
    """What one ingest did; ``batch`` is None when nothing was new."""

    batch: str | None
    new_images: int
    new_labels: int
    known: int
    unsettled: int
    skipped: tuple[str, ...]

    def __str__(self) -> str:
        parts = [f"{self.new_images} new images in batch {self.batch}" if self.batch else "nothing new"]
        if self.new_labels:
            parts.append(f"{self.new_labels} known images seen with another label or split")
        if self.known:
            parts.append(f"{self.known} files already ingested")
        if self.unsettled:
            parts.append(f"{self.unsettled} changed a moment ago and left for the next run")
        if self.skipped:
            parts.append(f"{len(self.skipped)} passed over ({'; '.join(self.skipped[:3])})")
        return ", ".join(parts)


@dataclass
class Content:
    """Bytes seen in this ingest: where to read them, and every place they were seen in."""

    source: Source
    path: str
    occurrences: list[Occurrence]


def ingest(workspace: Workspace, sources: Sequence[str] = ("inbox",)) -> IngestResult:
    """Add every new file of the sources as one raw batch and track it with DVC.

    Args:
        sources: folders, globs or fsspec URLs; a relative one is taken from the workspace.

    Raises:
        IngestError: a source does not exist, all of them are empty, ``labels.csv`` cannot be understood, or a label is
            none of ``ingest.classes``.
    """
    config = read(workspace).ingest
    workspace.inbox.mkdir(exist_ok=True)  # Git does not carry it into a clone of a workspace
    with exclusive(workspace.root, "ingest"):
        stamps = Stamps(workspace.scratch / STAMPS)
        listed = [list_source(workspace.root, source, config.settle_seconds) for source in sources]
        earlier = batches(workspace.raw)
        if not earlier and workspace.raw.with_suffix(".dvc").exists():
            raise IngestError(
                f"{workspace.raw}: its earlier batches are missing, only data/raw.dvc is here; fetch them first, "
                "with `dvc checkout data/raw.dvc` or `dvc pull data/raw.dvc`"
            )
        if not earlier and not any(source.files for source in listed):
            unsettled = sum(len(source.unsettled) for source in listed)
            why = f"{unsettled} files changed less than {config.settle_seconds:g} s ago" if unsettled else "no files"
            raise IngestError(
                f"{', '.join(sources)}: nothing to ingest, {why}; put images into "
                f"{workspace.inbox / 'unlabeled'} or name another source: `simclr ingest SRC`"
            )
        before = _seen(earlier)
        new, known, stamped = _find_new(listed, before, stamps)
        if config.classes is not None:
            _check_labels(new, config.classes)
        batch = workspace.raw / f"{len(earlier) + 1:04d}" if new else None
        if batch is not None:
            _write(batch, new, before, config.shard_megabytes * 1_000_000)
        failpoint("ingest.track")
        add(workspace.root, workspace.raw)
        failpoint("ingest.stamp")
        stamps.record(stamped, read_tracked(workspace.root, RAW).md5)  # last: what is stamped has been ingested
    fresh = [sha256 for sha256 in new if sha256 not in before]
    return IngestResult(
        batch=batch.name if batch else None,
        new_images=len(fresh),
        new_labels=len(new) - len(fresh),
        known=known,
        unsettled=sum(len(source.unsettled) for source in listed),
        skipped=tuple(reason for source in listed for reason in source.skipped),
    )


def _seen(earlier: Sequence[Path]) -> dict[str, set[tuple[str, str | None]]]:
    """SHA-256 → the splits and labels it was ever seen with."""
    seen: dict[str, set[tuple[str, str | None]]] = {}
    for batch in earlier:
        for sha256, occurrences in read_occurrences(batch).items():
            seen.setdefault(sha256, set()).update((one.split, one.label) for one in occurrences)
    return seen


def _find_new(
    sources: Sequence[Source], seen: dict[str, set[tuple[str, str | None]]], stamps: Stamps
) -> tuple[dict[str, Content], int, dict[Key, tuple[str, str]]]:
    """What is new, how many files are not, and the stamps of all whose next change will show."""
    new: dict[str, Content] = {}
    known = 0
    stamped: dict[Key, tuple[str, str]] = {}
    for source in sources:
        labels = source.read_labels()
        if source.labels is not None and source.settled(source.labels):
            stamped[source.base, LABELS] = (source.labels.stamp, "")
        for path, file in source.files.items():
            sha256 = stamps.find(source.base, path, file.stamp) if file.certain else None
            if sha256 not in seen:  # also when the batches are not those that the stamps were taken with
                try:
                    sha256 = hashlib.sha256(source.read(path)).hexdigest()
                except IngestError as error:  # only this file is affected
                    source.skipped.append(str(error))
                    continue
            if source.settled(file):
                stamped[source.base, path] = (file.stamp, sha256)
            split, label = labels.get(path) or place(path)
            if (split, label) in seen.get(sha256, ()):
                known += 1
                continue
            content = new.setdefault(sha256, Content(source, path, []))
            content.occurrences.append(Occurrence(path, split, label))
    return new, known, stamped


def _check_labels(new: dict[str, Content], classes: Sequence[str]) -> None:
    """Raise IngestError if a label is not listed: it is mistyped, or ingest.classes lacks it."""
    unknown: dict[str, list[str]] = {}
    for occurrence in (one for content in new.values() for one in content.occurrences):
        if occurrence.label is not None and occurrence.label not in classes:
            unknown.setdefault(occurrence.label, []).append(occurrence.path)
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


def place(path: str) -> tuple[str, str | None]:
    """The (split, label) that the folders of a file say: ``labeled/cat/a.jpg`` → train, cat."""
    match PurePosixPath(path).parts:
        case ("labeled", label, _, *_):
            return "train", label
        case ("test", label, _, *_):
            return "test", label
    return "train", None


def _write(batch: Path, new: dict[str, Content], seen: dict[str, set[tuple[str, str | None]]], max_bytes: int) -> None:
    def members() -> Iterator[tuple[str, bytes]]:
        for sha256, content in new.items():
            if sha256 in seen:
                continue
            data = content.source.read(content.path)
            if hashlib.sha256(data).hexdigest() != sha256:
                raise IngestError(f"{content.path}: changed while it was read; run again when its writer is done")
            yield f"{sha256}.{_extension(content.path)}", data

    with publish(batch) as folder:
        for portion in portions(members(), max_bytes, size=lambda member: len(member[1])):
            write_tar(folder, portion)
            failpoint("ingest.tar")
        lines = [
            json.dumps({"sha256": sha256, "occurrences": [asdict(one) for one in content.occurrences]}) + "\n"
            for sha256, content in new.items()
        ]
        (folder / OCCURRENCES).write_text("".join(lines), encoding="utf-8")


def _extension(path: str) -> str:
    """What the file calls itself, made safe for a tar member; nothing later trusts it."""
    extension = PurePosixPath(path).suffix[1:].lower()
    return extension if re.fullmatch("[a-z0-9]{1,8}", extension) else "bin"
