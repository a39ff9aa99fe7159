"""The watchdog in Dagster: it reads the states of the triggers, sends what is due, and beats only while all is well."""

import json
import shutil
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from types import SimpleNamespace

import dagster as dg
import pytest
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.scheduler.instigation import TickData, TickStatus

from pipeline.defs import build_definitions, watchdog
from pipeline.ingest.stamps import STAMPS, Stamps
from pipeline.retraining import confirmed
from pipeline.retraining.watchdog import Memory
from pipeline.runs.dagster_internals import ScheduleInstigatorData, SensorInstigatorData, last_cron_tick
from pipeline.workspace import Workspace
from tests.pipeline.runs.test_clock import state


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    messages: list[str] = []
    monkeypatch.setattr(watchdog, "send", lambda place, event, title, text: messages.append(text) or ())
    monkeypatch.setattr(watchdog, "beat", lambda place: messages.append("beat") or ("no answer",))
    return messages


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test() as made:
        yield made


@pytest.fixture
def sensor_on(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sensor ticks in time, and the inbox is there."""
    monkeypatch.setattr(watchdog, "_triggers", lambda _, schedule, now: [watchdog.Trigger("new_images", now, now, ())])
    workspace.inbox.mkdir(exist_ok=True)


def tick(workspace: Workspace, instance: dg.DagsterInstance, cursor: str | None) -> SimpleNamespace:
    definitions = build_definitions(workspace)
    context = dg.build_sensor_context(instance, cursor=cursor, definitions=definitions)
    return definitions.resolve_sensor_def("watchdog").evaluate_tick(context)  # type: ignore[return-value]


@pytest.mark.seconds
def test_it_rests_while_no_trigger_is_on(workspace: Workspace, instance: dg.DagsterInstance, sent: list[str]) -> None:
    assert tick(workspace, instance, None).skip_message == "the sensor new_images and the schedule are off"
    assert sent == []


@pytest.mark.seconds
@pytest.mark.usefixtures("sensor_on")
def test_it_beats_while_all_is_well_and_alerts_when_a_source_is_gone(
    workspace: Workspace, instance: dg.DagsterInstance, sent: list[str]
) -> None:
    first = tick(workspace, instance, None)
    assert (first.skip_message, sent) == ("all is well", ["beat"])
    assert json.loads(first.cursor)["files"].keys() == {"inbox"}
    shutil.rmtree(workspace.inbox)
    second = tick(workspace, instance, first.cursor)
    assert "the source inbox cannot be listed" in second.skip_message
    assert len(sent) == 2
    assert "is it mounted?" in sent[-1]
    tick(workspace, instance, second.cursor)
    assert len(sent) == 2  # neither a second alert nor a beat


@pytest.mark.seconds
def test_ticks_from_before_the_clock_was_set_back_hide_no_others(
    workspace: Workspace, instance: dg.DagsterInstance, sent: list[str]
) -> None:
    """A sensor that fails, or has not ticked, would be silent until the old time."""
    on = state("new_images", SensorInstigatorData())
    instance.add_instigator_state(on)
    for at in (time.time() + 40 * 24 * 3600, time.time() - 1800):
        names = (on.instigator_origin_id, on.instigator_name, InstigatorType.SENSOR)
        instance.create_tick(TickData(*names, TickStatus.SKIPPED, at, selector_id=on.selector_id))
    assert "new_images has not ticked for 30 minutes" in tick(workspace, instance, watched("new_images ")).skip_message
    assert len(sent) == 1


@pytest.mark.seconds
def test_a_schedule_is_a_problem_until_it_ticks(
    workspace: Workspace, instance: dg.DagsterInstance, sent: list[str]
) -> None:
    a_week_ago, cron = time.time() - 8 * 24 * 3600, "0 3 * * 0"
    on = state("scheduled", ScheduleInstigatorData(cron, a_week_ago))
    instance.add_instigator_state(on)
    missed = tick(workspace, instance, watched(f"scheduled {cron}"))
    assert "scheduled did not tick at 20" in missed.skip_message
    assert f":00 UTC, as `{cron}` says" in missed.skip_message
    due = last_cron_tick(cron, "UTC", datetime.now(UTC)).timestamp()
    names = (on.instigator_origin_id, on.instigator_name, InstigatorType.SCHEDULE)
    instance.create_tick(TickData(*names, TickStatus.SKIPPED, due, selector_id=on.selector_id))
    assert tick(workspace, instance, missed.cursor).skip_message == "all is well"
    assert sent[-1] == "beat"


@pytest.mark.seconds
@pytest.mark.usefixtures("sensor_on")
def test_a_source_that_is_empty_at_the_first_look_is_compared_with_the_last_ingest(
    workspace: Workspace, instance: dg.DagsterInstance, sent: list[str]
) -> None:
    """Its mount was gone before the sensor was switched on, or Dagster's records are new."""
    base, _ = confirmed.count_files(workspace, "inbox")
    seen = {(base, f"{number}.png"): ("stamp", f"sha {number}") for number in range(12)}
    Stamps(workspace.scratch / STAMPS).record(seen, "", {base})
    before = tick(workspace, instance, None)
    assert "the source inbox has 0 files, and had 12" in before.skip_message
    confirmed.confirm(workspace, "inbox")
    assert tick(workspace, instance, before.cursor).skip_message == "all is well"
    assert sent[1:] == ["beat"]


def watched(key: str) -> str:
    """The memory of a watchdog that has looked every few minutes, and saw the trigger switched on a day ago."""
    return Memory(on={key: time.time() - 9e5}, looked=time.time() - 300, resumed=time.time() - 9e5).dump()
