"""Dagster's records are opened many times in each process."""

import multiprocessing
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from alembic.script import Script

from pipeline.runs.instance import opened
from pipeline.workspace import Workspace


@pytest.mark.seconds
def test_the_migrations_of_dagster_are_imported_once_in_a_process(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(workspace.root) as instance:
        first = instance.get_runs()
    monkeypatch.setattr(Script, "_from_path", lambda *_: pytest.fail("a migration was imported again"))
    with opened(workspace.root) as instance:
        assert instance.get_runs() == first == []


def _open_together(root: Path, barrier: Barrier) -> None:
    barrier.wait()
    with opened(root) as instance:
        assert instance.get_runs() == []


@pytest.mark.seconds
def test_several_processes_may_be_the_first_in_a_workspace(workspace: Workspace) -> None:
    """Without the lock every second attempt ends with "table runs already exists"."""
    assert not (workspace.root / "history").exists()
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(6)
    processes = [context.Process(target=_open_together, args=(workspace.root, barrier)) for _ in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 6
