"""The gates as Dagster checks, in the order in which a candidate meets them; those against the champion come last.

Each is a separate check rather than part of a stage, so that it can be repeated without computing anything, and also
holds when DVC skips the stage.
"""

import inspect

import dagster as dg

from deploy.artifact import identity
from deploy.errors import DeployError
from pipeline.defs.translator import POOL, asset_key
from pipeline.errors import PipelineError
from pipeline.gates import all_gates
from pipeline.gates.data_contract import data_contract
from pipeline.gates.evidence import Evidence
from pipeline.gates.stages import embedding_drift
from pipeline.gates.verdict import Gate, Verdict, judge
from pipeline.ingest import unfinished
from pipeline.release import registry
from pipeline.reports import EmbeddingDriftReport
from pipeline.workspace import Workspace

SEVERITIES = {"error": dg.AssetCheckSeverity.ERROR, "warning": dg.AssetCheckSeverity.WARN}


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


def blocking_check(asset: str, gate: Gate, rejects: bool = True) -> dg.AssetChecksDefinition:
    """Make a blocking check of the asset at this path out of a gate, whose docstring is what the UI says of it.

    With ``rejects``, a verdict against the candidate is recorded in the registry.
    """
    name = gate.__name__

    @dg.asset_check(name=name, asset=asset_key(asset), description=inspect.getdoc(gate), blocking=True, pool=POOL)
    def check(context: dg.AssetCheckExecutionContext, workspace: dg.ResourceParam[Workspace]) -> dg.AssetCheckResult:
        verdict = judge(gate, Evidence(workspace))
        if verdict.judged and not verdict.passed:
            unfinished.end(workspace)  # of this candidate
            if rejects:
                _reject(context, workspace, name, verdict)
        context.log.info(f"{name}: {verdict}")
        return check_result(verdict)

    return check


@dg.asset_check(
    name="embedding_drift",
    asset=asset_key(EmbeddingDriftReport.path),
    description=inspect.getdoc(embedding_drift),
    pool=POOL,
)
def drift_check(workspace: dg.ResourceParam[Workspace]) -> dg.AssetCheckResult:
    """A warning with every effect and its threshold; before the first release there is nothing to judge."""
    return check_result(embedding_drift(Evidence(workspace)))


GATES = tuple(blocking_check(asset, gate, rejects=gate is not data_contract) for gate, asset in all_gates.GATES.items())


def _reject(context: dg.AssetCheckExecutionContext, workspace: Workspace, gate: str, verdict: Verdict) -> None:
    """Record the verdict. If that fails, the gate still blocks, and the log says that the record is missing."""
    metrics = {name: value for name, value in verdict.numbers.items() if isinstance(value, int | float)}
    try:
        candidate = identity(workspace.root / "models" / "pretrained")[:12]
        registry.open_registry(workspace).reject(candidate, gate, verdict.description, context.run.run_id, metrics)
    except (DeployError, PipelineError, OSError) as error:
        context.log.error(f"{gate}: the rejection could not be recorded: {error}")
