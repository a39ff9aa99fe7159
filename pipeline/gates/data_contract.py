"""What the stage ``validate`` found of the data contract, as a whole and expectation by expectation.

A critical expectation that does not hold is an error and blocks what follows, a warning is only a warning, an info
passes and tells. One that could not be evaluated, or that the report does not have, is an error whatever its severity.
Whether the pipeline may continue as a whole is for ``data_contract`` to say.
"""

from dataclasses import asdict, dataclass
from typing import ClassVar, Literal

from pydantic import JsonValue

from pipeline.gates.evidence import Evidence
from pipeline.gates.verdict import Verdict, not_applicable, not_judged
from pipeline.reports import Outcome, ValidationReport
from pipeline.validation.contract import ADVICE, RULES, advice, describe, nothing_to_judge, sentence
from pipeline.validation.expectations import Expectation
from simclr_core.errors import ReportError
from simclr_core.reports import Report, parse


@dataclass(frozen=True)
class _Outcomes(Report):
    """The report, as far as it lists outcomes: a broken outcome is a separate error."""

    path: ClassVar[str] = ValidationReport.path

    expectations: list[dict[str, JsonValue]]


def data_contract(evidence: Evidence) -> Verdict:
    """Every critical Great Expectations expectation holds for the images that were accepted."""
    report = evidence.report(ValidationReport)
    if not report.images.ingested:  # the stage prepare refuses an empty set in any case
        return not_applicable(f"no file has been ingested yet; {ADVICE['not_empty']}")
    broken = [one for one in report.expectations if not one.success]
    accepted, quarantined = report.images.accepted, report.images.quarantined
    return Verdict(
        passed=report.passed,
        description=describe(report),
        numbers={"accepted": accepted, "quarantined": {**quarantined}, "broken": [asdict(one) for one in broken]},
    )


def judge_expectations(evidence: Evidence) -> dict[str, Verdict]:
    """A verdict on each of ``RULES``, by its name and in their order."""
    try:
        outcomes = {outcome.get("name"): outcome for outcome in evidence.report(_Outcomes).expectations}
    except ReportError as error:
        return fail_all(str(error))
    return {rule.name: _verdict(rule, outcomes.get(rule.name)) for rule in RULES}


def fail_all(description: str) -> dict[str, Verdict]:
    """The same for every expectation: none was evaluated, because of this."""
    return {rule.name: _failed(rule, description) for rule in RULES}


def _verdict(rule: Expectation, given: dict[str, JsonValue] | None) -> Verdict:
    if given is None:
        return _failed(rule, f"{ValidationReport.path} has no result for it; run the stage validate again")
    try:
        outcome = parse(given, Outcome, ValidationReport.path)
    except ReportError as error:
        return _failed(rule, str(error))
    numbers: dict[str, JsonValue] = {
        "holds": outcome.success,
        "observed": outcome.observed,
        "threshold": outcome.threshold,
        "unexpected_count": outcome.unexpected_count,
        "sample_ids": [*outcome.sample_ids],
        "severity": rule.severity,
        "suite": rule.suite,
        "table": rule.table,
        "type": rule.type,
    }
    if outcome.error:
        return not_judged(f"{sentence(outcome)}; {advice(outcome)}", numbers=numbers)
    severity: Literal["error", "warning"] = "error" if rule.severity == "critical" else "warning"
    if nothing := nothing_to_judge(outcome):
        return not_applicable(nothing, numbers, severity)
    next_step = "" if outcome.success or rule.severity == "info" else f"; {advice(outcome)}"
    return Verdict(
        passed=outcome.success or rule.severity == "info",
        description=sentence(outcome) + next_step,
        numbers=numbers,
        severity=severity,
    )


def _failed(rule: Expectation, description: str) -> Verdict:
    return not_judged(description, numbers={"severity": rule.severity, "suite": rule.suite, "type": rule.type})
