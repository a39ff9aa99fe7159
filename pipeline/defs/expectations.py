"""One check of data/manifest for each expectation of the data contract: what the stage ``validate`` has seen of it.

A critical expectation that does not hold is an ERROR and blocks what follows, a warning is a WARN, an info passes and
tells. One that could not be evaluated, or that the report does not have, is an ERROR whatever its severity. Whether the
pipeline may go on as a whole is for ``checks.data_contract`` to say.
"""

from collections.abc import Iterator
from typing import Any

import dagster as dg

from pipeline.config import ValidateConfig
from pipeline.defs.translator import POOL, asset_key
from pipeline.gates.evidence import Evidence
from pipeline.validation.expectations import Expectation, expectations
from pipeline.workspace import Workspace

MANIFEST = asset_key("data/manifest")
REPORT = "reports/validation.json"
RULES = expectations(ValidateConfig())
"""Of these only what no parameter changes is used; thresholds are those of the report."""

AGAIN = "run the stage validate again"
UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError)


@dg.multi_asset_check(
    name="expectations",
    specs=[
        dg.AssetCheckSpec(rule.name, asset=MANIFEST, description=rule.meaning, blocking=rule.severity == "critical")
        for rule in RULES
    ],
    pool=POOL,
    op_tags={"dagster/priority": "1"},  # before data_contract: `simclr run` ends with the first gate that does not pass
)
def expectation_checks(
    context: dg.AssetCheckExecutionContext, workspace: dg.ResourceParam[Workspace]
) -> Iterator[dg.AssetCheckResult]:
    """All of them at once. Dagster goes on without a check that says nothing, so each says something at any rate."""
    results = [_failed(rule, "was not looked at; see the error of this step") for rule in RULES]
    try:
        results = _judge(Evidence(workspace))
    finally:
        broken = [result.check_name for result in results if not result.passed]
        context.log.info(f"expectations: {len(results) - len(broken)} of {len(results)} hold{_listed(broken)}")
        yield from results


def _judge(evidence: Evidence) -> list[dg.AssetCheckResult]:
    try:
        outcomes = {outcome["name"]: outcome for outcome in evidence.report(REPORT)["expectations"]}
    except FileNotFoundError:
        return [_failed(rule, f"{REPORT} does not exist; run the stage that writes it") for rule in RULES]
    except UNREADABLE as error:
        return [_failed(rule, f"{REPORT} cannot be read: {error!r}; {AGAIN}") for rule in RULES]
    return [_result(rule, outcomes.get(rule.name)) for rule in RULES]


def _result(rule: Expectation, outcome: Any) -> dg.AssetCheckResult:
    if outcome is None:
        return _failed(rule, f"{REPORT} says nothing about it; {AGAIN}")
    try:
        return _told(rule, outcome)
    except UNREADABLE as error:
        return _failed(rule, f"{REPORT} lacks what this check needs: {error!r}; {AGAIN}")


def _told(rule: Expectation, outcome: dict[str, Any]) -> dg.AssetCheckResult:
    observed, threshold, count = outcome["observed"], outcome["threshold"], outcome["unexpected_count"]
    holds, samples = outcome["success"] is True, list(outcome["sample_ids"])
    metadata = {
        "holds": holds,
        "observed": observed,
        "threshold": threshold,
        "unexpected_count": count,
        "sample_ids": dg.MetadataValue.json(samples),
        "severity": rule.severity,
        "suite": rule.suite,
        "table": rule.table,
        "type": rule.type,
    }
    if outcome["error"]:
        return _failed(rule, f"could not be evaluated: {outcome['error']}", metadata)
    against = f"; {count} against it" if count else ""
    return dg.AssetCheckResult(
        check_name=rule.name,
        asset_key=MANIFEST,
        passed=holds or rule.severity == "info",
        severity=dg.AssetCheckSeverity.ERROR if rule.severity == "critical" else dg.AssetCheckSeverity.WARN,
        description=f"{'holds' if holds else 'does not hold'}: {observed}, asked for {threshold}{against}",
        metadata=metadata,
    )


def _failed(rule: Expectation, description: str, metadata: dict[str, Any] | None = None) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        check_name=rule.name,
        asset_key=MANIFEST,
        passed=False,
        severity=dg.AssetCheckSeverity.ERROR,
        description=description,
        metadata=metadata or {"severity": rule.severity, "suite": rule.suite, "type": rule.type},
    )


def _listed(names: list[Any]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f", but not {', '.join(names[:5])}{more}" if names else ""
