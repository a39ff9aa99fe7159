"""The sensor and the schedule start `retrain` for new images, once for each, and say in the UI why they do not."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import dagster as dg
import pytest
import yaml

from pipeline.defs.raw_images import raw_images
from pipeline.defs.retraining import (
    DATA,
    IN_PROGRESS,
    REASON,
    RUN_KEY,
    Retraining,
    build_retraining,
    freshness,
    last_run,
    retrain,
)
from pipeline.defs.stage_assets import ForeseenFailure
from pipeline.dvc import client
from pipeline.errors import BusyError
from pipeline.ingest.ingest import ingest
from pipeline.retraining.inbox import survey
from pipeline.workspace import Workspace
from simclr_core.errors import ConfigError
from tests.conftest import draw, encode
from tests.pipeline.conftest import put


@dg.asset
def work(context: dg.AssetExecutionContext) -> None:
    if context.run.tags.get("fail"):
        raise ValueError("no luck")
    if context.run.tags.get("busy"):
        raise ForeseenFailure(BusyError("busy with gc of process 7"))


def repository(workspace: Workspace) -> tuple[Retraining, dg.RepositoryDefinition]:
    triggers = build_retraining(workspace)
    definitions = dg.Definitions(assets=[work], jobs=[retrain], sensors=triggers.sensors, schedules=triggers.schedules)
    return triggers, definitions.get_repository_def()


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as made:
        yield made


@pytest.fixture
def persistent() -> Iterator[dg.DagsterInstance]:
    """In a folder: the context of a schedule reaches no other one."""
    with dg.instance_for_test() as made:
        yield made


@pytest.fixture(autouse=True)
def released(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The champion, for the tests to set."""
    champion = SimpleNamespace(current=None)
    releases = SimpleNamespace(history=champion)
    monkeypatch.setattr("pipeline.defs.retraining.open_releases", lambda workspace: releases)
    return champion


def configure(workspace: Workspace, **values: object) -> None:
    params = yaml.safe_load(workspace.params.read_text())
    params["retraining"] |= values
    workspace.params.write_text(yaml.safe_dump(params))


def tick(workspace: Workspace, instance: dg.DagsterInstance, cursor: str | None = None) -> tuple[object, str]:
    """What the sensor answers, a run request or a reason, and its cursor."""
    triggers, definitions = repository(workspace)
    context = dg.build_sensor_context(instance, cursor=cursor, repository_def=definitions)
    result = triggers.sensors[0].evaluate_tick(context)
    assert result.cursor is not None
    return (result.run_requests[0] if result.run_requests else result.skip_message), result.cursor


def schedule_tick(workspace: Workspace, instance: dg.DagsterInstance) -> object:
    triggers, definitions = repository(workspace)
    when = datetime(2026, 11, 29, 3, tzinfo=UTC)
    context = dg.build_schedule_context(instance, scheduled_execution_time=when, repository_def=definitions)
    result = triggers.schedules[0].evaluate_tick(context)
    return result.run_requests[0] if result.run_requests else result.skip_message


def execute(instance: dg.DagsterInstance, **tags: str) -> str:
    """A run of `retrain` with these tags, which fails if one of them says so."""
    job = dg.Definitions(assets=[work], jobs=[retrain]).resolve_job_def("retrain")
    return job.execute_in_process(instance=instance, tags=tags, raise_on_error=False).run_id


def test_sensor_and_schedule_are_off_and_take_their_times_from_params_yaml(filled: Workspace) -> None:
    configure(filled, schedule="30 4 * * *", timezone="Europe/Berlin")
    triggers = build_retraining(filled)
    (sensor,), (schedule,) = triggers.sensors, triggers.schedules
    assert (sensor.name, sensor.minimum_interval_seconds) == ("new_images", 60)
    assert sensor.default_status is dg.DefaultSensorStatus.STOPPED
    assert schedule.default_status is dg.DefaultScheduleStatus.STOPPED
    assert (schedule.cron_schedule, schedule.execution_timezone) == ("30 4 * * *", "Europe/Berlin")
    assert sensor.job_name == schedule.job_name == "retrain"


@pytest.mark.parametrize("fault", [{"schedule": "every sunday"}, {"timezone": "Mars/Olympus"}])
def test_a_cron_or_time_zone_that_is_not_valid_is_one_line(filled: Workspace, fault: dict[str, str]) -> None:
    configure(filled, **fault)
    with pytest.raises(ConfigError, match=rf"retraining\.{next(iter(fault))}: given .*, allowed: "):
        build_retraining(filled)
    configure(filled, schedules="0 3 * * 0")
    with pytest.raises(ConfigError, match="did you mean schedule"):
        build_retraining(filled)


def test_the_sensor_starts_a_run_when_enough_images_wait(
    filled: Workspace, instance: dg.DagsterInstance, released: SimpleNamespace
) -> None:
    assert tick(filled, instance)[0] == "40 new images, the sensor waits for 1,000"
    configure(filled, min_new_images=40, sources=["inbox"])
    released.current = SimpleNamespace(name="v0.0.3")
    request, cursor = tick(filled, instance)
    digest = survey(filled, ["inbox"]).digest
    assert isinstance(request, dg.RunRequest)
    assert request.run_key == json.loads(cursor)["digest"] == digest
    assert request.tags[DATA] == digest
    assert request.tags[REASON] == "40 new images since v0.0.3"
    assert request.run_config == {"ops": {"raw_images": {"config": {"sources": ["inbox"]}}}}
    job = dg.Definitions(assets=[raw_images], jobs=[retrain], resources={"workspace": filled})
    dg.validate_run_config(job.resolve_job_def("retrain"), request.run_config)


def test_the_schedule_takes_a_single_image_also_while_others_arrive(
    workspace: Workspace, persistent: dg.DagsterInstance
) -> None:
    assert schedule_tick(workspace, persistent) == "nothing new"
    put(workspace, "unlabeled/one.png", encode(draw(0, 1)), age=1)
    request = schedule_tick(workspace, persistent)
    assert isinstance(request, dg.RunRequest)
    assert request.tags[REASON] == "1 new image"


def test_the_sensor_waits_for_quiet_also_when_files_arrive_with_old_times(
    filled: Workspace, instance: dg.DagsterInstance
) -> None:
    configure(filled, min_new_images=1, quiet_minutes=10)
    put(filled, "unlabeled/fresh.png", encode(draw(0, 900)), age=125)
    waiting = "the last file arrived {}; waiting for 10 quiet minutes"
    assert tick(filled, instance)[0] == waiting.format("2 minutes ago")
    os.utime(filled.inbox / "unlabeled" / "fresh.png", (0, 0))
    request, cursor = tick(filled, instance)
    assert isinstance(request, dg.RunRequest)
    put(filled, "unlabeled/moved.png", encode(draw(0, 901)), age=86400)
    reason, cursor = tick(filled, instance, cursor)
    assert reason == waiting.format("a moment ago")
    earlier = json.loads(cursor) | {"since": time.time() - 601}
    assert isinstance(tick(filled, instance, json.dumps(earlier))[0], dg.RunRequest)
    almost = json.loads(cursor) | {"since": time.time() - 540}
    assert tick(filled, instance, json.dumps(almost))[0] == waiting.format("9 minutes ago")


def test_times_in_the_future_hold_up_nothing(filled: Workspace, instance: dg.DagsterInstance) -> None:
    """Of a camera whose clock is wrong, or from before this machine's clock was set back."""
    configure(filled, min_new_images=1, quiet_minutes=10)
    ahead = time.time() + 86_400
    os.utime(next(filled.inbox.rglob("*.png")), (ahead, ahead))
    _, cursor = tick(filled, instance)
    seen = json.loads(cursor)
    reason, later = tick(filled, instance, json.dumps(seen | {"since": ahead}))
    assert reason == "the last file arrived a moment ago; waiting for 10 quiet minutes"
    assert json.loads(later)["since"] <= time.time()
    assert isinstance(tick(filled, instance, json.dumps(seen | {"since": time.time() - 601}))[0], dg.RunRequest)


@pytest.mark.parametrize("cursor", ["", "1234", "{}", "[]", '{"digest": 3, "since": "yesterday"}', "not json"])
def test_an_unreadable_cursor_is_ignored(filled: Workspace, instance: dg.DagsterInstance, cursor: str) -> None:
    configure(filled, min_new_images=1)
    assert isinstance(tick(filled, instance, cursor)[0], dg.RunRequest)


@pytest.mark.seconds
def test_only_new_images_start_a_run_after_one_has_finished(filled: Workspace, persistent: dg.DagsterInstance) -> None:
    configure(filled, min_new_images=1)
    digest = survey(filled, ["inbox"]).digest
    execute(persistent, **{DATA: digest})
    assert tick(filled, persistent)[0] == "nothing new"
    assert schedule_tick(filled, persistent) == "nothing new"
    put(filled, "unlabeled/new.png", encode(draw(0, 900)))
    assert isinstance(tick(filled, persistent)[0], dg.RunRequest)


@pytest.mark.seconds
def test_after_a_failed_run_only_a_person_or_new_images_start_another(
    filled: Workspace, persistent: dg.DagsterInstance
) -> None:
    configure(filled, min_new_images=1)
    digest = survey(filled, ["inbox"]).digest
    run_id = execute(persistent, **{DATA: digest, "fail": "yes"})
    reason = (
        f"the last run with these images failed at stage work ({run_id[:8]}); "
        "fix the cause and start `retrain` in the UI, or add images"
    )
    assert tick(filled, persistent)[0] == reason
    assert schedule_tick(filled, persistent) == reason
    execute(persistent, **{DATA: digest})  # a person's run, which writes its digest down after the ingest
    assert tick(filled, persistent)[0] == "nothing new"
    put(filled, "unlabeled/new.png", encode(draw(0, 900)))
    assert isinstance(tick(filled, persistent)[0], dg.RunRequest)


def test_the_sensor_leaves_a_workspace_alone_that_a_command_holds(
    filled: Workspace, persistent: dg.DagsterInstance
) -> None:
    """Dagster does not know of a command at a terminal, such as `simclr gc`."""
    configure(filled, min_new_images=1)
    with client.exclusive(filled.root, "gc"):
        for said in (tick(filled, persistent)[0], schedule_tick(filled, persistent)):
            assert str(said).startswith("40 new images; the workspace is busy with gc of process")
    assert isinstance(tick(filled, persistent)[0], dg.RunRequest)


@pytest.mark.seconds
def test_a_run_that_a_command_was_quicker_than_is_started_again(
    filled: Workspace, instance: dg.DagsterInstance
) -> None:
    """The command began after the sensor had looked, and before the run had the workspace."""
    configure(filled, min_new_images=1)
    first, _ = tick(filled, instance)
    assert isinstance(first, dg.RunRequest)
    run_id = execute(instance, **first.tags, **{RUN_KEY: str(first.run_key), "busy": "yes"})
    again, _ = tick(filled, instance)
    assert isinstance(again, dg.RunRequest)
    assert (again.run_key, again.tags[DATA]) == (f"{first.run_key}-{run_id[:8]}", first.tags[DATA])
    execute(instance, **again.tags, **{RUN_KEY: str(again.run_key), "fail": "yes"})
    assert str(tick(filled, instance)[0]).startswith("the last run with these images failed at stage work")


def test_a_failure_after_the_ingest_is_remembered_though_nothing_is_new_in_the_inbox(
    filled: Workspace, instance: dg.DagsterInstance
) -> None:
    configure(filled, min_new_images=1)
    before = survey(filled, ["inbox"]).digest
    ingest(filled)
    after = survey(filled, ["inbox"])
    assert after.digest != before
    assert after.untrained == 40
    execute(instance, **{DATA: after.digest, "dagster/run_key": before, "fail": "yes"})
    assert str(tick(filled, instance)[0]).startswith("the last run with these images failed at stage work")


def test_a_run_key_is_never_requested_twice(filled: Workspace, instance: dg.DagsterInstance) -> None:
    """Dagster would drop the request, and the UI would show a tick that started nothing for no reason."""
    configure(filled, min_new_images=1)
    execute(instance, **{DATA: "0" * 16, "dagster/run_key": survey(filled, ["inbox"]).digest, "fail": "yes"})
    assert str(tick(filled, instance)[0]).startswith("the last run with these images failed")


@pytest.mark.parametrize(
    ("status", "tags", "expected"),
    [
        (dg.DagsterRunStatus.NOT_STARTED, {}, "a run is in progress"),
        (dg.DagsterRunStatus.STARTING, {}, "a run is in progress"),
        (dg.DagsterRunStatus.STARTED, {}, "a run is in progress"),
        (dg.DagsterRunStatus.CANCELING, {}, "a run is in progress"),
        (dg.DagsterRunStatus.STARTED, {DATA: "this"}, "a run with these images is in progress"),
        (dg.DagsterRunStatus.CANCELED, {DATA: "this"}, "the last run with these images was canceled"),
        (dg.DagsterRunStatus.FAILURE, {DATA: "this"}, "the last run with these images failed"),
        (
            dg.DagsterRunStatus.FAILURE,
            {DATA: "this", "dagster/will_retry": "true"},
            "a run with these images is in progress",
        ),
        (dg.DagsterRunStatus.SUCCESS, {DATA: "this"}, "nothing new"),
    ],
)
def test_every_state_of_the_last_run_has_its_reason(
    filled: Workspace,
    instance: dg.DagsterInstance,
    status: dg.DagsterRunStatus,
    tags: dict[str, str],
    expected: str,
) -> None:
    configure(filled, min_new_images=1)
    digest = survey(filled, ["inbox"]).digest
    job = dg.Definitions(assets=[work], jobs=[retrain]).resolve_job_def("retrain")
    instance.create_run_for_job(
        job, status=status, tags={name: digest if value == "this" else value for name, value in tags.items()}
    )
    assert str(tick(filled, instance)[0]).startswith(expected)


def test_a_run_that_has_not_ended_is_continuing() -> None:
    ended = {dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED}
    elsewhere = {dg.DagsterRunStatus.MANAGED, dg.DagsterRunStatus.SUSPENDED}  # no run of ours is ever in these
    assert set(IN_PROGRESS) == set(dg.DagsterRunStatus) - ended - elsewhere


def test_the_failed_place_of_a_run_without_a_failed_step_is_left_out(instance: dg.DagsterInstance) -> None:
    job = dg.Definitions(assets=[work], jobs=[retrain]).resolve_job_def("retrain")
    run = instance.create_run_for_job(job, tags={DATA: "abc"})
    instance.report_run_failed(run, "Process 7@1.0 is gone")
    found = last_run(instance, "abc")
    assert found is not None
    assert (found.status, found.failed_at) == ("failed", "")


def test_an_encoder_is_overdue_after_max_age_days(filled: Workspace) -> None:
    configure(filled, max_age_days=10)
    policy = freshness(filled)
    assert policy == dg.FreshnessPolicy.time_window(timedelta(days=10), timedelta(days=8))
    configure(filled, max_age_days=0.0001)
    assert freshness(filled)


@pytest.mark.slow
def test_the_triggers_load_no_heavy_library() -> None:
    code = "import sys, pipeline.defs.retraining as r; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "pandas", "pyarrow", "great_expectations", "onnxruntime", "matplotlib"}
    assert not set(done.stdout.split()) & heavy
