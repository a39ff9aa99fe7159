"""One Dagster check per expectation, and a broken contract stops the run."""

import json
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from pipeline.defs.expectations import MANIFEST, expectation_checks
from pipeline.defs.translator import asset_key
from pipeline.errors import StageFailedError
from pipeline.run import run
from pipeline.runs.instance import opened
from pipeline.validation.contract import RULES
from pipeline.workspace import Workspace
from tests.pipeline.gates.reports import CRITICAL, INFO, WARNING, contract, unmet

ERROR, WARN = dg.AssetCheckSeverity.ERROR, dg.AssetCheckSeverity.WARN
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


def test_each_expectation_has_a_check_with_a_description() -> None:
    specs = {spec.name: spec for spec in expectation_checks.check_specs}
    assert set(specs) == {rule.name for rule in RULES}
    for rule in RULES:
        spec = specs[rule.name]
        assert (spec.asset_key, spec.description) == (MANIFEST, rule.meaning)
        assert spec.blocking == (rule.severity == "critical")
    assert expectation_checks.node_def.pools == {"dvc"}  # the report must not change under the checks


def test_each_check_reports_the_verdict_on_its_expectation(tmp_path: Path) -> None:
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "validation.json").write_text(json.dumps(contract(unmet(CRITICAL), unmet(WARNING))))
    results: Any = expectation_checks(dg.build_asset_check_context(), Workspace(tmp_path))
    found = {result.check_name: result for result in results}
    assert list(found) == [rule.name for rule in RULES]
    assert {result.asset_key for result in found.values()} == {MANIFEST}
    assert {name: found[name].severity for name in found if not found[name].passed} == {CRITICAL: ERROR, WARNING: WARN}
    assert str(found[CRITICAL].description).startswith('"The shorter side of nearly all images has validate.min_side')
    assert [found[name].metadata["verdict"].text for name in (CRITICAL, INFO)] == ["refused", "passed"]
    assert found[CRITICAL].metadata["sample_ids"] == dg.MetadataValue.json(unmet(CRITICAL)["sample_ids"])


@pytest.mark.seconds
def test_an_unexpected_error_still_gives_every_check_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dagster silently skips a check that yields no result."""

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


@pytest.mark.seconds
@pytest.mark.parametrize(
    ("text", "continues"),
    [
        (json.dumps(contract()), True),
        (json.dumps(contract(unmet(WARNING), unmet(INFO))), True),
        (json.dumps(contract(unmet(CRITICAL))), False),
        (json.dumps(contract(unmet(CRITICAL, error="no such column"))), False),
        (json.dumps(contract(without=CRITICAL)), False),
        ("{", False),
    ],
)
def test_only_critical_expectations_stop_later_steps(tmp_path: Path, text: str, continues: bool) -> None:
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "validation.json").write_text(text, encoding="utf-8")
    assert computed(tmp_path) == (["manifest", "prepared"] if continues else ["manifest"])


@pytest.mark.slow
def test_simclr_run_checks_between_validate_and_prepare(filled: Workspace, capfd: pytest.CaptureFixture[str]) -> None:
    (filled.root / "dvc.yaml").write_text(GRAPH, encoding="utf-8")
    (filled.root / "report").write_text(json.dumps(contract(unmet(CRITICAL), unmet(INFO), passed=False)))
    with pytest.raises(StageFailedError, match="data/manifest did not pass data_contract: the data contract is broken"):
        run(filled)
    assert (filled.root / "data" / "manifest").exists()
    assert not (filled.root / "data" / "prepared").exists()
    assert f"expectations: {len(RULES) - 1} of {len(RULES)} hold, but not {CRITICAL}" in capfd.readouterr().out
    with opened(filled.root) as instance:
        (record,) = instance.get_runs()
        entries = instance.all_logs(record.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION)
        reported = {entry.get_dagster_event().asset_check_evaluation_data.check_name for entry in entries}
    assert reported >= {rule.name for rule in RULES}

    (filled.root / "report").write_text(json.dumps(contract(unmet(WARNING))))
    assert list(run(filled).stages) == ["validate", "prepare"]
