"""What Dagster sees of a workspace: its assets, their gates, the job and the schedule."""

import dagster as dg

from pipeline.defs.checks import GATES
from pipeline.defs.raw_images import raw_images
from pipeline.defs.retraining import retrain, weekly
from pipeline.dvc.assets import dvc_assets
from pipeline.workspace import Workspace


def build_definitions(workspace: Workspace) -> dg.Definitions:
    """Everything of one workspace; a gate on a result that its dvc.yaml does not have is left out.

    Raises:
        DvcError: dvc.yaml has a fault.
    """
    assets = dvc_assets(workspace)
    keys = {key for stage in assets for key in stage.keys}
    return dg.Definitions(
        assets=[raw_images, *assets],
        asset_checks=[gate for gate in GATES if all(check.asset_key in keys for check in gate.check_keys)],
        jobs=[retrain],
        schedules=[weekly],
        resources={"workspace": workspace},
        # A stage has the machine to itself, and is a process of its own already.
        executor=dg.in_process_executor,
    )
