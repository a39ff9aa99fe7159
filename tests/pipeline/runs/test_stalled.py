"""A run whose process is stopped or hangs: noticed, said, the workspace free again; one at work is left alone."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import psutil
import pytest
from dagster._core.storage.tags import MAX_RETRIES_TAG, WILL_RETRY_TAG

from benchmarks.pipeline.soak import wait_for
from pipeline.environment import RUN
from pipeline.runs.descendants import descendants
from pipeline.runs.launcher import PROCESS, identify, process_of
from pipeline.runs.stalled import Stalled
from tests.pipeline.runs.test_launcher import Status, create, instance, launch, nothing, sleeping, status_of

__all__ = ["instance", "sleeping"]  # fixtures
Start = Callable[..., "subprocess.Popen[bytes]"]
SPIN = [sys.executable, "-S", "-c", "while True: sum(range(10**5))"]


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def looks(stalled: Stalled, instance: dg.DagsterInstance, clock: Clock, *seconds: float) -> list[str]:
    """What is said when this number of seconds is between looks."""
    said = []
    for later in seconds:
        clock.seconds += later
        said += list(stalled.look(instance))
    return said


def worker_of(instance: dg.DagsterInstance, run: dg.DagsterRun) -> psutil.Process:
    launched = instance.get_run_by_id(run.run_id)
    assert launched is not None
    return process_of(launched)


def messages(instance: dg.DagsterInstance, run: dg.DagsterRun) -> str:
    return "\n".join(entry.message for entry in instance.all_logs(run.run_id))


@pytest.mark.slow
def test_a_stopped_run_continues_to_its_end(instance: dg.DagsterInstance, clock: Clock) -> None:
    """A real one, that an outside SIGSTOP has stopped."""
    run, _ = launch(instance, "", steps=60)  # enough that it does not end before it is stopped
    steps = Path(instance.root_directory) / "steps" / "one"
    wait_for(lambda: steps.exists() and len(steps.read_text().split()) > 1, 120, "the training")
    worker = worker_of(instance, run)
    worker.suspend()
    wait_for(lambda: worker.status() == psutil.STATUS_STOPPED, 30, "the stop")
    stalled = Stalled(stopped=120.0, idle=1800.0, now=clock)
    assert looks(stalled, instance, clock, 0.0, 100.0) == []
    assert status_of(instance, run) is Status.STARTED
    said = looks(stalled, instance, clock, 30.0)
    assert said == [f"run {run.run_id[:8]}: process {worker.pid} was stopped for 120 s; now it continues"]
    assert "was stopped for 120 s" in messages(instance, run)
    wait_for(lambda: status_of(instance, run) is Status.SUCCESS, 120, "the end of the run")
    assert steps.read_text().split() == [str(number) for number in range(60)]


@pytest.mark.slow
def test_a_hanging_run_is_killed_with_its_stage_and_launched_again(
    instance: dg.DagsterInstance, sleeping: Start, clock: Clock
) -> None:
    run, _ = launch(instance, "", steps=600)
    wait_for(lambda: status_of(instance, run) is Status.STARTED, 120, "the run")
    worker = worker_of(instance, run)
    stage = sleeping(**{RUN: run.run_id})
    worker.suspend()  # stands for any wait without end: it uses no processor time
    wait_for(lambda: worker.status() == psutil.STATUS_STOPPED, 30, "the stop")
    stalled = Stalled(stopped=float("inf"), idle=1800.0, now=clock)
    assert looks(stalled, instance, clock, 0.0, 0.0, 1000.0, 700.0) == []
    (said,) = looks(stalled, instance, clock, 200.0)
    assert "used no processor time for 1800 s; it is killed as hanging" in said
    stage.wait(60)
    assert not descendants(RUN, run.run_id)
    closed = instance.get_run_by_id(run.run_id)
    assert closed is not None
    assert (closed.status, closed.tags[WILL_RETRY_TAG]) == (Status.FAILURE, "true")
    assert "killed as hanging" in messages(instance, run)
    assert looks(stalled, instance, clock, 2000.0) == []


@pytest.mark.seconds
def test_a_run_that_waits_for_a_stage_at_work_is_left_alone(
    instance: dg.DagsterInstance, sleeping: Start, clock: Clock
) -> None:
    worker = sleeping()
    run = create(instance, Status.STARTED, process=identify(worker.pid))
    with subprocess.Popen(SPIN, env={**os.environ, RUN: run.run_id}) as stage:
        try:
            stalled = Stalled(idle=1800.0, now=clock)
            for _ in range(5):
                used = psutil.Process(stage.pid).cpu_times().user
                wait_for(lambda used=used: psutil.Process(stage.pid).cpu_times().user > used, 60, "some work")
                assert looks(stalled, instance, clock, 1000.0) == []
        finally:
            stage.kill()
    assert worker.poll() is None
    assert status_of(instance, run) is Status.STARTED


def test_a_run_at_a_terminal_may_be_stopped_for_long(
    instance: dg.DagsterInstance, sleeping: Start, clock: Clock
) -> None:
    own = sleeping()
    tags = {PROCESS: identify(own.pid), MAX_RETRIES_TAG: "0"}
    instance.create_run_for_job(nothing, status=Status.STARTED, tags=tags)
    os.kill(own.pid, signal.SIGSTOP)
    assert looks(Stalled(now=clock), instance, clock, 0.0, 5000.0, 5000.0) == []
    wait_for(lambda: psutil.Process(own.pid).status() == psutil.STATUS_STOPPED, 30, "the stop")


def test_a_moment_of_being_stopped_is_not_counted_with_the_next(
    instance: dg.DagsterInstance, sleeping: Start, clock: Clock
) -> None:
    worker = sleeping()
    create(instance, Status.STARTED, process=identify(worker.pid))
    stalled = Stalled(stopped=120.0, now=clock)
    for number in (signal.SIGSTOP, signal.SIGCONT, signal.SIGSTOP):
        os.kill(worker.pid, number)
        stopped = number == signal.SIGSTOP
        process = psutil.Process(worker.pid)
        wait_for(lambda: (process.status() == psutil.STATUS_STOPPED) is stopped, 30, "the signal")  # noqa: B023
        assert looks(stalled, instance, clock, 70.0) == []
    assert looks(stalled, instance, clock, 70.0) == []
    assert len(looks(stalled, instance, clock, 70.0)) == 1


def test_a_stopped_run_takes_a_cancel(instance: dg.DagsterInstance, sleeping: Start) -> None:
    worker = sleeping()
    run = create(instance, Status.STARTED, process=identify(worker.pid))
    os.kill(worker.pid, signal.SIGSTOP)
    assert instance.run_launcher.terminate(run.run_id)
    assert worker.wait(120) != 0
