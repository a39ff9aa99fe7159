"""The gates between the stages: what passes, what does not, what is recorded, and that nothing runs behind it."""

import json
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from pipeline.defs.checks import GATES
from pipeline.defs.translator import asset_key
from pipeline.errors import ReleaseError
from pipeline.workspace import Workspace
from tests.pipeline.gates.reports import Rejections, changed, find, judge, put_pretrained, record_rejections

VALIDATION = {
    "images": {"ingested": 12, "accepted": 9, "converted": 1, "quarantined": {"truncated": 2, "empty_file": 1}},
    "passed": True,
    "expectations": [
        {"name": "enough_images", "severity": "critical", "success": True, "observed": 9, "threshold": 1},
        {"name": "few_truncated", "severity": "warning", "success": False, "observed": 0.17, "threshold": 0.1},
    ],
}
PRETRAIN = {
    "finite": True,
    "collapsed": False,
    "loss_first": 5.1,
    "loss_last": 4.2,
    "loss_chance": 6.2,
    "effective_rank": 31.5,
    "feature_std": 0.4,
}
LINEAR_EVAL = {
    "simclr": {"linear_top1": {"0.01": 60.0, "0.1": 70.0}},
    "random_init": {"linear_top1": {"0.01": 50.0, "0.1": 65.0}},
    "reason": None,
}
EXPORT = {"cosine_min": 0.999999, "max_abs": 1e-5, "images": 64, "passed": True}
REPORTS = {
    "data_contract": ("reports/validation.json", VALIDATION),
    "not_collapsed": ("reports/pretrain.json", PRETRAIN),
    "probe_beats_random_init": ("reports/linear_eval.json", LINEAR_EVAL),
    "onnx_parity": ("reports/export.json", EXPORT),
}


@pytest.fixture
def rejections(monkeypatch: pytest.MonkeyPatch) -> Rejections:
    return record_rejections(monkeypatch)


def judged(folder: Path, gate: str, text: str | None) -> dg.AssetCheckResult:
    return judge(folder, gate, {} if text is None else {REPORTS[gate][0]: text})


@pytest.mark.parametrize("gate", REPORTS)
def test_a_good_report_passes_and_a_missing_or_broken_one_does_not(
    tmp_path: Path, gate: str, rejections: Rejections
) -> None:
    path, report = REPORTS[gate]
    missing = judged(tmp_path, gate, None)
    assert not missing.passed
    assert missing.description == f"{path} does not exist; run the stage that writes it"
    assert judged(tmp_path, gate, json.dumps(report)).passed
    for text in (json.dumps(report)[:-5], "", "[]", "{}", "null", '"text"', json.dumps({"images": None, "simclr": 3})):
        broken = judged(tmp_path, gate, text)
        assert not broken.passed, text
        assert broken.description is not None
        assert path in broken.description
    assert rejections == [], "a missing report says nothing about the candidate"


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_what_is_not_a_number_does_not_pass(tmp_path: Path, constant: str) -> None:
    """No comparison with it is true, nor is the opposite one."""
    text = json.dumps(PRETRAIN).replace("4.2", constant)
    result = judged(tmp_path, "not_collapsed", text)
    assert not result.passed
    assert result.description is not None
    assert f"{constant} is not a number" in result.description


def test_the_data_contract_counts_reasons_and_lists_what_is_broken(tmp_path: Path, rejections: Rejections) -> None:
    result = judged(tmp_path, "data_contract", changed(VALIDATION, passed=False))
    assert not result.passed
    assert result.description == "9 images accepted, 3 quarantined; warning few_truncated: 0.17, allowed 0.1"
    assert result.metadata["quarantined"] == dg.MetadataValue.json({"truncated": 2, "empty_file": 1})
    assert rejections == [], "there is no candidate yet"


@pytest.mark.parametrize(
    ("values", "passed", "says"),
    [
        ({}, True, "loss 5.1 → 4.2, chance is 6.2"),
        ({"finite": False}, False, "did not stay finite"),
        ({"collapsed": True}, False, "nearly the same features"),
        ({"finite": False, "collapsed": True}, False, "did not stay finite"),
    ],
)
def test_collapse(tmp_path: Path, values: dict[str, bool], passed: bool, says: str, rejections: Rejections) -> None:
    result = judged(tmp_path, "not_collapsed", changed(PRETRAIN, **values))
    assert result.passed is passed
    assert result.description is not None
    assert says in result.description
    assert len(rejections) == (not passed)


@pytest.mark.parametrize(
    ("ours", "random", "passed", "says"),
    [
        ({"0.01": 60.0, "0.1": 70.0}, {"0.01": 50.0, "0.1": 65.0}, True, "65.00 % against 57.50 %"),
        ({"0.01": 49.0, "0.1": 70.0}, {"0.01": 50.0, "0.1": 65.0}, True, "59.50 % against 57.50 %"),
        ({"0.01": 50.0}, {"0.01": 50.0}, False, "50.00 % against 50.00 %"),
        ({"0.01": None, "0.1": 60.0}, {"0.01": None, "0.1": 61.0}, False, "60.00 % against 61.00 %"),
        ({"0.01": None}, {"0.01": None}, True, "nothing to compare: no labelled test images"),
        ({}, {}, True, "nothing to compare: no labelled test images"),
    ],
)
def test_probe_against_random_init(
    tmp_path: Path,
    ours: dict[str, float | None],
    random: dict[str, float | None],
    passed: bool,
    says: str,
    rejections: Rejections,
) -> None:
    report = {
        "simclr": {"linear_top1": ours},
        "random_init": {"linear_top1": random},
        "reason": "no labelled test images",
    }
    result = judged(tmp_path, "probe_beats_random_init", json.dumps(report))
    assert result.passed is passed
    assert result.description is not None
    assert says in result.description
    assert len(rejections) == (not passed)


def test_parity(tmp_path: Path, rejections: Rejections) -> None:
    assert not judged(tmp_path, "onnx_parity", changed(EXPORT, passed=False)).passed
    assert len(rejections) == 1


def test_a_rejection_tells_candidate_gate_reason_run_and_numbers(tmp_path: Path, rejections: Rejections) -> None:
    """Through Dagster as it is, in a run of its own as when a gate is repeated from the UI: nothing is computed."""
    candidate = put_pretrained(tmp_path)
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "pretrain.json").write_text(changed(PRETRAIN, collapsed=True))
    check = find("not_collapsed")
    repeat = dg.define_asset_job("repeat", selection=dg.AssetSelection.checks(check))

    @dg.asset(key=asset_key("models/pretrained"))
    def pretrained() -> None:
        raise AssertionError("repeating a gate must not train anything")

    definitions = dg.Definitions([pretrained], asset_checks=[check], jobs=[repeat])
    job = dg.Definitions.merge(definitions, dg.Definitions(resources={"workspace": Workspace(tmp_path)}))
    result = job.resolve_job_def("repeat").execute_in_process(raise_on_error=False)
    (evaluation,) = result.get_asset_check_evaluations()
    assert not evaluation.passed
    workspace, *recorded = rejections[0]
    assert workspace.root == tmp_path
    reason = evaluation.description
    assert recorded == [
        candidate,
        "not_collapsed",
        reason,
        result.run_id,
        {"effective_rank": 31.5, "feature_std": 0.4},
    ]
    assert len(rejections) == 1


@pytest.mark.parametrize("fault", ["no candidate", "registry"])
def test_a_rejection_that_cannot_be_recorded_leaves_the_verdict(
    tmp_path: Path, fault: str, rejections: Rejections, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fault == "registry":
        put_pretrained(tmp_path)

        def refuse(*_: object) -> None:
            raise ReleaseError("registry: cannot be written")

        monkeypatch.setattr("pipeline.release.registry.open_registry", refuse)
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "export.json").write_text(changed(EXPORT, passed=False))
    result = judge(tmp_path, "onnx_parity", {}, pretrained=False)
    assert not result.passed
    assert result.description == "lowest cosine 0.999999, largest difference 1e-05 on 64 images"
    assert rejections == []


@pytest.mark.parametrize("passed", [True, False])
def test_a_gate_that_does_not_pass_stops_what_comes_after_it(
    tmp_path: Path, passed: bool, rejections: Rejections
) -> None:
    workspace = Workspace(tmp_path)
    put_pretrained(tmp_path)
    workspace.reports.mkdir()
    (workspace.reports / "pretrain.json").write_text(changed(PRETRAIN, collapsed=not passed))

    @dg.asset(key=asset_key("models/pretrained"))
    def pretrained() -> None: ...

    @dg.asset(key=asset_key("models/probe"), deps=[pretrained])
    def probe() -> None: ...

    @dg.asset(key=asset_key("models/bundle"), deps=[probe])
    def bundle() -> None: ...

    result = dg.materialize(
        [pretrained, probe, bundle, find("not_collapsed")], resources={"workspace": workspace}, raise_on_error=False
    )
    computed = [event.asset_key.path[-1] for event in result.get_asset_materialization_events() if event.asset_key]
    assert computed == (["pretrained", "probe", "bundle"] if passed else ["pretrained"])
    assert result.success is passed


def test_every_gate_blocks_waits_for_the_workspace_and_says_what_it_is() -> None:
    specs: dict[str, Any] = {}
    for check in GATES:
        (spec,) = check.check_specs
        specs[spec.name] = spec
        assert check.node_def.pool == "dvc"  # a report must not change under the gate that reads it
    assert len(specs) == 9
    assert all(spec.blocking and spec.description.rstrip().endswith(".") for spec in specs.values())
    against_champion = {name for name, spec in specs.items() if spec.asset_key == asset_key("reports/compare.json")}
    assert against_champion == {"representation", "low_label", "latency_budget", "size_budget", "old_index"}
