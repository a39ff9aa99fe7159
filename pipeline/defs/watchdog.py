"""Reports what is wrong though no run fails, and beats for an outside monitor as long as nothing is."""

from datetime import UTC, datetime, timedelta

import dagster as dg

from pipeline.alerts import beat, send
from pipeline.config import RetrainingConfig
from pipeline.errors import IngestError
from pipeline.release.registry import open_registry
from pipeline.retraining.watchdog import FAILURES, SILENT, Look, Memory, Trigger, judge, load
from pipeline.runs.clock import FUTURE_SECONDS
from pipeline.runs.dagster_internals import InstigatorState, last_cron_tick, switched_on
from pipeline.workspace import Workspace
from simclr_core.params import read_block

SENSOR, SCHEDULE = "new_images", "scheduled"


def build_watchdog(workspace: Workspace, schedule: dg.ScheduleDefinition) -> dg.SensorDefinition:
    """On from the beginning; it looks only while the sensor or ``schedule`` is on."""

    @dg.sensor(
        name="watchdog",
        target="*",
        minimum_interval_seconds=300,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Alerts on sources that are gone or shrank, on missed or failing ticks, and on an overdue encoder; "
        "beats for an outside monitor while all is well.",
    )
    def watchdog(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        now = datetime.now(UTC)
        triggers = _triggers(context.instance, schedule, now)
        if not triggers:
            return dg.SensorResult(skip_reason="the sensor new_images and the schedule are off", cursor=context.cursor)
        before = load(context.cursor)
        problems, fresh, memory = judge(_look(workspace, triggers, before), before, now)
        notes = [
            note
            for text in fresh.values()
            for note in send(workspace, "unattended", f"{workspace.root.name} needs attention", text)
        ]
        notes += [] if problems else beat(workspace)
        for note in notes:
            context.log.warning(note)
        return dg.SensorResult(skip_reason="; ".join(problems.values()) or "all is well", cursor=memory.dump())

    return watchdog


def _look(workspace: Workspace, triggers: list[Trigger], before: Memory) -> Look:
    from pipeline.retraining import confirmed  # here: fsspec takes long to load

    config = read_block(workspace.params, "retraining", RetrainingConfig)
    served = open_registry(workspace).root / "CURRENT"
    released = datetime.fromtimestamp(served.stat().st_mtime, UTC) if served.exists() else None
    sources: dict[str, int | str] = {}
    ingested: dict[str, int] = {}
    for name in config.sources:
        try:
            base, sources[name] = confirmed.count_files(workspace, name, age=60 * config.full_listing_minutes)
        except IngestError as error:
            sources[name] = str(error)
            continue
        if name not in before.files:
            ingested[name] = _ingested(workspace, base)
    age = timedelta(days=config.max_age_days)
    return Look(
        sources, triggers, released, age, ingested, confirmed.read(workspace), frozenset(config.emptied_sources)
    )


def _ingested(workspace: Workspace, base: str) -> int:
    """How many contents the last ingest saw in a source: without them, one that is gone by now would look new."""
    from pipeline.ingest.stamps import STAMPS, Stamps

    return Stamps(workspace.scratch / STAMPS).count_held(base)


def _triggers(instance: dg.DagsterInstance, schedule: dg.ScheduleDefinition, now: datetime) -> list[Trigger]:
    """The triggers that are on, with their ticks so far; those of the future are from before the clock was set back."""
    found, until, late = [], now.timestamp() + FUTURE_SECONDS, now - SILENT
    rhythm = str(schedule.cron_schedule)
    due = last_cron_tick(rhythm, schedule.execution_timezone, late)
    for state in instance.all_instigator_state():
        name = state.instigator_name
        if state.is_running and name in (SENSOR, SCHEDULE):
            ticks = instance.get_ticks(state.instigator_origin_id, state.selector_id, before=until, limit=FAILURES)
            last = datetime.fromtimestamp(ticks[0].timestamp, UTC) if ticks else None
            errors = [tick.error.message.strip().splitlines()[-1] if tick.error else "" for tick in ticks]
            when = (late, errors, "") if name == SENSOR else (due, errors, rhythm)
            found.append(Trigger(name, last, *when, _switched_on(state)))
    return found


def _switched_on(state: InstigatorState) -> datetime | None:
    since = switched_on(state)
    return datetime.fromtimestamp(since, UTC) if since else None
