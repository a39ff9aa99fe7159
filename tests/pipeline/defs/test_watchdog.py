"""The watchdog in Dagster: it reads the states of the triggers, sends what is due, and beats only while all is well."""

import json
import shutil
import time
from collections.abc import Iterator
from types import SimpleNamespace

import dagster as dg
import pytest
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.scheduler.instigation import TickData, TickStatus

from pipeline.defs import build_definitions, watchdog
from pipeline.runs.dagster_internals import SensorInstigatorData
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


def tick(workspace: Workspace, instance: dg.DagsterInstance, cursor: str | None) -> SimpleNamespace:
    definitions = build_definitions(workspace)
    context = dg.build_sensor_context(instance, cursor=cursor, definitions=definitions)
    return definitions.resolve_sensor_def("watchdog").evaluate_tick(context)  # type: ignore[return-value]


@pytest.mark.seconds
def test_it_rests_while_no_trigger_is_on(workspace: Workspace, instance: dg.DagsterInstance, sent: list[str]) -> None:
    assert tick(workspace, instance, None).skip_message == "the sensor new_images and the schedule are off"
    assert sent == []


@pytest.mark.seconds
def test_it_beats_while_all_is_well_and_alerts_when_a_source_is_gone(
    workspace: Workspace, instance: dg.DagsterInstance, sent: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "_triggers", lambda instance, now: [watchdog.Trigger("new_images", None, True, ())])
    workspace.inbox.mkdir(exist_ok=True)
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
    assert "new_images has not ticked for 30 minutes" in tick(workspace, instance, None).skip_message
    assert len(sent) == 1
