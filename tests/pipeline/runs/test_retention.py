"""Dagster's records of old runs go, but never those that an asset has its present result from."""

import os
import time
import uuid

import dagster as dg
import pytest

from pipeline.maintenance.storage import collect, require_space
from pipeline.params import override
from pipeline.runs.instance import opened
from pipeline.runs.retention import forget_runs, outdated_runs, records_of
from pipeline.workspace import Workspace


def materialize(instance: dg.DagsterInstance, name: str) -> str:
    @dg.asset(name=name)
    def made() -> None:
        pass

    return dg.materialize([made], instance=instance).run_id


@pytest.mark.seconds
def test_old_runs_go_with_their_databases_and_present_results_stay(workspace: Workspace) -> None:
    override(workspace, {"storage.keep_run_records": "10"})
    with opened(workspace.root) as instance:
        once = materialize(instance, "once")
        runs = [materialize(instance, "often") for _ in range(12)]
        assert outdated_runs(instance, 10) == [runs[1], runs[0]]
        assert all(records_of(workspace.root, run) for run in runs)
    announced = collect(workspace, dry_run=True)
    assert announced.records == 2
    assert announced.bytes > 100_000
    collected = collect(workspace)
    assert "Dagster's records of 2 runs" in str(collected)
    with opened(workspace.root) as instance:
        assert {run.run_id for run in instance.get_runs()} == {once, *runs[2:]}
        event = instance.get_latest_materialization_event(dg.AssetKey("once"))
        assert event is not None
        assert event.run_id == once
    assert not any(records_of(workspace.root, run) for run in runs[:2])
    assert collect(workspace).records == 0


@pytest.mark.seconds
def test_results_of_checks_go_with_their_runs_and_the_latest_of_each_stays(workspace: Workspace) -> None:
    """Dagster keeps them all: a third of a megabyte for each run."""

    @dg.asset
    def made() -> None:
        pass

    @dg.asset_check(asset=made)
    def once() -> dg.AssetCheckResult:
        return dg.AssetCheckResult(passed=True)

    @dg.asset_check(asset=made)
    def often() -> dg.AssetCheckResult:
        return dg.AssetCheckResult(passed=True)

    with opened(workspace.root) as instance:
        runs = [dg.materialize([made, often], instance=instance).run_id for _ in range(3)]
        runs.insert(0, dg.materialize([made, once], instance=instance).run_id)
        history = instance.event_log_storage.get_asset_check_execution_history

        def found(name: str) -> list[str]:
            return [one.run_id for one in history(dg.AssetCheckKey(dg.AssetKey("made"), name), limit=10)]

        assert found("often") == runs[:0:-1]
        forget_runs(instance, workspace.root, runs[:3])
        assert found("often") == [runs[3]]
        assert found("once") == [runs[0]], "what the page of the asset shows"


@pytest.mark.seconds
def test_every_run_removes_what_is_old_without_being_asked(workspace: Workspace) -> None:
    override(workspace, {"storage.keep_run_records": "10", "storage.keep_tensorboards": "1"})
    boards = [workspace.scratch / "tensorboard" / name for name in ("old", "new")]
    for age, board in zip((100, 0), boards, strict=True):
        board.mkdir(parents=True)
        os.utime(board, (time.time() - age,) * 2)
    with opened(workspace.root) as instance:
        runs = [materialize(instance, "often") for _ in range(11)]
        assert require_space(workspace) is None
        assert [run.run_id for run in instance.get_runs()] == runs[:0:-1]
    assert [board.exists() for board in boards] == [False, True]


@pytest.mark.seconds
def test_a_run_in_progress_is_never_old(workspace: Workspace) -> None:
    with opened(workspace.root) as instance:
        running = instance.create_run_for_job(dg.GraphDefinition("nothing", node_defs=[]).to_job())
        runs = [materialize(instance, "often") for _ in range(3)]
        assert running.run_id not in outdated_runs(instance, 1)
        assert outdated_runs(instance, 1) == [runs[1], runs[0]]


@pytest.mark.seconds
def test_records_are_opened_only_when_some_are_old_and_may_be_damaged(workspace: Workspace) -> None:
    override(workspace, {"storage.keep_run_records": "10"})
    runs = workspace.root / "history" / "runs"
    runs.mkdir(parents=True)
    for name in ("index", *(str(uuid.uuid4()) for _ in range(10))):
        (runs / f"{name}.db").write_bytes(b"not a database")
    assert not collect(workspace).note
    (runs / f"{uuid.uuid4()}.db").write_bytes(b"not a database")
    collected = collect(workspace)
    assert "the records of old runs stay: " in str(collected), "and all else is removed"
