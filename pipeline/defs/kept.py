"""Keeps the state of a run as it grows: after the ingest, and after each stage that has computed something."""

import dagster as dg

from pipeline import alerts
from pipeline.maintenance.state import keep, unkept
from pipeline.workspace import Workspace


def keep_state(context: dg.AssetExecutionContext, workspace: Workspace) -> None:
    """Commit and send what the run has so far; what cannot be sent is said, and alerted about once in a run."""
    run = context.run.run_id
    before = unkept(workspace)
    missing = keep(workspace, run)
    if missing is None or (before is not None and before.run == run):
        return
    context.log.warning(f"{missing}; the run continues, and the next one sends it")
    title = f"{workspace.root.name}: the state of a run is not in the remote"
    for problem in alerts.send(workspace, "not_kept", title, str(missing)):
        context.log.warning(problem)
