"""Where images come from: a folder, a glob, or any fsspec URL, listed without following a link or opening a pipe."""

import csv
import io
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
from fsspec.core import url_to_fs

from pipeline.errors import IngestError

LABELS = "labels.csv"
NOT_IMAGES = {LABELS, "Thumbs.db", "desktop.ini"}  # besides hidden files, which every desktop leaves in folders
SPLITS = ("train", "test")


@dataclass
class Source:
    """The files of one source, relative path → full path; ``skipped`` says what was passed over and why."""

    name: str
    filesystem: fsspec.AbstractFileSystem
    files: dict[str, str] = field(default_factory=dict)
    unsettled: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    labels: str | None = None

    def read(self, path: str) -> bytes:
        try:
            data: bytes = self.filesystem.cat_file(self.files[path])
        except OSError as error:
            raise IngestError(f"{self.name}: cannot read {path!r} ({error}); mend it or take it out") from None
        return data

    def read_labels(self) -> dict[str, tuple[str, str | None]]:
        """``labels.csv`` as relative path → (split, label); an empty label means unlabelled.

        Raises:
            IngestError: it lacks the columns, has an unknown split or a row twice, or names no file of this source.
        """
        if self.labels is None:
            return {}
        where = f"{self.name}/{LABELS}"
        text = self.filesystem.cat_file(self.labels).decode("utf-8-sig", errors="replace")
        rows = csv.DictReader(io.StringIO(text))
        if not {"path", "label"} <= set(rows.fieldnames or ()):
            raise IngestError(f"{where}: columns are {rows.fieldnames}; must be path,label and, if wanted, split")
        labels: dict[str, tuple[str, str | None]] = {}
        for row in rows:
            path, split = row["path"], row.get("split") or "train"
            if split not in SPLITS:
                raise IngestError(f"{where}: line {rows.line_num} has split {split!r}; allowed: {', '.join(SPLITS)}")
            if path in labels:
                raise IngestError(f"{where}: line {rows.line_num} names {path!r} again; give each file one row")
            labels[path] = (split, row["label"] or None)
        if labels and not labels.keys() & (self.files.keys() | set(self.unsettled)):
            raise IngestError(
                f"{where}: none of its {len(labels)} paths is a file of this source, such as {next(iter(labels))!r}; "
                "paths are relative to the folder of labels.csv"
            )
        return labels


def list_source(root: Path, name: str, settle_seconds: float) -> Source:
    """List a folder, glob or URL; a relative one is taken from ``root``.

    Files changed in the last ``settle_seconds`` are still being written and listed as ``unsettled``.

    Raises:
        IngestError: it does not exist or cannot be read.
    """
    local = "://" not in name
    try:
        filesystem, path = url_to_fs(str(root / Path(name).expanduser()) if local else name)
        glob = any(sign in path for sign in "*?[")
        base = path.partition("*")[0].partition("?")[0].partition("[")[0].rpartition("/")[0] if glob else path
        entries = _glob(filesystem, path) if glob else _walk_local(base) if local else _walk(filesystem, path)
        return _sort_out(Source(name, filesystem), base, entries, settle_seconds)
    except FileNotFoundError:
        raise IngestError(f"{name}: does not exist; give a folder, a glob in quotes, or an fsspec URL") from None
    except PermissionError as error:
        raise IngestError(
            f"{name}: no permission to read {error.filename or name}; allow it or run as another user"
        ) from None
    except (ImportError, ValueError) as error:
        raise IngestError(f"{name}: cannot be opened ({error})") from None


Entry = tuple[str, float, str | None]  # full path, seconds since the last change, why it is passed over


def _sort_out(source: Source, base: str, entries: Iterator[Entry], settle_seconds: float) -> Source:
    for path, age, fault in sorted(entries):
        relative = PurePosixPath(path).relative_to(base).as_posix()
        if fault:
            source.skipped.append(f"{relative!r} {fault}")
        elif PurePosixPath(relative) == PurePosixPath(LABELS):
            source.labels = path
        elif any(part.startswith(".") for part in PurePosixPath(relative).parts) or Path(relative).name in NOT_IMAGES:
            continue
        elif age < settle_seconds:
            source.unsettled.append(relative)
        else:
            source.files[relative] = path
    return source


def _walk_local(folder: str) -> Iterator[Entry]:
    """Regular files below a folder: links, pipes, sockets and devices are named, never opened."""
    with os.scandir(folder) as entries:
        for entry in entries:
            status = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                yield from _walk_local(entry.path)
            elif not _is_text(entry.path):
                yield os.fsencode(entry.path).decode("utf-8", "backslashreplace"), 0, "has a name that is not UTF-8"
            elif stat.S_ISREG(status.st_mode):
                yield entry.path, time.time() - status.st_mtime, None
            else:
                yield entry.path, 0, "is a link" if stat.S_ISLNK(status.st_mode) else "is not a regular file"


def _is_text(path: str) -> bool:
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _walk(filesystem: fsspec.AbstractFileSystem, path: str) -> Iterator[Entry]:
    if not filesystem.exists(path):
        raise FileNotFoundError(path)
    for name, entry in filesystem.find(path, detail=True).items():
        yield name, _age(entry), None


def _glob(filesystem: fsspec.AbstractFileSystem, pattern: str) -> Iterator[Entry]:
    for name, entry in filesystem.glob(pattern, detail=True).items():
        if entry["type"] == "directory":
            continue
        yield name, _age(entry), "is a link" if entry.get("islink") else None


def _age(entry: dict[str, Any]) -> float:
    """Seconds since the last change, infinite where a file system does not say: a stored object is complete."""
    changed = entry.get("mtime") or entry.get("LastModified") or entry.get("created")
    if isinstance(changed, datetime):
        changed = changed.timestamp()
    return time.time() - changed if changed else float("inf")
