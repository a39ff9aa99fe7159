"""What the stage ``validate`` found of the data contract, as a whole and expectation by expectation.

A critical expectation that does not hold is an error and blocks what follows, a warning is only a warning, an info
passes and tells. One that could not be evaluated, or that the report does not have, is an error whatever its severity.
Whether the pipeline may continue as a whole is for ``data_contract`` to say.
"""

from typing import Any

from pipeline.config import ValidateConfig
from pipeline.gates.evidence import UNREADABLE, Evidence, Report
from pipeline.gates.verdict import Verdict, not_judged
from pipeline.validation.expectations import Expectation, expectations

REPORT = "reports/validation.json"
RULES = expectations(ValidateConfig())
"""Of these only what no parameter changes is used; thresholds are those of the report."""

AGAIN = "run the stage validate again"


def data_contract(evidence: Evidence) -> Verdict:
    """Every critical Great Expectations expectation holds for the images that were accepted."""
    report = evidence.report(REPORT)
    broken = [one for one in report["expectations"] if not one["success"]]
    accepted, quarantined = report["images"]["accepted"], report["images"]["quarantined"]
    parts = [f"{accepted} images accepted, {sum(quarantined.values())} quarantined"]
    parts += [f"{one['severity']} {one['name']}: {one['observed']}, allowed {one['threshold']}" for one in broken]
    return Verdict(
        passed=bool(report["passed"]),
        description="; ".join(parts),
        numbers={"accepted": accepted, "quarantined": quarantined, "broken": broken},
    )


def judge_expectations(evidence: Evidence) -> dict[str, Verdict]:
    """A verdict on each of ``RULES``, by its name and in their order."""
    try:
        outcomes = {outcome["name"]: outcome for outcome in evidence.report(REPORT)["expectations"]}
    except FileNotFoundError:
        return all_failed(f"{REPORT} does not exist; run the stage that writes it")
    except UNREADABLE as error:
        return all_failed(f"{REPORT} cannot be read: {error!r}; {AGAIN}")
    return {rule.name: _verdict(rule, outcomes.get(rule.name)) for rule in RULES}


def all_failed(description: str) -> dict[str, Verdict]:
    """The same for every expectation: none was evaluated, because of this."""
    return {rule.name: _failed(rule, description) for rule in RULES}


def _verdict(rule: Expectation, outcome: Any) -> Verdict:
    if outcome is None:
        return _failed(rule, f"{REPORT} says nothing about it; {AGAIN}")
    try:
        return _judge(rule, outcome)
    except UNREADABLE as error:
        return _failed(rule, f"{REPORT} lacks what this check needs: {error!r}; {AGAIN}")


def _judge(rule: Expectation, outcome: Report) -> Verdict:
    observed, threshold, count = outcome["observed"], outcome["threshold"], outcome["unexpected_count"]
    holds, samples = outcome["success"] is True, list(outcome["sample_ids"])
    numbers = {
        "holds": holds,
        "observed": observed,
        "threshold": threshold,
        "unexpected_count": count,
        "sample_ids": samples,
        "severity": rule.severity,
        "suite": rule.suite,
        "table": rule.table,
        "type": rule.type,
    }
    if outcome["error"]:
        return not_judged(f"could not be evaluated: {outcome['error']}", numbers=numbers)
    against = f"; {count} against it" if count else ""
    return Verdict(
        passed=holds or rule.severity == "info",
        description=f"{'holds' if holds else 'does not hold'}: {observed}, asked for {threshold}{against}",
        numbers=numbers,
        severity="error" if rule.severity == "critical" else "warning",
    )


def _failed(rule: Expectation, description: str) -> Verdict:
    return not_judged(description, numbers={"severity": rule.severity, "suite": rule.suite, "type": rule.type})
