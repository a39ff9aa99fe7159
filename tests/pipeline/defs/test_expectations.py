"""One Dagster check per expectation: what each outcome becomes, and that a broken contract stops the run."""

import json
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from pipeline.defs.expectations import MANIFEST, expectation_checks
from pipeline.defs.translator import asset_key
from pipeline.errors import StageFailedError
from pipeline.gates.data_contract import RULES
from pipeline.run import run
from pipeline.runs.instance import opened
from pipeline.workspace import Workspace

ERROR, WARN = dg.AssetCheckSeverity.ERROR, dg.AssetCheckSeverity.WARN
CRITICAL, WARNING, INFO = "short_side", "not_dark", "no_gps"
IMAGES = {"ingested": 40, "accepted": 38, "converted": 0, "quarantined": {"too_small": 2}}

GRAPH = """
stages:
  validate:
    cmd: mkdir -p data/manifest reports && touch data/manifest/rows && cp report reports/validation.json
    deps: [data/raw, report]
    outs: [data/manifest]
    metrics: [{reports/validation.json: {cache: false}}]
  prepare:
    cmd: mkdir -p data/prepared && touch data/prepared/rows
    deps: [data/manifest]
    outs: [data/prepared]
"""


def outcome(name: str, **changes: Any) -> dict[str, Any]:
    (rule,) = [rule for rule in RULES if rule.name == name]
    fine = {"success": True, "observed": 1.0, "unexpected_count": 0, "sample_ids": [], "error": None}
    return {"name": name, "suite": rule.suite, "severity": rule.severity, "threshold": "as asked", **fine} | changes


def report(*changed: dict[str, Any], without: str = "", passed: bool = True) -> str:
    outcomes = {rule.name: outcome(rule.name) for rule in RULES if rule.name != without}
    outcomes |= {one["name"]: one for one in changed}
    return json.dumps({"passed": passed, "images": IMAGES, "expectations": list(outcomes.values())})


def spoilt(name: str, **changes: Any) -> dict[str, Any]:
    ids = [f"{number:016x}-{number:012x}" for number in range(10)]
    return outcome(name, success=False, observed=0.9, unexpected_count=31, sample_ids=ids) | changes


def judged(folder: Path, text: str | None) -> dict[str, dg.AssetCheckResult]:
    if text is not None:
        (folder / "reports").mkdir()
        (folder / "reports" / "validation.json").write_text(text, encoding="utf-8")
    results: Any = expectation_checks(dg.build_asset_check_context(), Workspace(folder))
    found = {result.check_name: result for result in results}
    assert list(found) == [rule.name for rule in RULES]
    return found


def test_each_expectation_has_a_check_that_says_what_it_is() -> None:
    specs = {spec.name: spec for spec in expectation_checks.check_specs}
    assert set(specs) == {rule.name for rule in RULES}
    for rule in RULES:
        spec = specs[rule.name]
        assert (spec.asset_key, spec.description) == (MANIFEST, rule.meaning)
        assert spec.blocking == (rule.severity == "critical")
    assert expectation_checks.node_def.pools == {"dvc"}  # the report must not change under the checks


def test_a_contract_that_holds_passes_everywhere(tmp_path: Path) -> None:
    assert all(result.passed for result in judged(tmp_path, report()).values())


@pytest.mark.parametrize(
    ("name", "passed", "severity"), [(CRITICAL, False, ERROR), (WARNING, False, WARN), (INFO, True, WARN)]
)
def test_what_does_not_hold_is_told_by_its_severity(
    tmp_path: Path, name: str, passed: bool, severity: dg.AssetCheckSeverity
) -> None:
    found = judged(tmp_path, report(spoilt(name)))
    one = found.pop(name)
    assert (one.passed, one.severity) == (passed, severity)
    assert one.description == "does not hold: 0.9, asked for as asked; 31 against it"
    told: dict[str, Any] = {key: value.value for key, value in (one.metadata or {}).items()}
    assert told.pop("type").startswith("expect_column_values_to_be_")
    assert told == {
        "holds": False,
        "observed": 0.9,
        "threshold": "as asked",
        "unexpected_count": 31,
        "sample_ids": spoilt(name)["sample_ids"],
        "severity": {CRITICAL: "critical", WARNING: "warning", INFO: "info"}[name],
        "suite": "files",
        "table": "contents",
    }
    assert all(result.passed for result in found.values())


@pytest.mark.parametrize("name", [CRITICAL, WARNING, INFO])
def test_what_could_not_be_evaluated_is_an_error_whatever_its_severity(tmp_path: Path, name: str) -> None:
    found = judged(tmp_path, report(spoilt(name, observed=None, unexpected_count=None, error="no such column")))
    one = found.pop(name)
    assert (one.passed, one.severity) == (False, ERROR)
    assert one.description == "could not be evaluated: no such column"
    assert all(result.passed for result in found.values())


@pytest.mark.parametrize("name", [CRITICAL, WARNING, INFO])
def test_what_the_report_does_not_have_is_an_error(tmp_path: Path, name: str) -> None:
    found = judged(tmp_path, report(without=name))
    one = found.pop(name)
    assert (one.passed, one.severity) == (False, ERROR)
    assert "reports/validation.json says nothing about it" in (one.description or "")
    assert all(result.passed for result in found.values())


@pytest.mark.parametrize(
    "broken", [None, "", "[]", "null", "{}", '{"expectations": 3}', '{"expectations": [3]}', "[NaN"]
)
def test_without_a_report_every_check_is_an_error(tmp_path: Path, broken: str | None) -> None:
    for result in judged(tmp_path, broken).values():
        assert (result.passed, result.severity) == (False, ERROR)
        assert "reports/validation.json" in (result.description or "")


def test_an_outcome_of_another_shape_is_an_error_of_its_own(tmp_path: Path) -> None:
    lacking = {key: value for key, value in outcome(CRITICAL).items() if key != "threshold"}
    found = judged(tmp_path, report(lacking, outcome(WARNING, sample_ids=None)))
    broken = [found.pop(CRITICAL), found.pop(WARNING)]
    assert [(one.passed, one.severity) for one in broken] == [(False, ERROR)] * 2
    assert all("lacks what this check needs" in (one.description or "") for one in broken)
    assert all(result.passed for result in found.values())


def test_an_error_that_nobody_foresaw_leaves_no_check_without_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dagster goes on without a check that says nothing."""

    def fail(*_: object) -> None:
        raise RuntimeError("no luck")

    monkeypatch.setattr("pipeline.gates.data_contract.judge_expectations", fail)
    assert computed(tmp_path) == ["manifest"]


def computed(folder: Path) -> list[str]:
    """What is computed of the manifest and what follows it, in a run of Dagster with these checks."""

    @dg.asset(key=asset_key("data/manifest"))
    def manifest() -> None: ...

    @dg.asset(key=asset_key("data/prepared"), deps=[manifest])
    def prepared() -> None: ...

    result = dg.materialize(
        [manifest, prepared, expectation_checks], resources={"workspace": Workspace(folder)}, raise_on_error=False
    )
    assert len(result.get_asset_check_evaluations()) == len(RULES)
    return [event.asset_key.path[-1] for event in result.get_asset_materialization_events() if event.asset_key]


@pytest.mark.parametrize(
    ("text", "goes_on"),
    [
        (report(), True),
        (report(spoilt(WARNING), spoilt(INFO)), True),
        (report(spoilt(CRITICAL)), False),
        (report(spoilt(CRITICAL, error="no such column")), False),
        (report(without=CRITICAL), False),
        ("{", False),
    ],
)
def test_only_what_is_critical_stops_what_comes_after(tmp_path: Path, text: str, goes_on: bool) -> None:
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "validation.json").write_text(text, encoding="utf-8")
    assert computed(tmp_path) == (["manifest", "prepared"] if goes_on else ["manifest"])


@pytest.mark.slow
def test_simclr_run_checks_between_validate_and_prepare(filled: Workspace, capfd: pytest.CaptureFixture[str]) -> None:
    (filled.root / "dvc.yaml").write_text(GRAPH, encoding="utf-8")
    (filled.root / "report").write_text(report(spoilt(CRITICAL), spoilt(INFO), passed=False), encoding="utf-8")
    with pytest.raises(StageFailedError, match=f"data/manifest did not pass {CRITICAL}: does not hold: 0.9, asked for"):
        run(filled)
    assert (filled.root / "data" / "manifest").exists()
    assert not (filled.root / "data" / "prepared").exists()
    assert f"expectations: {len(RULES) - 1} of {len(RULES)} hold, but not {CRITICAL}" in capfd.readouterr().out
    with opened(filled.root) as instance:
        (record,) = instance.get_runs()
        entries = instance.all_logs(record.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION)
        told = {entry.get_dagster_event().asset_check_evaluation_data.check_name for entry in entries}
    assert told >= {rule.name for rule in RULES}

    (filled.root / "report").write_text(report(spoilt(WARNING)), encoding="utf-8")
    assert list(run(filled).stages) == ["validate", "prepare"]
