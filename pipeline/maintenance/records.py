"""What grows with every run and no version needs: abandoned checkpoints, logs, TensorBoard, Dagster's records."""

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

from deploy.lock import acquire
from pipeline.config import StorageConfig
from pipeline.errors import ServiceError
from pipeline.maintenance.disk import Collected, bytes_of, files_below
from pipeline.maintenance.integrity import DAMAGED
from pipeline.params import read
from pipeline.runs.output import list_outdated
from pipeline.workspace import Workspace
from simclr_core.pretraining.unfinished import find_unfinished, run_folders

ABANDONED_DAYS = 14  # resume checkpoints of a configuration that has not been trained since
LOG_DAYS = 90
SEARCHES, FINISHED = "tune", "finished"  # folder of .simclr with one for each search, and a note in it
RECORDS = "*-*-*-*-*.db"  # events of a run, which has a UUID


def tidy(workspace: Workspace, config: StorageConfig, dry_run: bool = False) -> Collected:
    """Remove records that grow with every run and that no version needs; cheap enough for every run."""
    files = freed = 0
    boards = _old_boards(workspace, config.keep_tensorboards)
    for path in chain(_abandoned_runs(workspace), _old_searches(workspace), old_logs(workspace), boards):
        files, freed = files + 1, freed + bytes_of(path)
        if not dry_run:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    records, size_of_records, note = _remove_records(workspace.root, config.keep_run_records, dry_run)
    return Collected(files, freed + size_of_records, records=records, note=note)


def _abandoned_runs(workspace: Workspace) -> Iterator[Path]:
    """Not the training that the next run continues: it may wait for its person, or the clock may have been set.

    Of each run directory its lock too, as of those that were removed when their training ended.
    """
    folder = run_folders(workspace.root)
    waiting = find_unfinished(workspace.root, read(workspace).pretrain)
    for run in sorted({*folder.glob("*/"), *(lock.with_suffix("") for lock in folder.glob("*.lock"))}):
        lock, here = run.with_suffix(".lock"), run.is_dir()
        left = _untouched(run if here else lock, ABANDONED_DAYS)
        if left and not (waiting and run.with_suffix("") == waiting.folder):
            with _unlocked(lock) as free:
                if free:  # removed by the caller, while the lock is held
                    yield from [run, lock] if here else [lock]


@contextmanager
def _unlocked(path: Path) -> Iterator[bool]:
    """Whether no training holds this lock (``simclr_core.pretraining.checkpoint.locked``); the block holds it then."""
    with path.open("a", encoding="utf-8") as file:
        yield acquire(file)


def old_logs(workspace: Workspace) -> Sequence[Path]:
    """What was printed, and what was set aside because it was damaged."""
    folders = [workspace.scratch / "logs", workspace.scratch / "events"]
    captured = workspace.root.glob("storage/*/compute_logs/*")  # what Dagster has caught of each step
    aside = [*workspace.scratch.glob("*.damaged-*"), *files_below(workspace.scratch / DAMAGED)]
    of_runs = list_outdated(workspace.scratch / "logs" / "runs")
    return of_runs + [
        file
        for file in [*(file for folder in folders for file in files_below(folder)), *captured, *aside]
        if file not in of_runs and _untouched(file, LOG_DAYS)
    ]


def _old_searches(workspace: Workspace) -> Iterator[Path]:
    """Those of `simclr tune` that have ended, or have not changed for long. One at work would hold the workspace."""
    for folder in sorted((workspace.scratch / SEARCHES).glob("*/")):
        if (folder / FINISHED).exists() or _untouched(folder, ABANDONED_DAYS):
            yield folder


def _old_boards(workspace: Workspace, keep: int) -> list[Path]:
    """All but the trainings that wrote to TensorBoard last."""
    folders = [folder for folder in (workspace.scratch / "tensorboard").glob("*/") if folder.is_dir()]
    return sorted(folders, key=_changed, reverse=True)[keep:]


def _remove_records(root: Path, keep: int, dry_run: bool) -> tuple[int, int, str]:
    """Dagster's records of old runs: how many, their bytes, and why none could be removed."""
    if "storage:" not in _text(root / "dagster.yaml") and len([*(root / "history" / "runs").glob(RECORDS)]) <= keep:
        return 0, 0, ""  # none is old, and Dagster takes two seconds to load
    from pipeline.runs.instance import opened
    from pipeline.runs.retention import forget_runs, outdated_runs, records_of

    try:
        with opened(root) as instance:
            runs = outdated_runs(instance, keep)
            taken = sum(bytes_of(path) for run in runs for path in records_of(root, run))
            if runs and not dry_run:
                forget_runs(instance, root, runs)
    except ServiceError as error:
        return 0, 0, f"the records of old runs stay: {error}"
    return len(runs), taken, ""


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _untouched(path: Path, days: float) -> bool:
    return _changed(path) < time.time() - days * 24 * 3600


def _changed(path: Path) -> float:
    """When anything in it changed last, in seconds since the epoch."""
    return max((file.lstat().st_mtime for file in [path, *path.rglob("*")]), default=0.0)
