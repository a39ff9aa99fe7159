"""A failed run sends what failed, why, and where to look."""

from collections.abc import Iterator

import dagster as dg
import pytest

from pipeline.defs.alerts import build_alerts, describe
from pipeline.defs.failures import explain
from pipeline.workspace import Workspace

SENT = "pipeline.defs.alerts.send"


@dg.asset
def work(context: dg.AssetExecutionContext) -> None:
    fault = context.run.tags.get("fault")
    if fault == "error":
        raise ValueError("no luck\nat all")
    if fault == "failure":
        raise dg.Failure("stage work: out of memory", allow_retries=False)


@dg.asset(deps=[work])
def later(context: dg.AssetExecutionContext) -> None:
    if context.run.tags.get("fault") == "later":
        raise ValueError("a bad end")


@dg.asset_check(asset=work, blocking=True)
def good_enough(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed=context.run.tags.get("fault") != "gate", description="1.2 points worse")


@dg.asset_check(asset=work)
def nice(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed=False, description="only a remark")


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as made:
        yield made


def failed(instance: dg.DagsterInstance, fault: str, **tags: str) -> tuple[dg.ExecuteInProcessResult, dg.DagsterRun]:
    job = dg.define_asset_job("retrain", selection=dg.AssetSelection.all())
    definitions = dg.Definitions(assets=[work, later], asset_checks=[good_enough, nice], jobs=[job])
    result = definitions.resolve_job_def("retrain").execute_in_process(
        instance=instance, tags={"fault": fault} | tags, raise_on_error=False
    )
    run = instance.get_run_by_id(result.run_id)
    assert run is not None
    return result, run


@pytest.mark.seconds
@pytest.mark.parametrize(
    ("fault", "place", "reason"),
    [
        ("error", "stage work", "ValueError: no luck at all"),
        ("failure", "stage work", "stage work: out of memory"),
        ("gate", "gate good_enough", "1.2 points worse"),
        ("later", "stage later", "ValueError: a bad end"),  # also when a check that blocks nothing has not passed
    ],
)
def test_the_place_and_the_reason_are_those_of_the_step_or_gate(
    instance: dg.DagsterInstance, fault: str, place: str, reason: str
) -> None:
    _, run = failed(instance, fault)
    found = explain(instance, run.run_id)
    assert (found.place, found.reason) == (place, reason)


def test_a_run_whose_process_was_killed_has_a_reason_and_no_place(instance: dg.DagsterInstance) -> None:
    job = dg.Definitions(assets=[work], jobs=[dg.define_asset_job("retrain")]).resolve_job_def("retrain")
    run = instance.create_run_for_job(job)
    instance.report_run_failed(run, "Process 7@1.0 is gone; it was killed or the machine went down.")
    assert explain(instance, run.run_id).place == ""
    title, text = describe(instance, run)
    assert title == "retrain failed"
    assert text.startswith("Process 7@1.0 is gone; it was killed or the machine went down.")


def test_the_sensor_is_on_and_sends_title_reason_cause_and_link(
    instance: dg.DagsterInstance, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[tuple[object, ...]] = []

    def send(*alert: object) -> tuple[str, ...]:
        sent.append(alert)
        return ("alert was not delivered",)

    monkeypatch.setattr(SENT, send)
    monkeypatch.setenv("SIMCLR_UI_URL", "https://simclr.example.com/")
    (sensor,) = build_alerts(workspace)
    assert sensor.default_status is dg.DefaultSensorStatus.RUNNING
    result, run = failed(instance, "gate", **{"simclr/reason": "1,204 new images since v0.0.3"})
    (event,) = (event for event in result.all_events if event.event_type == dg.DagsterEventType.RUN_FAILURE)
    context = dg.build_run_status_sensor_context("run_failed", event, instance, run).for_run_failure()
    sensor(context)
    ((where, kind, title, text),) = sent
    assert (where, kind) == (workspace, "run_failed")
    assert title == f"{workspace.root.name}: retrain failed at gate good_enough"
    assert text.splitlines() == [
        "1.2 points worse",
        "Started for: 1,204 new images since v0.0.3",
        f"https://simclr.example.com/runs/{run.run_id}",
    ]


def test_a_run_that_is_started_again_and_one_without_an_address_say_so(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SIMCLR_UI_URL", raising=False)
    _, run = failed(instance, "error")
    _, text = describe(instance, run.with_tags(run.tags | {"dagster/will_retry": "true"}))
    assert "It is started again automatically." in text
    assert f"Run {run.run_id[:8]}, to be seen with `simclr ui`" in text
