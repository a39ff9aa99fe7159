"""Dagster's run launcher: each run is a separate process, which no other process takes down with it.

    dagster.yaml:  run_launcher: {module: pipeline.runs.launcher, class: ProcessRunLauncher}

Dagster's own launcher makes runs children of the code server; when both are killed, it shows the run as started
forever. Here a run is tagged with its process before that process may begin: it waits for its arguments, which it gets
after the tag is stored. So whichever process is killed, a run that executes can be found, and one that cannot be found
does not execute.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import dagster as dg
import psutil

from deploy.failpoint import failpoint
from deploy.failure import killed_by
from pipeline.environment import RUN
from pipeline.redact import redactor
from pipeline.runs import output
from pipeline.runs.dagster_internals import (
    AUTO_RETRY_RUN_ID_TAG,
    MAX_RETRIES_TAG,
    WILL_RETRY_TAG,
    CheckRunHealthResult,
    ConfigurableClass,
    ConfigurableClassData,
    DagsterEvent,
    ExecuteRunArgs,
    LaunchRunContext,
    RunLauncher,
    WorkerStatus,
    execute_run_command,
    instance_of,
    serialize_value,
)
from pipeline.runs.descendants import descendants, kill_descendants
from pipeline.runs.instance import redact_records

# Tag of a run: the process it runs in. The UI hides tags that begin like this, of which a list of runs would be full.
PROCESS = ".dagster/simclr-process"
VISIBLE = "simclr/process"  # in runs of earlier versions
LOGS = Path(".simclr") / "logs" / "runs"
KILL_SECONDS = 5.0
OVERLOOKED_SECONDS = 30.0  # after which a relaunch that was announced has not come
RETRY_ATTEMPTS = 5  # how often a relaunch that Dagster could not make is asked for again

Instance = dg.DagsterInstance
RunStatus = dg.DagsterRunStatus


class ProcessRunLauncher(RunLauncher[Instance], ConfigurableClass):
    """Starts, interrupts and watches the processes of runs; what they print goes to ``.simclr/logs/runs/``."""

    _inst_data: ConfigurableClassData | None = None

    @property
    def inst_data(self) -> ConfigurableClassData | None:
        return self._inst_data

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        return {}

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]) -> Self:
        assert not config_value, "it has no settings"
        launcher = cls()
        launcher._inst_data = inst_data
        return launcher

    def launch_run(self, context: LaunchRunContext) -> None:
        run, instance = context.dagster_run, instance_of(self)
        assert run.job_code_origin, "a run of the queue has an origin"
        arguments = ExecuteRunArgs(run.job_code_origin, run.run_id, redact_records(instance.get_ref()))
        root = Path(instance.root_directory)
        with output.started(root, root / LOGS / f"{run.run_id}.log") as log:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__],
                cwd=root,
                env={**os.environ, "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1", RUN: run.run_id},
                stdin=subprocess.PIPE,
                stdout=log.stdin,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        assert process.stdin is not None
        threading.Thread(target=self._await_end, args=(process, log, run.run_id), daemon=True).start()
        with suppress(BrokenPipeError), process.stdin as channel:
            failpoint("launcher.spawned")
            instance.add_run_tags(run.run_id, {PROCESS: identify(process.pid)})
            failpoint("launcher.tagged")
            channel.write(serialize_value(arguments).encode())

    def terminate(self, run_id: str) -> bool:
        """Interrupt the run: its stage saves what it has and ends, and Dagster records the run as canceled."""
        instance = instance_of(self)
        run = instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            return False
        instance.report_run_canceling(run)
        if alive(run):
            _interrupt(run)
        else:
            close(instance, run_id, "The process of this run had already ended when it was canceled.")
        return True

    @property
    def supports_check_run_worker_health(self) -> bool:
        return True

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        # Runs without our tag belong to another launcher, which monitors them.
        if not _tag(run) or alive(run):
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        # Dagster, which would take it for failed, sees that it is closed.
        close(instance_of(self), run.run_id, _gone(run))
        return CheckRunHealthResult(WorkerStatus.FAILED, _gone(run))

    def get_run_worker_debug_info(self, run: dg.DagsterRun, include_container_logs: bool | None = True) -> str:
        log = LOGS / f"{run.run_id}.log"
        root = Path(instance_of(self).root_directory)
        said = (root / log).read_text(errors="replace") if include_container_logs else ""
        hide = redactor(root)  # an earlier version may have written the file
        state = "runs" if alive(run) else "is gone"
        return f"{_process(run)} {state}; what it printed, in {log}:\n{hide(said[-2000:])}"

    def _await_end(self, process: "subprocess.Popen[bytes]", log: "subprocess.Popen[bytes]", run_id: str) -> None:
        """Close the run at once when its process ends without having done so: Dagster's monitor looks less often."""
        code = process.wait()
        try:
            if self.has_instance:
                ended = killed_by(code) or f"ended with exit code {code} before the run did"
                message = f"Process {process.pid} of this run {ended}; the log of the run says more."
                close(instance_of(self), run_id, message)
        finally:
            log.wait()


def reap(instance: Instance, launching: bool = True) -> None:
    """Close the runs whose process was killed: Dagster would show them as running, and make others wait, forever.

    Args:
        launching: a daemon may be at work, so a run that has not begun yet is perhaps being launched just now.
    """
    statuses = [RunStatus.STARTED, RunStatus.CANCELING] + ([] if launching else [RunStatus.STARTING])
    for run in instance.get_runs(dg.RunsFilter(statuses=statuses)):
        if not alive(run) and (_tag(run) or run.status is RunStatus.STARTING):
            close(instance, run.run_id, _gone(run))


def stop_runs(instance: Instance, seconds: float) -> list[str]:
    """Interrupt the runs of this machine, and wait until they have saved what they have; returns their ids.

    What does not end in time is killed. Dagster takes them for lost, and launches them again when its daemon is back.
    A run at a person's terminal is left alone.
    """
    statuses = [RunStatus.STARTING, RunStatus.STARTED, RunStatus.CANCELING]
    running = [
        run
        for run in instance.get_runs(dg.RunsFilter(statuses=statuses))
        if alive(run) and run.tags.get(MAX_RETRIES_TAG) != "0"
    ]
    for run in running:
        _interrupt(run)
    deadline = time.monotonic() + seconds
    while any(map(alive, running)) and time.monotonic() < deadline:
        time.sleep(0.1)
    for run in running:
        if alive(run):
            with suppress(psutil.NoSuchProcess):
                process_of(run).kill()
        close(
            instance,
            run.run_id,
            "The services of the workspace were stopped; `simclr ui` starts them again, and they continue this run.",
        )
    return [run.run_id for run in running]


def close(instance: Instance, run_id: str, message: str) -> None:
    """Record that a run has no process any more, unless its end is recorded; nothing that it started is left."""
    # A killed run cannot end its stage, which would hold the workspace against the run that continues it.
    kill_descendants(RUN, run_id, KILL_SECONDS)
    run = instance.get_run_by_id(run_id)
    if run is None or run.is_finished:
        return
    if run.status is RunStatus.CANCELING:
        instance.report_run_canceled(run, message)
    elif _completed(instance, run):
        event = DagsterEvent(dg.DagsterEventType.RUN_SUCCESS.value, run.job_name, message=message)
        instance.report_dagster_event(event, run.run_id)
    else:
        instance.report_run_failed(run, message)


def _completed(instance: Instance, run: dg.DagsterRun) -> bool:
    """Killed after its last step: it has not failed, and Dagster refuses to launch it again for no step at all."""
    if run.execution_plan_snapshot_id is None:
        return False
    plan = instance.get_execution_plan_snapshot(run.execution_plan_snapshot_id)
    done = {entry.step_key for entry in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_SUCCESS)}
    return bool(done) and done >= set(plan.step_keys_to_execute)


def retry_again(instance: Instance, failed_since: float) -> list[str]:
    """Have the killed runs relaunched whose relaunch failed, because the code server was away; returns their ids.

    Dagster gives up after the first attempt. A new failure event makes it look at the run once more.

    Args:
        failed_since: seconds since the epoch.
    """
    failed = dg.RunsFilter(
        statuses=[RunStatus.FAILURE],
        tags={WILL_RETRY_TAG: "false"},
        updated_after=datetime.fromtimestamp(failed_since, UTC),
    )
    again = []
    for run in instance.get_runs(failed):
        events = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ENGINE_EVENT)
        said = [entry.get_dagster_event().message for entry in events]
        attempts = said.count("Failed to retry run")
        if 0 < attempts < RETRY_ATTEMPTS and AUTO_RETRY_RUN_ID_TAG not in run.tags:
            instance.report_run_failed(run, f"Requesting its relaunch again, attempt {attempts + 1}.")
            again.append(run.run_id)
    return again + _overlooked(instance, time.time() - OVERLOOKED_SECONDS)


def _overlooked(instance: Instance, since: float) -> list[str]:
    """Dagster stores a failure and then that the run has failed; a daemon that looks in between misses it."""
    failed = dg.RunsFilter(
        statuses=[RunStatus.FAILURE],
        tags={WILL_RETRY_TAG: "true"},
        updated_before=datetime.fromtimestamp(since, UTC),
        updated_after=datetime.fromtimestamp(since - 10 * OVERLOOKED_SECONDS, UTC),
    )
    found = [run for run in instance.get_runs(failed) if AUTO_RETRY_RUN_ID_TAG not in run.tags]
    for run in found:
        instance.report_run_failed(run, "Requesting its relaunch again, since it did not start.")
    return [run.run_id for run in found]


def alive(run: dg.DagsterRun) -> bool:
    """Whether the process that the run is tagged with is there."""
    return bool(_tag(run)) and _tag(run) == identify(_pid(run))


def process_of(run: dg.DagsterRun) -> psutil.Process:
    """The process that the run is tagged with; raises psutil.NoSuchProcess when it is gone."""
    return psutil.Process(_pid(run))


def proceed(run: dg.DagsterRun) -> None:
    """Let the process of a run, and whatever it started, continue where a signal stopped them."""
    for process in [process_of(run), *descendants(RUN, run.run_id)]:
        with suppress(psutil.Error):
            process.resume()


def _interrupt(run: dg.DagsterRun) -> None:
    with suppress(psutil.NoSuchProcess):
        process_of(run).send_signal(signal.SIGINT)
        proceed(run)  # a stopped process takes no signal


def identify(pid: int) -> str:
    """A process by its number and its start, since numbers are used again; empty when there is none, or a zombie.

    The start is in seconds since the machine's: setting the clock does not change it.
    """
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return ""
        return f"{pid}@{process.create_time() - psutil.boot_time():.2f}"
    except psutil.NoSuchProcess:
        return ""


def _tag(run: dg.DagsterRun) -> str:
    """Empty if it has none: then it belongs to another launcher, or is not started yet."""
    return run.tags.get(PROCESS) or run.tags.get(VISIBLE, "")


def _pid(run: dg.DagsterRun) -> int:
    return int(_tag(run).partition("@")[0])


def _gone(run: dg.DagsterRun) -> str:
    return (
        f"{_process(run)} is gone; it was killed or the machine went down. `simclr run`, or `simclr ui`, continues it."
    )


def _process(run: dg.DagsterRun) -> str:
    return f"Process {_pid(run)} of this run" if _tag(run) else "The process of this run"


def main() -> None:
    """The process of a run; see the top of this file."""
    arguments = sys.stdin.read()
    if not arguments:
        sys.exit("error: the process that launched this run is gone; the run is launched again")
    execute_run_command.main([arguments], standalone_mode=False)


if __name__ == "__main__":
    main()
