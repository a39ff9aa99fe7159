"""What a person decides in the explorer, as rows of the tables that files and commands change too.

    label      a row of ``inbox/labels.csv`` for each image: its class, with who, when and why
    test       the same, with the split test; training images that look nearly the same are warned of
    refuse     a row of ``overrides.csv``: refused whatever the rules say, as by `simclr quarantine deny`
    undo       the last decision of the same person, taken back

All of a decision is written, or nothing. It takes effect with the next run.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from threading import Lock
from typing import Any

import polars as pl

from deploy.explore.collection import Action
from deploy.folders.files import is_labels
from deploy.plural import counted
from pipeline.errors import IngestError, OverridesError
from pipeline.explore.labels_table import NAME, Cells, change_file, edit
from pipeline.explore.shown import Shown
from pipeline.ingest.labels.columns import names_files
from pipeline.ingest.labels.labels_csv import columns_of, read_rows
from pipeline.ingest.labels.matching import find_rows
from pipeline.ingest.labels.names import clean
from pipeline.ingest.raw import batches
from pipeline.params import read
from pipeline.validation.quarantine import NEXT_RUN
from pipeline.validation.verdict import overrides
from pipeline.validation.verdict.overrides import Override
from pipeline.workspace import Workspace

MOST_IMAGES = 20_000  # of one decision


@dataclass(frozen=True)
class Labeled:
    """Rows of labels.csv: what each path had ``before`` and has ``after``; the ``rows`` of the images, and the newest
    batch at that time."""

    before: Mapping[str, Cells | None]
    after: Mapping[str, Cells | None]
    rows: Sequence[Mapping[str, Any]]
    batch: str | None


@dataclass(frozen=True)
class Refused:
    """Rows of overrides.csv that were added, and those in whose place they are."""

    added: Sequence[Override]
    before: Sequence[Override]


class Decisions:
    """The actions of the page; safe to ask from many threads."""

    def __init__(self, workspace: Workspace, shown: Shown) -> None:
        self._workspace, self._shown = workspace, shown
        self._table = workspace.inbox / NAME
        self._done: list[tuple[str, Labeled | Refused]] = []
        self._turn = Lock()

    @property
    def actions(self) -> dict[str, Action]:
        return {"label": self.label, "test": self.test, "refuse": self.refuse, "undo": self.undo}

    def label(self, given: Mapping[str, Any]) -> dict[str, Any]:
        rows, who, why = self._images(given), _who(given), _text(given, "why")
        name = clean(_text(given, "label"))
        if name is None:
            raise IngestError("give the class of these images")
        self._require_class(name)
        self._write(rows, [{"label": name}] * len(rows), who, why)
        new = "" if name in set(self._shown.table["label"]) else ", a new class"
        return {"done": f"{counted(len(rows), 'image')} labeled {name}{new} in inbox/{NAME}; it {NEXT_RUN}"}

    def test(self, given: Mapping[str, Any]) -> dict[str, Any]:
        rows, who, why = self._images(given), _who(given), _text(given, "why")
        name = clean(_text(given, "label"))
        bare = [row for row in rows if row["label"] is None]
        if bare and name is None:
            raise IngestError(
                f"{counted(len(bare), 'image')} of these without a class, such as {bare[0]['path']!r}; a test image "
                "needs one: give it as Class, or label them first"
            )
        if name is not None and bare:
            self._require_class(name)
        if not given.get("confirmed") and (warnings := self._leaks(rows)):
            return {"warnings": warnings}
        self._write(rows, [{"label": str(row["label"] or name), "split": "test"} for row in rows], who, why)
        return {"done": f"{counted(len(rows), 'image')} held out for testing in inbox/{NAME}; it {NEXT_RUN}"}

    def refuse(self, given: Mapping[str, Any]) -> dict[str, Any]:
        rows, who, why = self._images(given), _who(given), _text(given, "why")
        if not why:
            raise OverridesError("say why these images are refused")
        hashes = dict.fromkeys(row["sha256"] for row in rows)
        added = [Override(sha256, "deny", who, why, date.today()) for sha256 in hashes]
        with self._turn:
            path = self._workspace.overrides
            before = [one for one in overrides.read(path) if one.sha256 in hashes]
            overrides.decide(path, added)
            self._done.append((who, Refused(added, before)))
        return {"done": f"{counted(len(added), 'content')} refused in {path.name}; commit it. It {NEXT_RUN}"}

    def undo(self, given: Mapping[str, Any]) -> dict[str, Any]:
        who = _who(given)
        with self._turn:
            last = next((n for n in reversed(range(len(self._done))) if self._done[n][0] == who), None)
            if last is None:
                raise IngestError(f"{who} has decided nothing since this explorer was started")
            done = self._done[last][1]
            if isinstance(done, Refused):
                overrides.take_back(self._workspace.overrides, done.added, done.before)
                said = f"{counted(len(done.added), 'content')} not refused any more"
            else:
                self._take_back(done)
                said = f"{counted(len(done.after), 'image')} in inbox/{NAME} as before"
            del self._done[last]
        return {"done": said}

    def _write(self, rows: Sequence[Mapping[str, Any]], cells: Sequence[dict[str, str]], who: str, why: str) -> None:
        self._require_files(rows)
        noted = {"who": who, "when": datetime.now().astimezone().isoformat(timespec="seconds"), "why": why}
        wanted = {row["path"]: {**one, **noted} for row, one in zip(rows, cells, strict=True)}
        found: list[Labeled] = []

        def change(data: bytes | None) -> bytes:
            edited = edit(f"inbox/{NAME}", data, wanted, self._workspace.inbox.as_uri())
            found[:] = [Labeled(edited.before, edited.after, rows, self._newest())]
            return edited.data

        with self._turn:
            change_file(self._table, change)
            self._done.append((who, found[0]))

    def _take_back(self, done: Labeled) -> None:
        """An ingest that came between has taken the rows; what it read is not forgotten when a row is gone, so the row
        says what was before."""
        wanted: dict[str, Cells | None] = dict(done.before)
        if self._newest() != done.batch:
            said = {row["path"]: {"label": row["label"] or "", "split": row["split"]} for row in done.rows}
            wanted = {path: said[path] if cells is None else cells for path, cells in wanted.items()}

        def change(data: bytes | None) -> bytes:
            return edit(f"inbox/{NAME}", data, wanted, self._workspace.inbox.as_uri(), done.after).data

        change_file(self._table, change)

    def _images(self, given: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The selected images; of each content the first file."""
        rows = given.get("rows")
        if not isinstance(rows, list) or not rows or not all(type(row) is int and row >= 0 for row in rows):
            raise IngestError("select images first")
        if len(rows) > MOST_IMAGES:
            raise IngestError(f"{len(rows):,} images are selected; decide about at most {MOST_IMAGES:,} at a time")
        return self._shown.details(rows)

    def _require_class(self, name: str) -> None:
        allowed = read(self._workspace).ingest.classes
        if allowed is not None and name not in allowed:
            raise IngestError(f"{name!r} is not a class; ingest.classes in params.yaml allows: {', '.join(allowed)}")

    def _require_files(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Rows of inbox/labels.csv name files of the inbox; any other row would be lost without a word."""
        inbox = self._workspace.inbox
        lost = [row["path"] for row in rows if not _holds(inbox / row["path"], row["sha256"])]
        if lost:
            raise IngestError(
                f"{counted(len(lost), 'image')} not in the inbox any more, or with other bytes, such as {lost[0]!r}; "
                "label it in the labels.csv of its source, or put it back"
            )
        names = {row["path"] for row in rows}
        for table in _tables(inbox):
            relative, data = table.relative_to(inbox).as_posix(), table.read_bytes()
            if table != self._table and names_files(columns_of(data)):
                named, _ = find_rows(relative, read_rows(relative, data), relative, inbox.as_uri(), names)
                if named:
                    raise IngestError(f"inbox/{relative} names {min(named)!r}; correct it there, or remove its row")

    def _leaks(self, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        moved = {row["sha256"] for row in rows}
        groups = [row["near_group"] for row in rows if row["near_group"] is not None]
        table = self._shown.table
        left = table.filter(
            pl.col("near_group").is_in(groups) & ~pl.col("sha256").is_in(list(moved)) & (pl.col("split") == "train")
        )["sha256"].n_unique()
        warnings = []
        if left:
            warnings.append(
                f"{counted(left, 'training image')} nearly the same as one of these: validation will quarantine them, "
                "because they would leak the answers; move them, too, if they are to be used."
            )
        if any(row["split"] == "train" and row["state"] != "quarantined" for row in rows):
            warnings.append(
                "Every encoder so far was pretrained on these images: what it, and the release, reach on them is too "
                "good until both are trained without them."
            )
        return warnings

    def _newest(self) -> str | None:
        found = batches(self._workspace.raw)
        return found[-1].name if found else None


def _tables(inbox: Path) -> Iterator[Path]:
    for folder, _, files in os.walk(inbox):
        yield from (Path(folder, file) for file in files if is_labels(file))


def _holds(path: Path, sha256: str) -> bool:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == sha256
    except (OSError, ValueError):
        return False


def _who(given: Mapping[str, Any]) -> str:
    who = _text(given, "who")
    if not who:
        raise IngestError("say who decides")
    return who


def _text(given: Mapping[str, Any], name: str) -> str:
    """On one line, and short."""
    return " ".join(str(given.get(name) or "").split())[:500]
