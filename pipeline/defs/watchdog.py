"""Reports what is wrong though no run fails, and beats for an outside monitor as long as nothing is."""

from datetime import UTC, datetime, timedelta

import dagster as dg

from pipeline.alerts import beat, send
from pipeline.config import IngestConfig, RetrainingConfig
from pipeline.errors import IngestError
from pipeline.release.registry import open_registry
from pipeline.retraining.watchdog import FAILURES, Look, Trigger, judge, load
from pipeline.runs.clock import FUTURE_SECONDS
from pipeline.workspace import Workspace
from simclr_core.params import read_block

TRIGGERS = {"new_images": True, "scheduled": False}  # name → whether it ticks every minute


def build_watchdog(workspace: Workspace) -> dg.SensorDefinition:
    """On from the beginning; it looks only while the sensor or the schedule is on."""

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
        triggers = _triggers(context.instance, now)
        if not triggers:
            return dg.SensorResult(skip_reason="the sensor new_images and the schedule are off", cursor=context.cursor)
        look = _look(workspace, triggers)
        problems, fresh, memory = judge(look, load(context.cursor), now)
        notes = [
            note
            for text in fresh.values()
            for note in send(workspace, "unattended", f"{workspace.root.name} needs a look", text)
        ]
        notes += [] if problems else beat(workspace)
        for note in notes:
            context.log.warning(note)
        return dg.SensorResult(skip_reason="; ".join(problems.values()) or "all is well", cursor=memory.dump())

    return watchdog


def _look(workspace: Workspace, triggers: list[Trigger]) -> Look:
    config = read_block(workspace.params, "retraining", RetrainingConfig)
    served = open_registry(workspace).root / "CURRENT"
    released = datetime.fromtimestamp(served.stat().st_mtime, UTC) if served.exists() else None
    sources = {source: _count(workspace, source) for source in config.sources}
    return Look(sources, triggers, released, timedelta(days=config.max_age_days))


def _count(workspace: Workspace, source: str) -> int | str:
    from pipeline.ingest.selection import Selection
    from pipeline.ingest.sources import list_source  # here: fsspec takes long to load

    config = read_block(workspace.params, "ingest", IngestConfig)
    selection = Selection(config.include, config.exclude)
    try:
        listed = list_source(workspace.root, source, config.settle_seconds, selection)
    except IngestError as error:
        return str(error)
    return len(listed.files) + len(listed.unsettled)


def _triggers(instance: dg.DagsterInstance, now: datetime) -> list[Trigger]:
    """The triggers that are on, with their ticks so far; those of the future are from before the clock was set back."""
    found, until = [], now.timestamp() + FUTURE_SECONDS
    for state in instance.all_instigator_state():
        if state.instigator_name in TRIGGERS and state.is_running:
            ticks = instance.get_ticks(state.instigator_origin_id, state.selector_id, before=until, limit=FAILURES)
            last = datetime.fromtimestamp(ticks[0].timestamp, UTC) if ticks else None
            errors = [tick.error.message.strip().splitlines()[-1] if tick.error else "" for tick in ticks]
            found.append(Trigger(state.instigator_name, last, TRIGGERS[state.instigator_name], errors))
    return found
