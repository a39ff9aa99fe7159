"""Tells people when a run has failed; where to is said in the environment, see ``pipeline.alerts``."""

import os

import dagster as dg

from pipeline.alerts import UI_URL, send
from pipeline.defs.failures import explain
from pipeline.defs.retraining import REASON
from pipeline.runs.dagster_internals import WILL_RETRY_TAG
from pipeline.workspace import Workspace


def build_alerts(workspace: Workspace) -> list[dg.SensorDefinition]:
    """On from the beginning: without an address in the environment it does nothing."""

    @dg.run_failure_sensor(
        name="run_failed",
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Sends an alert about each failed run: to a webhook, to Slack, by e-mail.",
    )
    def run_failed(context: dg.RunFailureSensorContext) -> None:
        title, text = describe(context.instance, context.dagster_run)
        for problem in send(workspace, "run_failed", f"{workspace.root.name}: {title}", text):
            context.log.warning(problem)

    return [run_failed]


def describe(instance: dg.DagsterInstance, run: dg.DagsterRun) -> tuple[str, str]:
    """What failed in one line, and the lines below it: why, what it was started for, and where to look."""
    found = explain(instance, run.run_id)
    job = "a run" if run.job_name.startswith("__") else run.job_name
    lines = [found.reason, f"Started for: {run.tags[REASON]}" if REASON in run.tags else ""]
    if run.tags.get(WILL_RETRY_TAG) == "true":
        lines.append("It is started again automatically.")
    address = os.environ.get(UI_URL, "").rstrip("/")
    lines.append(f"{address}/runs/{run.run_id}" if address else f"Run {run.run_id[:8]}, to be seen with `simclr ui`")
    return f"{job} failed at {found.place}" if found.place else f"{job} failed", "\n".join(filter(None, lines))
