"""What starts the job `retrain`: a sensor for new images, a schedule, or a person.

Both triggers ask ``pipeline.retraining.decide``, and both are off until they are switched on in the UI. The schedule
takes what is there; the sensor waits for enough new images, and until no file has arrived for some minutes.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg

from pipeline.config import RetrainingConfig
from pipeline.defs.failures import explain
from pipeline.dvc import client
from pipeline.release.releases import open_releases
from pipeline.retraining.decide import Inbox, LastRun, Policy, Run, Skip, decide
from pipeline.runs.dagster_internals import WILL_RETRY_TAG
from pipeline.workspace import Workspace
from simclr_core.params import read_block

# Tag of a run: digest of the inbox it was started for and then, more precisely, has ingested. The UI hides it.
DATA = ".dagster/simclr-data"
REASON = "simclr/reason"
RUN_KEY = "dagster/run_key"
IN_PROGRESS = (
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
)

retrain = dg.define_asset_job(
    "retrain",
    selection=dg.AssetSelection.all(),
    description="Ingest what is new and bring every stage up to date; what has not changed is skipped.",
)


@dataclass(frozen=True)
class Retraining:
    """What starts the runs of a workspace."""

    sensors: Sequence[dg.SensorDefinition]
    schedules: Sequence[dg.ScheduleDefinition]


def build_retraining(workspace: Workspace) -> Retraining:
    """The sensor and the schedule of ``retrain``; cron and time zone are those of params.yaml now.

    Raises:
        ConfigError: the block ``retraining`` has faults, such as a cron or a time zone that is not valid.
    """
    config = _read(workspace)

    @dg.sensor(
        name="new_images",
        job=retrain,
        minimum_interval_seconds=60,
        default_status=dg.DefaultSensorStatus.STOPPED,
        description="Starts a run when enough new images have arrived and no more are being copied.",
    )
    def new_images(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        now = datetime.now(UTC)
        found, cursor = _watch(_survey(workspace, _read(workspace).full_listing_minutes), context.cursor, now)
        answer = _decide(workspace, context.instance, found, now, _policy(_read(workspace)))
        if isinstance(answer, Skip):
            return dg.SensorResult(skip_reason=answer.reason, cursor=cursor)
        return dg.SensorResult(run_requests=[_request(answer, workspace)], cursor=cursor)

    def scheduled(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        policy = replace(_policy(_read(workspace)), min_new_images=1, quiet_minutes=0)
        answer = _decide(workspace, context.instance, _survey(workspace, 0.0), datetime.now(UTC), policy)
        return dg.SkipReason(answer.reason) if isinstance(answer, Skip) else _request(answer, workspace)

    schedule = dg.ScheduleDefinition(
        name="scheduled",
        job=retrain,
        cron_schedule=config.schedule,
        execution_timezone=config.timezone,
        execution_fn=scheduled,
        default_status=dg.DefaultScheduleStatus.STOPPED,
        description=f"Starts a run at {config.schedule} ({config.timezone}) if anything is new.",
    )
    return Retraining([new_images], [schedule])


def freshness(workspace: Workspace) -> dg.FreshnessPolicy:
    """An encoder released longer ago than ``retraining.max_age_days`` is shown as overdue, with a warning before."""
    limit = max(timedelta(days=_read(workspace).max_age_days), timedelta(minutes=2))  # Dagster allows no shorter one
    return dg.FreshnessPolicy.time_window(fail_window=limit, warn_window=limit * 0.8)


def last_run(instance: dg.DagsterInstance, digest: str) -> LastRun | None:
    """The run in progress, else the latest one with the images of this digest."""
    for run in instance.get_runs(dg.RunsFilter(statuses=list(IN_PROGRESS)), limit=1):
        return LastRun(run.run_id, "in_progress", run.tags.get(DATA))
    found = instance.get_runs(dg.RunsFilter(tags={DATA: digest}), limit=1)
    # A run that was started for them and has then ingested more; Dagster would drop a second one without a word.
    found = found or instance.get_runs(dg.RunsFilter(tags={RUN_KEY: digest}), limit=1)
    if not found:
        return None
    (run,) = found
    if run.status == dg.DagsterRunStatus.SUCCESS:
        return LastRun(run.run_id, "succeeded", digest)
    if run.status == dg.DagsterRunStatus.CANCELED:
        return LastRun(run.run_id, "canceled", digest)
    if run.tags.get(WILL_RETRY_TAG) == "true":
        return LastRun(run.run_id, "in_progress", digest)
    cause = explain(instance, run.run_id)
    return LastRun(run.run_id, "failed", digest, cause.place, cause.busy)


def _decide(
    workspace: Workspace, instance: dg.DagsterInstance, found: Inbox, now: datetime, policy: Policy
) -> Run | Skip:
    current = open_releases(workspace).history.current
    released = current.name if current else None
    answer = decide(found, last_run(instance, found.digest), released, now, policy)
    holder = client.holder(workspace.root) if isinstance(answer, Run) else ""
    return Skip(f"{answer.reason}; the workspace is busy with {holder}") if holder else answer


def _request(answer: Run, workspace: Workspace) -> dg.RunRequest:
    return dg.RunRequest(
        run_key=answer.run_key,
        run_config={"ops": {"raw_images": {"config": {"sources": list(_read(workspace).sources)}}}},
        tags={DATA: answer.digest, REASON: answer.reason},
    )


def _watch(found: Inbox, cursor: str | None, now: datetime) -> tuple[Inbox, str]:
    """What was moved here, or copied with its times, is as old as before: that it arrived shows between two looks.

    The cursor holds the digest that the look before saw, and when it was first seen.
    """
    before = _parse(cursor)
    unchanged = before.get("digest") == found.digest
    since = before.get("since") if unchanged else now.timestamp() if before else None
    if found.last_change is not None and found.last_change > now:  # the time of another clock
        found, since = replace(found, last_change=None), since or now.timestamp()
    if since is not None:
        since = min(since, now.timestamp())  # the clock may have been set back
    after = json.dumps({"digest": found.digest, "since": since})
    if since is None:
        return found, after
    arrived = datetime.fromtimestamp(since, UTC)
    return replace(found, last_change=max(arrived, found.last_change or arrived)), after


def _parse(cursor: str | None) -> dict[str, Any]:
    """What an earlier version, or a person in the UI, has written as cursor counts as none."""
    try:
        value = json.loads(cursor or "")
    except ValueError:
        return {}
    return value if isinstance(value, dict) and isinstance(value.get("since"), float | None) else {}


def _survey(workspace: Workspace, minutes: float) -> Inbox:
    """By a listing of at most this age, of folders without news."""
    from pipeline.retraining.inbox import (
        survey,  # here, because a code location has to load quickly and it brings fsspec
    )

    return survey(workspace, _read(workspace).sources, age=60 * minutes)


def _read(workspace: Workspace) -> RetrainingConfig:
    return read_block(workspace.params, "retraining", RetrainingConfig)


def _policy(config: RetrainingConfig) -> Policy:
    return Policy(config.min_new_images, config.min_new_images_after_drift, config.quiet_minutes)
