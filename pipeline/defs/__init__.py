"""What Dagster sees of a workspace: its assets, their gates, what starts a run, and the jobs around releases.

Each object translates between Dagster and a function elsewhere; nothing is computed, judged or decided here.
"""

import dagster as dg

from pipeline.defs import release
from pipeline.defs.alerts import build_alerts
from pipeline.defs.checks import GATES, drift_check
from pipeline.defs.expectations import expectation_checks
from pipeline.defs.raw_images import raw_images
from pipeline.defs.release import champion, released_encoder
from pipeline.defs.retraining import build_retraining, freshness, retrain
from pipeline.defs.stage_assets import dvc_assets
from pipeline.defs.tune import tune
from pipeline.defs.watchdog import build_watchdog
from pipeline.workspace import Workspace


def build_definitions(workspace: Workspace) -> dg.Definitions:
    """Everything of one workspace; a gate on a result that its dvc.yaml does not have is left out.

    Raises:
        DvcError: dvc.yaml has a fault.
        ConfigError, ParamsError: so has the block ``retraining`` of params.yaml.
    """
    stages = dvc_assets(workspace)
    results = {key for stage in stages for key in stage.keys}
    read = {dep.asset_key for stage in stages for spec in stage.specs for dep in spec.deps}
    # A user's dvc.yaml may have nothing to compare with a champion, or to release.
    pinned = [champion] if champion.key in read else []
    released = (
        [released_encoder] if {dep.asset_key for spec in released_encoder.specs for dep in spec.deps} <= results else []
    )
    retraining = build_retraining(workspace)
    policy = freshness(workspace)
    return dg.Definitions(
        assets=[
            raw_images,
            *pinned,
            *stages,
            *(
                asset.map_asset_specs(lambda spec: spec.replace_attributes(freshness_policy=policy))
                for asset in released
            ),
        ],
        asset_checks=[
            gate
            for gate in (*GATES, expectation_checks, drift_check)
            if all(check.asset_key in results for check in gate.check_keys)
        ],
        jobs=[retrain, tune, *release.JOBS],
        sensors=[*retraining.sensors, *build_alerts(workspace), build_watchdog(workspace, *retraining.schedules)],
        schedules=retraining.schedules,
        resources={"workspace": workspace},
        # A stage has the machine to itself, and is already a separate process.
        executor=dg.in_process_executor,
    )
