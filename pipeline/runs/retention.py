"""Which of Dagster's runs are old, and how to remove them: each has a database of events and a folder of logs."""

import shutil
from collections.abc import Iterable
from pathlib import Path

import dagster as dg

from pipeline.runs.dagster_internals import forget_check_results


def outdated_runs(instance: dg.DagsterInstance, keep: int) -> list[str]:
    """The finished runs besides the newest ``keep``, but for those that an asset has its present result from."""
    events = (instance.get_latest_materialization_event(key) for key in instance.all_asset_keys())
    shown = {event.run_id for event in events if event}
    older = instance.get_runs()[keep:]
    return [run.run_id for run in older if run.is_finished and run.run_id not in shown]


def records_of(root: Path, run_id: str) -> list[Path]:
    """Files and folders of a run, where Dagster keeps its records in SQLite."""
    databases = sorted((root / "history" / "runs").glob(f"{run_id}.db*"))
    folder = root / "storage" / run_id
    return [*databases, *([folder] if folder.is_dir() else [])]


def forget_runs(instance: dg.DagsterInstance, root: Path, runs: Iterable[str]) -> None:
    """Remove everything that Dagster knows of these runs, but for the latest result of each check."""
    for run_id in runs:
        instance.delete_run(run_id)
        for path in records_of(root, run_id):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    forget_check_results(instance)
