"""The gates: what passes, what does not, and that nothing runs behind a gate that did not pass."""

import json
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from pipeline.defs.checks import GATES
from pipeline.dvc.translator import asset_key
from pipeline.workspace import Workspace

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
    "data_contract": ("validation.json", VALIDATION),
    "not_collapsed": ("pretrain.json", PRETRAIN),
    "probe_beats_random_init": ("linear_eval.json", LINEAR_EVAL),
    "onnx_parity": ("export.json", EXPORT),
}


def judge(folder: Path, gate: str, text: str | None) -> dg.AssetCheckResult:
    workspace = Workspace(folder)
    workspace.reports.mkdir(exist_ok=True)
    if text is not None:
        (workspace.reports / REPORTS[gate][0]).write_text(text, encoding="utf-8")
    (check,) = [check for check in GATES if next(iter(check.check_keys)).name == gate]
    result = check(dg.build_asset_check_context(), workspace)
    assert isinstance(result, dg.AssetCheckResult)
    assert result.description
    return result


def changed(report: dict[str, Any], **values: object) -> str:
    return json.dumps(report | values)


@pytest.mark.parametrize("gate", REPORTS)
def test_a_good_report_passes_and_a_missing_or_broken_one_does_not(tmp_path: Path, gate: str) -> None:
    name, report = REPORTS[gate]
    missing = judge(tmp_path, gate, None)
    assert not missing.passed
    assert missing.description == f"reports/{name} does not exist; run the stage that writes it"
    assert judge(tmp_path, gate, json.dumps(report)).passed
    for text in (json.dumps(report)[:-5], "", "[]", "{}", "null", '"text"', json.dumps({"images": None, "simclr": 3})):
        broken = judge(tmp_path, gate, text)
        assert not broken.passed, text
        assert broken.description is not None
        assert f"reports/{name}" in broken.description


def test_the_data_contract_counts_reasons_and_lists_what_is_broken(tmp_path: Path) -> None:
    result = judge(tmp_path, "data_contract", changed(VALIDATION, passed=False))
    assert not result.passed
    assert result.description == "9 images accepted, 3 quarantined; warning few_truncated: 0.17, allowed 0.1"
    assert result.metadata["quarantined"] == dg.MetadataValue.json({"truncated": 2, "empty_file": 1})


@pytest.mark.parametrize(
    ("values", "passed", "says"),
    [
        ({}, True, "loss 5.1 → 4.2, chance is 6.2"),
        ({"finite": False}, False, "did not stay finite"),
        ({"collapsed": True}, False, "nearly the same features"),
        ({"finite": False, "collapsed": True}, False, "did not stay finite"),
    ],
)
def test_collapse(tmp_path: Path, values: dict[str, bool], passed: bool, says: str) -> None:
    result = judge(tmp_path, "not_collapsed", changed(PRETRAIN, **values))
    assert result.passed is passed
    assert result.description is not None
    assert says in result.description


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
    tmp_path: Path, ours: dict[str, float | None], random: dict[str, float | None], passed: bool, says: str
) -> None:
    report = {
        "simclr": {"linear_top1": ours},
        "random_init": {"linear_top1": random},
        "reason": "no labelled test images",
    }
    result = judge(tmp_path, "probe_beats_random_init", json.dumps(report))
    assert result.passed is passed
    assert result.description is not None
    assert says in result.description


def test_parity(tmp_path: Path) -> None:
    assert not judge(tmp_path, "onnx_parity", changed(EXPORT, passed=False)).passed


@pytest.mark.parametrize("passed", [True, False])
def test_a_gate_that_does_not_pass_stops_what_comes_after_it(tmp_path: Path, passed: bool) -> None:
    workspace = Workspace(tmp_path)
    workspace.reports.mkdir()
    (workspace.reports / "pretrain.json").write_text(changed(PRETRAIN, collapsed=not passed))

    @dg.asset(key=asset_key("models/pretrained"))
    def pretrained() -> None: ...

    @dg.asset(key=asset_key("models/probe"), deps=[pretrained])
    def probe() -> None: ...

    @dg.asset(key=asset_key("models/bundle"), deps=[probe])
    def bundle() -> None: ...

    gates = [check for check in GATES if next(iter(check.check_keys)).name == "not_collapsed"]
    result = dg.materialize(
        [pretrained, probe, bundle, *gates], resources={"workspace": workspace}, raise_on_error=False
    )
    computed = [event.asset_key.path[-1] for event in result.get_asset_materialization_events() if event.asset_key]
    assert computed == (["pretrained", "probe", "bundle"] if passed else ["pretrained"])
    assert result.success is passed
