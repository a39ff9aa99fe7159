"""One check of data/manifest for each expectation of the data contract: what the stage ``validate`` has seen of it."""

from collections.abc import Iterator

import dagster as dg

from deploy.plural import listed
from pipeline.defs.checks import check_result
from pipeline.defs.translator import POOL, asset_key
from pipeline.gates import data_contract
from pipeline.gates.evidence import Evidence
from pipeline.validation.contract import RULES
from pipeline.workspace import Workspace

MANIFEST = asset_key("data/manifest")


@dg.multi_asset_check(
    name="expectations",
    specs=[
        dg.AssetCheckSpec(rule.name, asset=MANIFEST, description=rule.meaning, blocking=rule.severity == "critical")
        for rule in RULES
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
        for name, verdict in verdicts.items():
            yield check_result(verdict, MANIFEST, name)
