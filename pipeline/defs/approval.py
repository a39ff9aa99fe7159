"""The check ``approved`` of the released encoder: whether its candidate waits for a person, or what was decided.

It warns and never blocks: a run that asks a person has done its work.
"""

import dagster as dg

from pipeline.release.approval import Held
from pipeline.release.serving import Released
from pipeline.waiting import Candidate, clock

RELEASED = dg.AssetKey("released_encoder")
APPROVED = dg.AssetCheckSpec(
    "approved",
    asset=RELEASED,
    description="Whether the newest candidate waits for a person, or what a person has decided; see gates.approval.",
)


def approval_check(done: Released | Held) -> dg.AssetCheckResult:
    """What a release says of the candidate of the workspace."""
    if isinstance(done, Released):
        how = f"approved {done.approved}" if done.approved else "no person had to approve it"
        said = f"{done.version} serves; {how}"
        return dg.AssetCheckResult(passed=True, asset_key=RELEASED, check_name=APPROVED.name, description=said)
    return dg.AssetCheckResult(
        passed=False,
        asset_key=RELEASED,
        check_name=APPROVED.name,
        severity=dg.AssetCheckSeverity.WARN,
        description=done.said,
        metadata=_describe(done.candidate) if done.candidate else {},
    )


def approval_evaluation(done: Released | Held) -> dg.AssetCheckEvaluation:
    """The same outside of a run: a person has decided."""
    result = approval_check(done)
    return dg.AssetCheckEvaluation(
        asset_key=RELEASED,
        check_name=APPROVED.name,
        passed=result.passed,
        metadata=result.metadata,
        severity=result.severity,
        description=result.description,
    )


def _describe(candidate: Candidate) -> dict[str, dg.MetadataValue | str]:
    page = f"/candidates/{candidate.name}"
    return {
        "look and decide": dg.MetadataValue.md(f"[candidate and champion]({page})"),
        "or with": dg.MetadataValue.md(candidate.next),
        "asked because": "; ".join(candidate.reasons),
        "waits until": f"{clock(candidate.expires)} UTC",
        "compared with": candidate.champion or "no champion",
        **{f"gates/{name}": said for name, said in candidate.gates.items()},
    }
