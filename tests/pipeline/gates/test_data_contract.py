"""The data contract as a whole and expectation by expectation: what each outcome becomes."""

from typing import Any

import pytest

from pipeline.gates.data_contract import RULES, data_contract, judge_expectations
from pipeline.gates.evidence import Evidence
from pipeline.gates.verdict import Verdict
from pipeline.workspace import Workspace
from tests.pipeline.gates.conftest import Case
from tests.pipeline.gates.reports import CONTRACT, CRITICAL, INFO, VALIDATION, WARNING, contract, outcome, unmet


def judged(case: Case, report: object) -> dict[str, Verdict]:
    if report is not None:
        case.put(CONTRACT, report)
    found = judge_expectations(Evidence(Workspace(case.folder)))
    assert list(found) == [rule.name for rule in RULES]
    return found


def test_the_verdict_counts_reasons_and_lists_broken_expectations(case: Case) -> None:
    case.put(CONTRACT, VALIDATION | {"passed": False})
    verdict = case.ask(data_contract)
    assert (verdict.passed, verdict.judged) == (False, True)
    assert verdict.description == "9 images accepted, 3 quarantined; warning few_truncated: 0.17, allowed 0.1"
    assert verdict.numbers == {
        "accepted": 9,
        "quarantined": {"truncated": 2, "empty_file": 1},
        "broken": [VALIDATION["expectations"][1]],
    }


def test_a_kept_contract_passes_every_check(case: Case) -> None:
    assert all(verdict.passed for verdict in judged(case, contract()).values())


@pytest.mark.parametrize(
    ("name", "passed", "severity"), [(CRITICAL, False, "error"), (WARNING, False, "warning"), (INFO, True, "warning")]
)
def test_broken_expectations_are_reported_by_their_severity(case: Case, name: str, passed: bool, severity: str) -> None:
    found = judged(case, contract(unmet(name)))
    one = found.pop(name)
    assert (one.passed, one.severity) == (passed, severity)
    assert one.description == "does not hold: 0.9, required: as asked; 31 violate it"
    numbers = dict(one.numbers)
    assert numbers.pop("type").startswith("expect_column_values_to_be_")
    assert numbers == {
        "holds": False,
        "observed": 0.9,
        "threshold": "as asked",
        "unexpected_count": 31,
        "sample_ids": unmet(name)["sample_ids"],
        "severity": {CRITICAL: "critical", WARNING: "warning", INFO: "info"}[name],
        "suite": "files",
        "table": "contents",
    }
    assert all(verdict.passed for verdict in found.values())


@pytest.mark.parametrize("name", [CRITICAL, WARNING, INFO])
@pytest.mark.parametrize(
    ("report", "says"),
    [
        (lambda name: contract(unmet(name, observed=None, error="no such column")), "not be evaluated: no such column"),
        (lambda name: contract(without=name), f"{CONTRACT} has no result for it; run the stage validate again"),
        (lambda name: contract(outcome(name, sample_ids=None)), f"{CONTRACT} lacks what is needed: sample_ids: "),
        (lambda name: contract({"name": name, "success": True}), f"{CONTRACT} lacks what is needed: suite: "),
    ],
)
def test_an_unknown_result_is_an_error_at_any_severity(case: Case, name: str, report: Any, says: str) -> None:
    found = judged(case, report(name))
    one = found.pop(name)
    assert (one.passed, one.severity, one.judged) == (False, "error", False)
    assert says in one.description
    assert {"severity", "suite", "type"} <= one.numbers.keys()
    assert all(verdict.passed for verdict in found.values())


@pytest.mark.parametrize(
    "broken", [None, "", "[]", "null", "{}", '{"expectations": 3}', '{"expectations": [3]}', "[NaN"]
)
def test_without_a_report_every_expectation_is_an_error(case: Case, broken: str | None) -> None:
    for verdict in judged(case, broken).values():
        assert (verdict.passed, verdict.severity) == (False, "error")
        assert CONTRACT in verdict.description
