"""Runs whose process is there and does nothing: stopped by a signal, or waiting for what never comes.

The process of a run looks after its stage the whole time, which costs some processor time. When neither it nor what it
started uses any for half an hour, the run hangs.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import dagster as dg
import psutil

from pipeline.environment import RUN
from pipeline.runs.dagster_internals import MAX_RETRIES_TAG
from pipeline.runs.descendants import descendants
from pipeline.runs.launcher import alive, close, proceed, process_of

STOPPED_SECONDS = 120.0  # as long as a service may be stopped
IDLE_SECONDS = 1800.0
KILL_SECONDS = 10.0
RUNNING = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]


@dataclass
class Pulse:
    """What was seen of a run: processor time of its process and of what it started, and since when it does nothing."""

    idle: float
    own: float = 0.0
    others: float = 0.0
    stopped: float | None = None


@dataclass
class Stalled:
    """Lets stopped runs continue, and kills those that hang, which Dagster launches again.

    A run at a person's terminal is left alone: Ctrl-Z stops it for as long as its person likes.

    Attributes:
        stopped: seconds after which a stopped run continues.
        idle: seconds without processor time after which a run is killed.
        now: a clock that stands still while the machine is suspended.
    """

    stopped: float = STOPPED_SECONDS
    idle: float = IDLE_SECONDS
    now: Callable[[], float] = time.monotonic
    _pulses: dict[str, Pulse] = field(default_factory=dict)

    def look(self, instance: dg.DagsterInstance) -> Iterator[str]:
        """Look at every run once, and say what was done; to be called every few seconds."""
        running = [run for run in instance.get_runs(dg.RunsFilter(statuses=RUNNING)) if alive(run)]
        launched = [run for run in running if run.tags.get(MAX_RETRIES_TAG) != "0"]
        self._pulses = {run.run_id: self._pulses.get(run.run_id, Pulse(self.now())) for run in launched}
        for run in launched:
            with suppress(psutil.NoSuchProcess):
                yield from self._examine(instance, run, process_of(run), self._pulses[run.run_id])

    def _examine(
        self, instance: dg.DagsterInstance, run: dg.DagsterRun, process: psutil.Process, pulse: Pulse
    ) -> Iterator[str]:
        now = self.now()
        if _works(run.run_id, process, pulse):
            pulse.idle = now
        if process.status() != psutil.STATUS_STOPPED:
            pulse.stopped = None
        elif pulse.stopped is None:
            pulse.stopped = now
        if pulse.stopped is not None and now - pulse.stopped >= self.stopped:
            pulse.stopped = None
            said = f"process {process.pid} was stopped for {self.stopped:g} s; now it continues"
            proceed(run)  # before anything is written: it may hold the lock of Dagster's database
            instance.report_engine_event(said, run)
            yield f"run {run.run_id[:8]}: {said}"
        elif now - pulse.idle >= self.idle:
            said = f"process {process.pid} used no processor time for {self.idle:g} s; it is killed as hanging"
            process.kill()
            psutil.wait_procs([process], KILL_SECONDS)
            instance.report_engine_event(said, run)
            close(instance, run.run_id, said)
            yield f"run {run.run_id[:8]}: {said}"


def _works(run_id: str, process: psutil.Process, pulse: Pulse) -> bool:
    """Whether the run used processor time since the last look; what its process started is asked only if it must be."""
    before = pulse.own, pulse.others
    pulse.own = _used(process)
    if pulse.own == before[0]:
        pulse.others = sum(map(_used, descendants(RUN, run_id)))
    return (pulse.own, pulse.others) != before


def _used(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0  # it is gone
    return float(times.user + times.system)
