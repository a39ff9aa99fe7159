"""Runs as separate processes: found while they execute, closed when they are gone, nothing left of their stage."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import psutil
import pytest
from dagster._core.definitions.reconstruct import ReconstructableJob, ReconstructableRepository
from dagster._core.events import DagsterEvent, StepSuccessData
from dagster._core.launcher.base import WorkerStatus
from dagster._core.storage.tags import AUTO_RETRY_RUN_ID_TAG, MAX_RETRIES_TAG, WILL_RETRY_TAG

from benchmarks.pipeline import soak
from benchmarks.pipeline.soak import wait_for
from pipeline.environment import RUN
from pipeline.runs import launcher
from pipeline.runs.descendants import descendants
from pipeline.runs.launcher import (
    LOGS,
    PROCESS,
    RETRY_ATTEMPTS,
    ProcessRunLauncher,
    alive,
    identify,
    reap,
    retry_again,
    stop_runs,
)
from pipeline.workspace import template
from tests.processes import program

Status = dg.DagsterRunStatus
SLEEP = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    (tmp_path / "dagster.yaml").write_text(template("dagster.yaml").read_text())
    with dg.DagsterInstance.from_config(str(tmp_path)) as made:
        yield made


@pytest.fixture
def sleeping() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []

    def start(**environment: str) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen(SLEEP, env={**os.environ, **environment}, start_new_session=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


@dg.op
def one() -> None: ...


@dg.op
def two() -> None: ...


@dg.job
def two_steps() -> None:
    one()
    two()


@dg.job
def nothing() -> None: ...


def create(instance: dg.DagsterInstance, status: Status, process: str | None = None) -> dg.DagsterRun:
    return instance.create_run_for_job(nothing, status=status, tags={PROCESS: process} if process else {})


def stored(instance: dg.DagsterInstance, run: dg.DagsterRun) -> dg.DagsterRun:
    found = instance.get_run_by_id(run.run_id)
    assert found is not None
    return found


def status_of(instance: dg.DagsterInstance, run: dg.DagsterRun) -> Status:
    return stored(instance, run).status


def test_the_settings_of_a_new_workspace_are_used(instance: dg.DagsterInstance) -> None:
    assert isinstance(instance.run_launcher, ProcessRunLauncher)
    assert instance.run_monitoring_enabled
    assert instance.run_monitoring_poll_interval_seconds == 5
    # A stage has 60 s to save, 10 s after SIGTERM and 5 s after SIGKILL (pipeline.dvc).
    assert instance.run_monitoring_cancel_timeout_seconds > 75
    assert (instance.run_retries_enabled, instance.run_retries_max_retries) == (True, 3)
    assert not instance.run_retries_retry_on_asset_or_op_failure
    assert instance.get_concurrency_config().run_queue_config.max_concurrent_runs == 1


def test_a_process_is_identified_by_its_start_time_and_zombies_are_refused(
    sleeping: Callable[..., subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    process = sleeping()
    known = identify(process.pid)
    assert known.startswith(f"{process.pid}@")
    assert identify(os.getpid()) != known
    # Setting the clock moves the boot, and so the start, as seen in seconds since 1970.
    boot = psutil.boot_time()
    for module in (psutil, psutil._psplatform):
        monkeypatch.setattr(module, "boot_time", lambda: boot + 7200.0)
    assert identify(process.pid) == known
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it is dead, and its parent has not asked yet
    assert identify(process.pid) == ""
    process.wait()
    assert identify(process.pid) == ""


@pytest.mark.seconds
def test_a_run_is_healthy_while_its_process_lives_and_takes_its_stage_with_it(
    instance: dg.DagsterInstance, sleeping: Callable[..., subprocess.Popen[bytes]]
) -> None:
    launcher = instance.run_launcher
    worker = sleeping()
    run = create(instance, Status.STARTED, process=identify(worker.pid))
    stage, other = sleeping(**{RUN: run.run_id}), sleeping(**{RUN: "another"})
    assert launcher.supports_check_run_worker_health
    assert launcher.check_run_worker_health(run).status is WorkerStatus.RUNNING
    assert launcher.check_run_worker_health(create(instance, Status.STARTED)).status is WorkerStatus.RUNNING
    assert stage.poll() is None
    worker.kill()
    worker.wait()
    health = launcher.check_run_worker_health(run)
    assert health.status is WorkerStatus.FAILED
    assert f"Process {run.tags[PROCESS].partition('@')[0]} of this run is gone; it was killed" in str(health.msg)
    stage.wait(60)
    assert other.poll() is None
    assert "is gone; what it printed, in .simclr/logs/runs/" in str(launcher.get_run_worker_debug_info(run, False))


@pytest.mark.seconds
def test_only_runs_without_a_process_are_closed(
    instance: dg.DagsterInstance, sleeping: Callable[..., subprocess.Popen[bytes]]
) -> None:
    living, dead = identify(sleeping().pid), "1@0.00"
    expected = {
        create(instance, Status.STARTED, process=dead).run_id: Status.FAILURE,
        create(instance, Status.CANCELING, process=dead).run_id: Status.CANCELED,
        create(instance, Status.STARTED, process=living).run_id: Status.STARTED,
        create(instance, Status.STARTED).run_id: Status.STARTED,  # someone else's
        create(instance, Status.NOT_STARTED).run_id: Status.NOT_STARTED,
        create(instance, Status.SUCCESS, process=dead).run_id: Status.SUCCESS,
    }
    starting = [create(instance, Status.STARTING, process=dead), create(instance, Status.STARTING)]
    reap(instance)
    assert {run.run_id: run.status for run in instance.get_runs()} == expected | {
        run.run_id: Status.STARTING for run in starting
    }
    reap(instance, launching=False)
    assert [status_of(instance, run) for run in starting] == [Status.FAILURE] * 2


@pytest.mark.parametrize(("done", "status"), [(["one"], Status.FAILURE), (["one", "two"], Status.SUCCESS)])
def test_a_run_that_was_killed_after_its_last_step_has_succeeded(
    instance: dg.DagsterInstance, done: list[str], status: Status
) -> None:
    run = instance.create_run_for_job(two_steps, status=Status.STARTED, tags={PROCESS: "1@0.00"})
    for step in done:
        success = DagsterEvent("STEP_SUCCESS", "two_steps", step_key=step, event_specific_data=StepSuccessData(1.0))
        instance.report_dagster_event(success, run.run_id)
    instance.run_launcher.check_run_worker_health(run)
    assert status_of(instance, run) is status


@pytest.mark.seconds
def test_a_canceled_run_is_interrupted_or_closed_when_no_process_is_left(
    instance: dg.DagsterInstance, sleeping: Callable[..., subprocess.Popen[bytes]]
) -> None:
    worker = sleeping()
    run = create(instance, Status.STARTED, process=identify(worker.pid))
    lost = create(instance, Status.STARTED, process="1@0.00")
    assert instance.run_launcher.terminate(run.run_id)
    assert worker.wait(60) != 0
    assert status_of(instance, run) is Status.CANCELING  # the worker itself reports its end
    assert instance.run_launcher.terminate(lost.run_id)
    assert status_of(instance, lost) is Status.CANCELED
    assert not instance.run_launcher.terminate(lost.run_id)
    assert not instance.run_launcher.terminate("no such run")


LAUNCH = """
import sys, dagster as dg
from dagster._core.events import DagsterEvent, StepSuccessData
from dagster._core.launcher.base import LaunchRunContext
with dg.DagsterInstance.from_config(sys.argv[1]) as instance:
    instance.run_launcher.launch_run(LaunchRunContext(instance.get_run_by_id(sys.argv[2]), None))
"""


def launch(
    instance: dg.DagsterInstance, failpoint: str, steps: int = 3
) -> tuple[dg.DagsterRun, subprocess.CompletedProcess[bytes]]:
    """Launch a training of the soak from a process that ends, or is killed, right afterwards."""
    root = Path(instance.root_directory)
    (root / "steps").mkdir()
    job = ReconstructableJob(ReconstructableRepository.for_module("benchmarks.pipeline.soak", "defs"), "train")
    run = instance.create_run_for_job(
        soak.defs.resolve_job_def("train"),
        status=Status.STARTING,
        tags={soak.VERSION: "one", soak.STEPS_TAG: str(steps)},
        job_code_origin=job.get_python_origin(),
    )
    environment = {**os.environ, "DAGSTER_HOME": str(root), "SIMCLR_FAILPOINT": failpoint}
    command = program.command(LAUNCH, root, run.run_id)
    return run, subprocess.run(command, cwd=program.ROOT, env=environment, check=False, timeout=60)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["launcher.spawned", "launcher.tagged"])
def test_a_launcher_killed_during_a_launch_leaves_no_running_process(instance: dg.DagsterInstance, moment: str) -> None:
    run, launcher = launch(instance, f"{moment}:kill")
    assert launcher.returncode == -signal.SIGKILL
    # A process that is ending has no environment any more, by which descendants() finds it, before it is gone.
    wait_for(lambda: not descendants(RUN, run.run_id) and not alive(stored(instance, run)), 30, "the end of the worker")
    root = Path(instance.root_directory)
    log = root / LOGS / f"{run.run_id}.log"
    wait_for(lambda: "the process that launched this run is gone" in log.read_text(), 120, "its last words")
    assert not list((root / "steps").iterdir())
    assert status_of(instance, run) is Status.STARTING
    reap(instance, launching=False)
    assert status_of(instance, run) is Status.FAILURE


@pytest.mark.slow
def test_stopped_runs_save_and_are_marked_to_be_launched_again(instance: dg.DagsterInstance) -> None:
    run, _ = launch(instance, "", steps=600)
    file = Path(instance.root_directory) / "steps" / "one"
    wait_for(lambda: file.exists() and len(file.read_text().split()) > 3, 60, "the training")
    assert stop_runs(instance, 30) == [run.run_id]
    assert not descendants(RUN, run.run_id)
    stopped = stored(instance, run)
    assert (stopped.status, stopped.tags[WILL_RETRY_TAG]) == (Status.FAILURE, "true")
    made = len(file.read_text().split())
    assert 3 < made < 600


@pytest.mark.seconds
def test_a_run_that_does_not_stop_in_time_is_killed_unless_it_runs_at_a_terminal(
    instance: dg.DagsterInstance, sleeping: Callable[..., subprocess.Popen[bytes]]
) -> None:
    deaf, terminal = sleeping(), sleeping()
    os.kill(deaf.pid, signal.SIGSTOP)
    run = create(instance, Status.STARTED, process=identify(deaf.pid))
    own = instance.create_run_for_job(
        nothing, status=Status.STARTED, tags={PROCESS: identify(terminal.pid), MAX_RETRIES_TAG: "0"}
    )
    threading.Thread(target=deaf.wait, daemon=True).start()
    assert stop_runs(instance, 0.3) == [run.run_id]
    wait_for(lambda: not identify(deaf.pid), 120, "its end")
    stopped = stored(instance, run)
    assert (stopped.status, stopped.tags[WILL_RETRY_TAG]) == (Status.FAILURE, "true")
    assert terminal.poll() is None
    assert status_of(instance, own) is Status.STARTED


@pytest.mark.slow
def test_a_run_outlives_the_process_that_launched_it(instance: dg.DagsterInstance) -> None:
    run, launcher = launch(instance, "")
    assert launcher.returncode == 0
    launched = instance.get_run_by_id(run.run_id)
    assert launched is not None
    # By now the worker may have started processes that are its own.
    assert launched.tags[PROCESS] in [identify(one.pid) for one in descendants(RUN, run.run_id)]
    wait_for(lambda: status_of(instance, run) is Status.SUCCESS, 60, "the end of the run")
    assert (Path(instance.root_directory) / "steps" / "one").read_text().split() == ["0", "1", "2"]


@pytest.mark.seconds
def test_a_failed_relaunch_is_retried_a_limited_number_of_times(instance: dg.DagsterInstance) -> None:
    began = time.time()
    lost, failed, relaunched = (create(instance, Status.STARTED) for _ in range(3))
    for run in (lost, failed, relaunched):
        instance.report_run_failed(run)
    for run in (lost, relaunched):
        instance.report_engine_event("Failed to retry run", run)
    for run in (lost, failed, relaunched):
        instance.add_run_tags(run.run_id, {WILL_RETRY_TAG: "false"})  # as Dagster's daemon leaves it
    instance.add_run_tags(relaunched.run_id, {AUTO_RETRY_RUN_ID_TAG: failed.run_id})

    assert retry_again(instance, began - 60) == [lost.run_id]
    found = instance.get_run_by_id(lost.run_id)
    assert found is not None
    assert found.tags[WILL_RETRY_TAG] == "true"
    assert retry_again(instance, began - 60) == []  # Dagster has not answered yet

    for _ in range(RETRY_ATTEMPTS):
        instance.report_engine_event("Failed to retry run", lost)
    instance.add_run_tags(lost.run_id, {WILL_RETRY_TAG: "false"})
    assert retry_again(instance, began - 60) == []


@pytest.mark.seconds
def test_an_announced_relaunch_that_never_started_is_requested_again(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    overlooked, relaunched = (create(instance, Status.STARTED) for _ in range(2))
    for run in (overlooked, relaunched):
        instance.report_run_failed(run)
    instance.add_run_tags(relaunched.run_id, {AUTO_RETRY_RUN_ID_TAG: overlooked.run_id})
    assert retry_again(instance, time.time() - 60) == []
    monkeypatch.setattr(launcher, "OVERLOOKED_SECONDS", 0.5)
    wait_for(lambda: retry_again(instance, time.time() - 60) == [overlooked.run_id], 120, "the second request")
    assert retry_again(instance, time.time() - 60) == []
