"""What the released encoder says about the newest batch, as a check that warns and never blocks.

Drift is no fault of the candidate, and training on the new images is what helps against it. The drift of the images'
own statistics is the expectation ``no_drift`` of the data contract.
"""

import dagster as dg

from pipeline.defs.translator import POOL, asset_key
from pipeline.gates.evidence import Evidence
from pipeline.workspace import Workspace

REPORT = "reports/embedding_drift.json"


@dg.asset_check(
    asset=asset_key(REPORT),
    description="To the released encoder, the newest batch looks like the earlier images.",
    pool=POOL,
)
def embedding_drift(workspace: dg.ResourceParam[Workspace]) -> dg.AssetCheckResult:
    """A warning with every effect beside its threshold; before the first release there is nothing to judge."""
    try:
        return _told(Evidence(workspace), REPORT)
    except FileNotFoundError:
        description = f"{REPORT} does not exist; run the stage that writes it"
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        description = f"{REPORT} cannot be read: {error!r}; run the stage that writes it again"
    return dg.AssetCheckResult(passed=False, severity=dg.AssetCheckSeverity.WARN, description=description)


def _told(evidence: Evidence, path: str) -> dg.AssetCheckResult:
    report = evidence.report(path)
    champion, statistics = report["champion"], report["statistics"]
    judged: dict[str, float | str] = {
        "champion": champion["version"] or "none yet",
        "bundle": (champion["bundle"] or "none yet")[:12],
        "batch": report["batch"],
        "images": f"{report['batch_images']} new, {report['reference_images']} earlier",
    }
    for one in statistics:
        judged |= {one["name"]: one["effect"], f"{one['name']}/threshold": one["threshold"]}
    return dg.AssetCheckResult(
        passed=report["verdict"] != "drift",
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{report['verdict']}: {report['advice']}",
        metadata=judged | ({"mmd_p_value": report["mmd_p_value"]} if statistics else {}),
    )
