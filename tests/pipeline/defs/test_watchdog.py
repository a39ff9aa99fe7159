"""The watchdog in Dagster: it reads the states of the triggers, sends what is due, and beats only while all is well."""

import json
import shutil
from collections.abc import Iterator
from types import SimpleNamespace

import dagster as dg
import pytest

from pipeline.defs import build_definitions, watchdog
from pipeline.workspace import Workspace


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
    monkeypatch.setattr(watchdog, "_triggers", lambda instance: [watchdog.Trigger("new_images", None, True, ())])
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
