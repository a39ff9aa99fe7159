"""When everything is computed again: by hand, or every week once the schedule is switched on in the UI."""

import dagster as dg

retrain = dg.define_asset_job(
    "retrain",
    selection=dg.AssetSelection.all(),
    description="Ingest what is new and bring every stage up to date; what has not changed is skipped.",
)

weekly = dg.ScheduleDefinition(
    name="weekly",
    job=retrain,
    cron_schedule="0 3 * * 0",
    default_status=dg.DefaultScheduleStatus.STOPPED,
    description="Sundays at 03:00 UTC. With no new images it takes seconds and changes nothing.",
)
