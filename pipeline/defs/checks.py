"""The gates as Dagster checks, in the order in which a candidate meets them; those against the champion come last.

They are checks rather than parts of a stage, so that they can be repeated without computing anything, and also hold
when DVC skips the stage.
"""

import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path

import dagster as dg

from deploy.artifact import identity
from deploy.errors import DeployError
from pipeline.defs.failures import GateFailure
from pipeline.defs.translator import POOL, asset_key
from pipeline.errors import FORESEEN, PipelineError
from pipeline.gates import all_gates
from pipeline.gates.data_contract import data_contract
from pipeline.gates.evidence import Evidence
from pipeline.gates.stages import embedding_drift
from pipeline.gates.verdict import Gate, Verdict, judge
from pipeline.ingest import unfinished
from pipeline.release import registry
from pipeline.reports import EmbeddingDriftReport
from pipeline.run_report import page
from pipeline.workspace import Workspace

SEVERITIES = {"error": dg.AssetCheckSeverity.ERROR, "warning": dg.AssetCheckSeverity.WARN}


RETRY = "follow the advice in the report, then `simclr run`; what is up to date is not computed again"
CORRECT = "correct the images or the decisions that the report names, then `simclr run`"


def check_result(
    verdict: Verdict, asset_key: dg.AssetKey | None = None, check_name: str | None = None
) -> dg.AssetCheckResult:
    """A verdict in Dagster's terms; a check of several at once has to say which of them it is about."""
    return dg.AssetCheckResult(
        passed=verdict.passed,
        asset_key=asset_key,
        check_name=check_name,
        severity=SEVERITIES[verdict.severity],
        description=verdict.description,
        metadata={"verdict": verdict.outcome, **verdict.numbers},
    )


def blocking_checks(asset: str, gates: Sequence[Gate]) -> dg.AssetChecksDefinition:
    """Make blocking checks of the asset at this path out of gates, whose docstrings are what the UI says of them.

    They share a step: Dagster ends ``simclr run`` at the first step that fails, and every gate is to be asked.
    """
    key = asset_key(asset)
    specs = [
        dg.AssetCheckSpec(gate.__name__, asset=key, description=inspect.getdoc(gate), blocking=True) for gate in gates
    ]

    @dg.multi_asset_check(name=f"gates_{'_'.join(key.path)}".replace("-", "_"), specs=specs, pool=POOL)
    def checks(
        context: dg.AssetCheckExecutionContext, workspace: dg.ResourceParam[Workspace]
    ) -> Iterator[dg.AssetCheckResult]:
        evidence, failed = Evidence(workspace), list[str]()
        for gate in gates:
            name, verdict = gate.__name__, judge(gate, evidence)
            stops = not verdict.passed and verdict.severity == "error"
            if stops:
                failed.append(f"{key.to_user_string()} did not pass {name}: {verdict.description}")
            if stops and verdict.judged:
                unfinished.end(workspace)  # of this candidate
            if stops and verdict.judged and gate is not data_contract:  # before which there is no candidate
                _reject(context, workspace, name, verdict)
            context.log.info(f"{name}: {verdict}")
            yield check_result(verdict, key, name)
        if failed and gates[0] is data_contract:
            raise contract_failure(context, workspace, failed)
        if failed:
            raise GateFailure(context.instance, failed, RETRY, _page(context, workspace))

    return checks


def contract_failure(
    context: dg.AssetCheckExecutionContext, workspace: Workspace, sentences: Sequence[str]
) -> GateFailure:
    """Whose report is that of the validation; each sentence has its advice."""
    return GateFailure(context.instance, sentences, CORRECT, workspace.reports / "validation.html")


def _page(context: dg.AssetCheckExecutionContext, workspace: Workspace) -> Path | None:
    """The page of the run as far as it went; the gate blocks without it too."""
    try:
        return page.write(workspace)
    except (*FORESEEN, OSError) as error:
        context.log.warning(f"reports/run.html could not be written: {error}")
        return None


@dg.asset_check(
    name="embedding_drift",
    asset=asset_key(EmbeddingDriftReport.path),
    description=inspect.getdoc(embedding_drift),
    pool=POOL,
)
def drift_check(workspace: dg.ResourceParam[Workspace]) -> dg.AssetCheckResult:
    """A warning with every effect and its threshold; before the first release there is nothing to judge."""
    return check_result(embedding_drift(Evidence(workspace)))


GATES = tuple(
    blocking_checks(asset, [gate for gate, about in all_gates.GATES.items() if about == asset])
    for asset in dict.fromkeys(all_gates.GATES.values())
)


def _reject(context: dg.AssetCheckExecutionContext, workspace: Workspace, gate: str, verdict: Verdict) -> None:
    """Record the verdict. If that fails, the gate still blocks, and the log says that the record is missing."""
    metrics = {name: value for name, value in verdict.numbers.items() if isinstance(value, int | float)}
    try:
        candidate = identity(workspace.root / "models" / "pretrained")[:12]
        registry.open_registry(workspace).reject(candidate, gate, verdict.description, context.run.run_id, metrics)
    except (DeployError, PipelineError, OSError) as error:
        context.log.error(f"{gate}: the rejection could not be recorded: {error}")
