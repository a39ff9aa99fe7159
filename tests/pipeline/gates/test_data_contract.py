"""The data contract as a whole and expectation by expectation: what each outcome becomes."""

from typing import Any

import pytest

from pipeline.gates.data_contract import data_contract, judge_expectations
from pipeline.gates.evidence import Evidence
from pipeline.gates.verdict import Verdict
from pipeline.validation.contract import RULES
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
    assert verdict.description == (
        "9 of 12 files accepted, 3 quarantined (2 truncated, 1 empty_file); "
        'warning: "few_truncated" does not hold: 17 % conform, 2 do not, and 100 % have to; '
        "the report says no more; `simclr run --select validate` makes it again"
    )
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
    assert "does not hold: 90 % conform, 31 do not, and 100 % have to" in one.description
    assert ("look at reports/validation.html" in one.description) == (name != INFO)
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
        (lambda name: contract({"name": name, "success": True}), f"{CONTRACT} lacks what is needed: suite is missing"),
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


def test_a_broken_contract_is_one_sentence_with_what_happened_what_was_expected_and_the_next_step(case: Case) -> None:
    broken = outcome("decodes", success=False, observed=0.091117, unexpected_count=7930, threshold="True for 95 %")
    rate = outcome("quarantine_rate", success=False, observed=0.91, unexpected_count=None, threshold="<= 0.05")
    report = contract(broken, rate, passed=False)
    report["images"] = {"ingested": 8724, "accepted": 794, "converted": 0, "quarantined": {"not_an_image": 7930}}
    verdict = case.ask(data_contract, {CONTRACT: report})
    assert verdict.outcome == "refused"
    assert verdict.description == (
        "the data contract is broken, with 794 of 8,724 files accepted, 7,930 quarantined (7,930 not_an_image): "
        '"Nearly all contents decode" does not hold: 9.112 % conform, 7,930 do not, and 95 % have to; '
        '"No more contents than validate.max_quarantine_rate are quarantined" does not hold: '
        "found 91 %, required: at most 5 %; look at reports/validation.html; correct or remove these files, accept "
        "good ones with `simclr quarantine release`, or change the block validate of params.yaml, and run again"
    )


@pytest.mark.parametrize(
    ("name", "says"), [("enough_training_images", "put more images into"), ("not_broken", "drift.accepted")]
)
def test_the_cause_with_advice_for_itself_comes_first(case: Case, name: str, says: str) -> None:
    others = [unmet(other) for other in ("decodes", "format_known", "mode_known", "aspect")]
    description = case.ask(data_contract, {CONTRACT: contract(*others, unmet(name), passed=False)}).description
    (rule,) = [rule for rule in RULES if rule.name == name]
    assert description.partition("accepted")[2].partition(": ")[2].startswith(f'"{rule.meaning[:-1]}"')
    assert says in description
    assert "2 more critical expectations do not hold" in description


def test_where_there_is_nothing_to_judge_it_is_not_applicable(case: Case) -> None:
    empty = [outcome(name, observed=None) for name in ("no_drift", "test_labelled", "short_side")]
    found = judged(case, contract(*empty))
    assert [found[one["name"]].outcome for one in empty] == ["not applicable"] * 3
    assert found["no_drift"].description == (
        "not applicable: drift was not checked, see the report of the stage validate"
    )
    assert found["test_labelled"].description == "not applicable: there are no test images"
    nothing = contract(passed=False) | {"images": {"ingested": 0, "accepted": 0, "converted": 0, "quarantined": {}}}
    verdict = case.ask(data_contract, {CONTRACT: nothing})
    assert (verdict.outcome, "put images into inbox/unlabeled" in verdict.description) == ("not applicable", True)
