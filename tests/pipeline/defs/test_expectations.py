"""One Dagster check per suite of expectations, and a broken contract stops the run."""

import json
import re
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from pipeline.defs.expectations import MANIFEST, SUITES, check_name, expectation_checks, summarize
from pipeline.defs.translator import asset_key
from pipeline.errors import StageFailedError
from pipeline.gates.verdict import Verdict, not_judged
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


def test_each_suite_has_a_check_with_all_of_its_expectations() -> None:
    specs = {spec.name: spec for spec in expectation_checks.check_specs}
    assert list(specs) == [check_name(suite) for suite in SUITES]
    assert [rule for rules in SUITES.values() for rule in rules] == sorted(
        RULES, key=lambda rule: list(SUITES).index(rule.suite)
    )
    for suite, rules in SUITES.items():
        spec = specs[check_name(suite)]
        assert spec.asset_key == MANIFEST
        assert spec.blocking == any(rule.severity == "critical" for rule in rules)
    assert expectation_checks.node_def.pools == {"dvc"}  # the report must not change under the checks


def test_a_check_says_what_does_not_hold_and_how_much_does(tmp_path: Path) -> None:
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "validation.json").write_text(
        json.dumps(contract(unmet(CRITICAL), unmet(WARNING), unmet(INFO)))
    )
    results: Any = expectation_checks(dg.build_asset_check_context(), Workspace(tmp_path))
    found = {result.check_name: result for result in results}
    assert list(found) == [check_name(suite) for suite in SUITES]
    failed = {name: one.severity for name, one in found.items() if not one.passed}
    suite_of = {rule.name: check_name(rule.suite) for rule in RULES}
    assert failed[suite_of[CRITICAL]] == ERROR
    assert set(failed) == {suite_of[CRITICAL], suite_of[WARNING]}
    critical = found[suite_of[CRITICAL]]
    assert re.match(r'\d+ of \d+ expectations hold; "The shorter side of nearly all', str(critical.description))
    table = [record.data for record in critical.metadata["expectations"].records]
    assert table[0]["expectation"] == CRITICAL
    assert table[0]["verdict"] == "refused"
    noted = next(
        record.data
        for one in found.values()
        for record in one.metadata["expectations"].records
        if record.data["expectation"] == INFO
    )
    assert noted["verdict"] == "passed"


def test_the_worst_comes_first_and_a_warning_alone_is_one() -> None:
    held, nothing = Verdict(True, "holds"), Verdict(True, "nothing", applicable=False)
    warning, error = Verdict(False, "bright", severity="warning"), Verdict(False, "broken")
    alone = summarize({"a": nothing, "b": held, "c": warning})
    assert (alone.passed, alone.severity, alone.description) == (False, "warning", "2 of 3 expectations hold; bright")
    both = summarize({"a": held, "c": warning, "d": error})
    assert (both.severity, both.description) == ("error", "1 of 3 expectations hold; broken; bright")
    assert str(summarize({"a": held})) == "passed: 1 of 1 expectation hold"
    unknown = summarize({"a": held, "b": not_judged("no such column")})
    assert unknown.outcome == "not judged"


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
    assert len(result.get_asset_check_evaluations()) == len(SUITES)
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
    assert reported >= {check_name(suite) for suite in SUITES}

    (filled.root / "report").write_text(json.dumps(contract(unmet(WARNING))))
    assert list(run(filled).stages) == ["validate", "prepare"]
