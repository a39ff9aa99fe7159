"""One check of data/manifest for each suite of the data contract: what the stage ``validate`` has seen of it.

A list of all expectations would hide the few that do not hold: in the table of a check they come first.
"""

from collections.abc import Iterator, Mapping

import dagster as dg

from deploy.plural import counted, listed
from pipeline.defs.checks import check_result, contract_failure
from pipeline.defs.translator import POOL, asset_key
from pipeline.gates import data_contract
from pipeline.gates.evidence import Evidence
from pipeline.gates.verdict import Verdict, judge
from pipeline.validation.contract import RULES
from pipeline.workspace import Workspace

MANIFEST = asset_key("data/manifest")
CONTRACT = f"{MANIFEST.to_user_string()} did not pass data_contract"
SUITES = {suite: [rule for rule in RULES if rule.suite == suite] for suite in dict.fromkeys(one.suite for one in RULES)}
SHOWN = 3  # sentences in the description of a check; the table has all


def check_name(suite: str) -> str:
    return f"expectations_{suite}"


@dg.multi_asset_check(
    name="expectations",
    specs=[
        dg.AssetCheckSpec(
            check_name(suite),
            asset=MANIFEST,
            description=f"{counted(len(rules), 'expectation')} of the data contract, on: {suite}.",
            blocking=any(rule.severity == "critical" for rule in rules),
        )
        for suite, rules in SUITES.items()
    ],
    pool=POOL,
    op_tags={"dagster/priority": "1"},  # before data_contract, after whose failure `simclr run` ends
)
def expectation_checks(
    context: dg.AssetCheckExecutionContext, workspace: dg.ResourceParam[Workspace]
) -> Iterator[dg.AssetCheckResult]:
    """All of them at once. Dagster silently skips a check that yields no result, so each yields one in any case."""
    verdicts = data_contract.fail_all("was not evaluated; see the error of this step")
    try:
        verdicts = data_contract.judge_expectations(Evidence(workspace))
    finally:
        broken = [name for name, verdict in verdicts.items() if not verdict.passed]
        but = f", but not {listed(broken, 5)}" if broken else ""
        context.log.info(f"expectations: {len(verdicts) - len(broken)} of {len(verdicts)} hold{but}")
        for suite, rules in SUITES.items():
            of_suite = {rule.name: verdicts[rule.name] for rule in rules}
            result = check_result(summarize(of_suite), MANIFEST, check_name(suite))
            yield result._replace(metadata={"expectations": _table(of_suite), **result.metadata})
    contract = judge(data_contract.data_contract, Evidence(workspace))
    if not contract.passed:
        raise contract_failure(context, workspace, [f"{CONTRACT}: {contract.description}"])


def summarize(verdicts: Mapping[str, Verdict]) -> Verdict:
    """Of a suite: what does not hold, the worst first, and how many do."""
    broken = {name: verdicts[name] for name in _ordered(verdicts) if not verdicts[name].passed}
    held = f"{len(verdicts) - len(broken)} of {counted(len(verdicts), 'expectation')} hold"
    stops = any(one.severity == "error" for one in broken.values())
    return Verdict(
        passed=not broken,
        description="; ".join(
            [held, *([listed([one.description for one in broken.values()], SHOWN, "; ")] * bool(broken))]
        ),
        numbers={"held": len(verdicts) - len(broken), "expected": len(verdicts)},
        severity="error" if stops or not broken else "warning",
        judged=all(one.judged for one in broken.values()),
    )


def _ordered(verdicts: Mapping[str, Verdict]) -> list[str]:
    """Errors, warnings, what holds, and what there was nothing to judge of."""

    def place(name: str) -> int:
        one = verdicts[name]
        if one.passed:
            return 2 if one.applicable else 3
        return 0 if one.severity == "error" else 1

    return sorted(verdicts, key=place)


def _table(verdicts: Mapping[str, Verdict]) -> dg.TableMetadataValue:
    return dg.MetadataValue.table(
        [
            dg.TableRecord(
                {
                    "verdict": one.outcome if one.passed or one.severity == "error" else "warning",
                    "expectation": name,
                    "result": one.description,
                }
            )
            for name, one in ((name, verdicts[name]) for name in _ordered(verdicts))
        ]
    )
