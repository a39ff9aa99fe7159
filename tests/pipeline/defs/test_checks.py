"""The gates in Dagster: what becomes of a verdict, which are recorded, and that nothing runs behind one that blocks."""

from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest

from deploy.artifact import identity, publish
from pipeline.defs.checks import GATES, RETRY, check_result, drift_check
from pipeline.defs.failures import GateFailure
from pipeline.defs.translator import asset_key
from pipeline.errors import ReleaseError
from pipeline.gates.verdict import Verdict
from pipeline.release.registry import open_registry
from pipeline.run_report.page import write
from pipeline.runs.instance import opened
from pipeline.workspace import Workspace
from tests.pipeline.gates.conftest import Case
from tests.pipeline.gates.reports import COMPARE, COMPARISON, DRIFT, EMBEDDING_DRIFT, EXPORT, PRETRAIN, VALIDATION, pair

RUN_ID = "b1946ac9"
BAD = {
    "data_contract": ("reports/validation.json", VALIDATION | {"passed": False}),
    "not_collapsed": ("reports/pretrain.json", PRETRAIN | {"collapsed": True}),
    "onnx_parity": ("reports/export.json", EXPORT | {"passed": False}),
    "representation": (COMPARISON, COMPARE | {"knn": pair(0, 200)}),
    "size_budget": (COMPARISON, COMPARE | {"megabytes": {"candidate": 9.0, "champion": 4.0}}),
}


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


@pytest.fixture
def candidate(tmp_path: Path) -> str:
    """A candidate, and the name under which its rejections are recorded."""
    with publish(tmp_path / "models" / "pretrained") as work:
        (work / "model.json").write_text("{}")
    return identity(tmp_path / "models" / "pretrained")[:12]


@pytest.fixture
def rejections(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What gates have reported the registry: workspace, candidate, gate, reason, run, metrics."""
    calls: list[tuple[Any, ...]] = []

    def opened(workspace: Workspace) -> SimpleNamespace:
        return SimpleNamespace(reject=lambda *refused: calls.append((workspace, *refused)))

    monkeypatch.setattr("pipeline.release.registry.open_registry", opened)
    return calls


def find(name: str) -> dg.AssetChecksDefinition:
    """The step that asks this gate."""
    (check,) = [check for check in GATES if name in {key.name for key in check.check_keys}]
    return check


def check(case: Case, gate: str) -> dg.AssetCheckResult:
    """Put the report that is bad news for this gate, and ask it as Dagster does."""
    case.put(*BAD[gate])
    with pytest.MonkeyPatch.context() as patch:
        # Dagster gives no run to a check that is called directly.
        patch.setattr(dg.AssetCheckExecutionContext, "run", SimpleNamespace(run_id=RUN_ID))
        results = []
        with suppress(GateFailure):
            results += find(gate)(dg.build_asset_check_context(), Workspace(case.folder))
    (result,) = [result for result in results if result.check_name == gate]
    assert isinstance(result, dg.AssetCheckResult)
    return result


def test_a_check_result_shows_every_part_of_its_verdict() -> None:
    numbers = {"top1": 71.5, "images": 40, "holds": True, "version": "v1", "p": None, "ids": ["a"], "dark": {"n": 2}}
    error = check_result(Verdict(passed=False, description="too little", numbers=numbers))
    assert (error.passed, error.description, error.severity) == (False, "too little", dg.AssetCheckSeverity.ERROR)
    assert {name: entry.value for name, entry in error.metadata.items()} == {"verdict": "refused", **numbers}
    assert error.metadata["ids"] == dg.MetadataValue.json(["a"])
    assert error.metadata["dark"] == dg.MetadataValue.json({"n": 2})
    warning = check_result(Verdict(True, "fine", severity="warning"), asset_key("data/manifest"), "no_gps")
    assert (warning.passed, warning.severity) == (True, dg.AssetCheckSeverity.WARN)
    assert (warning.asset_key, warning.check_name) == (asset_key("data/manifest"), "no_gps")


def test_every_gate_blocks_waits_for_the_workspace_and_has_a_description() -> None:
    specs: dict[str, Any] = {}
    for gate in GATES:
        specs |= {spec.name: spec for spec in gate.check_specs}
        assert gate.node_def.pool == "dvc"  # a report must not change under the gate that reads it
    assert len(specs) == 9
    assert all(spec.blocking and spec.description.rstrip().endswith(".") for spec in specs.values())
    at_the_end = {name for name, spec in specs.items() if spec.asset_key == asset_key("reports/compare.json")}
    quality = {"beats_baselines", "representation", "low_label"}
    assert at_the_end == quality | {"latency_budget", "size_budget", "old_index"}


def test_drift_warns_about_the_asset_of_its_stage_and_does_not_block(case: Case) -> None:
    (spec,) = drift_check.check_specs
    assert (spec.name, spec.asset_key, spec.blocking) == ("embedding_drift", asset_key(EMBEDDING_DRIFT), False)
    assert spec.description == "To the released encoder, the newest batch looks like the earlier images."
    case.put(EMBEDDING_DRIFT, DRIFT)
    result = drift_check(workspace=Workspace(case.folder))
    assert isinstance(result, dg.AssetCheckResult)
    assert (result.passed, result.severity) == (False, dg.AssetCheckSeverity.WARN)


def test_a_rejection_records_candidate_gate_reason_run_and_numbers(
    case: Case, candidate: str, rejections: list[tuple[Any, ...]]
) -> None:
    """Through Dagster as it is, in its own run as when a gate is repeated from the UI: nothing is computed."""
    case.put(*BAD["not_collapsed"])
    gate = find("not_collapsed")
    repeat = dg.define_asset_job("repeat", selection=dg.AssetSelection.checks(gate))

    @dg.asset(key=asset_key("models/pretrained"))
    def pretrained() -> None:
        raise AssertionError("repeating a gate must not train anything")

    definitions = dg.Definitions(
        [pretrained], asset_checks=[gate], jobs=[repeat], resources={"workspace": Workspace(case.folder)}
    )
    result = definitions.resolve_job_def("repeat").execute_in_process(raise_on_error=False)
    (evaluation,) = result.get_asset_check_evaluations()
    assert not evaluation.passed
    numbers = {"effective_rank": 31.5, "feature_std": 0.4}
    ((workspace, *recorded),) = rejections
    assert workspace.root == case.folder
    assert recorded == [candidate, "not_collapsed", evaluation.description, result.run_id, numbers]


@pytest.mark.seconds
def test_the_registry_records_the_rejection_by_each_gate(case: Case, candidate: str) -> None:
    result = check(case, "representation")
    assert not check(case, "size_budget").passed
    (kept,) = open_registry(Workspace(case.folder)).rejections()
    assert (kept.candidate, kept.run_id) == (candidate, RUN_ID)
    assert kept.gate == "representation, size_budget"
    assert result.description is not None
    assert result.description in kept.reason
    assert kept.metrics["knn/difference"] == -10


@pytest.mark.seconds
@pytest.mark.parametrize(
    ("gate", "report"),
    [
        ("data_contract", BAD["data_contract"][1]),  # there is no candidate yet
        ("not_collapsed", PRETRAIN),
        ("not_collapsed", "{}"),  # a broken report does not judge the candidate
        ("size_budget", "{"),
    ],
)
def test_only_verdicts_against_the_candidate_are_recorded(
    case: Case,
    candidate: str,
    rejections: list[tuple[Any, ...]],
    monkeypatch: pytest.MonkeyPatch,
    gate: str,
    report: object,
) -> None:
    monkeypatch.setitem(BAD, gate, (BAD[gate][0], report))
    assert check(case, gate).passed is (report == PRETRAIN)
    assert rejections == []


@pytest.mark.parametrize("fault", ["no candidate", "registry"])
def test_a_rejection_that_cannot_be_recorded_does_not_change_the_verdict(
    case: Case, fault: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fault == "registry":
        request.getfixturevalue("candidate")

        def refuse(*_: object) -> None:
            raise ReleaseError("registry: cannot be written")

        monkeypatch.setattr("pipeline.release.registry.open_registry", refuse)
    result = check(case, "onnx_parity")
    assert not result.passed
    assert result.description == (
        "lowest cosine 0.999999, largest difference 1e-05 on 64 images, which reports/export.json calls too far apart; "
        "`simclr run --select export` exports again"
    )


@pytest.mark.parametrize("passed", [True, False])
def test_a_failed_gate_stops_every_later_step(
    case: Case, candidate: str, rejections: list[tuple[Any, ...]], passed: bool
) -> None:
    case.put("reports/pretrain.json", PRETRAIN | {"collapsed": not passed})

    @dg.asset(key=asset_key("models/pretrained"))
    def pretrained() -> None: ...

    @dg.asset(key=asset_key("models/probe"), deps=[pretrained])
    def probe() -> None: ...

    @dg.asset(key=asset_key("models/bundle"), deps=[probe])
    def bundle() -> None: ...

    result = dg.materialize(
        [pretrained, probe, bundle, find("not_collapsed")],
        resources={"workspace": Workspace(case.folder)},
        raise_on_error=False,
    )
    computed = [event.asset_key.path[-1] for event in result.get_asset_materialization_events() if event.asset_key]
    assert computed == (["pretrained", "probe", "bundle"] if passed else ["pretrained"])
    assert result.success is passed
    assert len(rejections) == (not passed)
    failures = [
        event.step_failure_data.user_failure_data for event in result.filter_events(lambda e: e.is_step_failure)
    ]
    assert len(failures) == (not passed)
    for failure in failures:  # the last error of the step in the UI
        assert failure.description.startswith(
            "models/pretrained did not pass not_collapsed: all images have nearly the"
        )
        assert failure.description.endswith("; nothing that follows has run")
        assert failure.metadata["next step"].value == RETRY


def test_what_a_failed_gate_leaves_in_the_ui_links_to_the_report(workspace: Workspace) -> None:
    with opened(workspace.root) as instance:
        failure = GateFailure(instance, ["a did not pass b: c"] * 9, "do d", write(workspace))
    assert failure.description == f"{'; '.join(['a did not pass b: c'] * 8)}; and 1 more; nothing that follows has run"
    assert failure.metadata["report"].value.startswith("[run.html](/logs/pages/compute_logs/")
