"""How much disk a workspace takes, and what a collection has freed."""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from deploy.plural import counted
from pipeline.dvc import cache
from pipeline.workspace import Workspace

GIGABYTE = 1e9


@dataclass(frozen=True)
class Collected:
    """What was freed, or would be. ``remote_files`` are objects of the DVC remote; their size is not known."""

    files: int
    bytes: int
    remote_files: int = 0
    retired: tuple[str, ...] = ()
    records: int = 0
    dry_run: bool = False
    note: str = ""

    def __str__(self) -> str:
        verb = "would free at least" if self.dry_run else "freed"
        parts = [f"{verb} {size(self.bytes)} in {counted(self.files, 'file')}"]
        if self.remote_files:
            parts.append(f"{counted(self.remote_files, 'object')} of the DVC remote")
        if self.retired:
            parts.append(f"the data of {counted(len(self.retired), 'run')} never released")
        if self.records:
            parts.append(f"Dagster's records of {counted(self.records, 'run')}")
        return ", ".join(parts) + (f"; {self.note}" if self.note else "")


def usage(workspace: Workspace) -> dict[str, int]:
    """Bytes of each part of the workspace; what is linked into the cache counts in both."""
    root = workspace.root
    parts = {
        "cache": [cache_folder(workspace)],
        "raw": [workspace.raw],
        "registry": [root / "registry"],
        "scratch": [workspace.scratch],
        "history": [root / name for name in ("history", "storage", "schedules", "logs")],
    }
    return {name: sum(bytes_of(folder) for folder in folders) for name, folders in parts.items()}


def measure_occupied(workspace: Workspace) -> int:
    """Bytes of all files of the workspace but the inbox; one that has several names counts once."""
    sizes: dict[tuple[int, int], int] = {}
    for file in files_below(workspace.root, workspace.inbox):
        with suppress(FileNotFoundError):
            status = file.lstat()
            sizes[status.st_dev, status.st_ino] = status.st_size
    return sum(sizes.values())


def raw_is_linked(workspace: Workspace) -> bool:
    """Whether the raw batches take no more disk than the cache: their files are those of the cache."""
    names = []
    for file in files_below(workspace.raw):
        with suppress(FileNotFoundError):  # another process has removed it meanwhile
            names.append(file.lstat().st_nlink)
    return bool(names) and min(names) > 1


def cache_folder(workspace: Workspace) -> Path:
    """Where DVC keeps its objects and the records of runs."""
    with cache.opened(workspace.root) as objects:
        return objects.folder.parents[1]


def size(count: float) -> str:
    """Bytes for a person: ``1.5 GB``, and ``2.8 MB less`` for a negative number, of what a run has freed."""
    if count < 0:
        return f"{size(-count)} less"
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            break
        count, unit = count / 1000, "GB" if unit == "MB" else {"bytes": "kB", "kB": "MB"}[unit]
    return counted(round(count), "byte") if unit == "bytes" else f"{count:.1f} {unit}"


def bytes_of(path: Path) -> int:
    """Of a file, or of all files below a folder."""
    total = 0
    for file in files_below(path) if path.is_dir() else [path]:
        with suppress(FileNotFoundError):  # another process has removed it meanwhile
            total += file.lstat().st_size
    return total


def files_below(folder: Path, without: Path | None = None) -> Iterator[Path]:
    """All files in a folder and below, but not those in the folder ``without``."""
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if without is None or Path(parent) / name != without]
        yield from (Path(parent) / name for name in names)
