"""Reports as JSON has them, each of a candidate that passes, and some variations."""

from dataclasses import asdict
from typing import Any

from pipeline.validation.contract import RULES
from tests import reports

COMPARISON, LATENCY, CHAMPION = "reports/compare.json", ".simclr/timings/latency.json", "models/champion/champion.json"
CONTRACT, EMBEDDING_DRIFT = "reports/validation.json", "reports/embedding_drift.json"
NOTHING = {"candidate": 81.0, "champion": None, "candidate_only": None, "champion_only": None}
NO_INDEX = {"comparable": False, "old_queries": None, "new_queries": None, "same_neighbour": None}

VALIDATION: dict[str, Any] = asdict(reports.VALIDATION)
PRETRAIN: dict[str, Any] = asdict(reports.PRETRAIN)
LINEAR_EVAL: dict[str, Any] = asdict(reports.LINEAR_EVAL)
FINETUNE: dict[str, Any] = asdict(reports.FINETUNE)
EXPORT: dict[str, Any] = asdict(reports.EXPORT)
COMPARE: dict[str, Any] = asdict(reports.COMPARE)
PINNED: dict[str, Any] = {"version": "v0.0.3", "reports": {"finetune-0.01": FINETUNE, "linear_eval": {}}}


def pair(won: int, lost: int, images: int = 2000) -> dict[str, float]:
    """Counts around a champion that is right on 80 % of the images."""
    candidate = 80 + 100 * (won - lost) / images
    return {"candidate": candidate, "champion": 80.0, "candidate_only": won, "champion_only": lost}


ALONE: dict[str, Any] = COMPARE | {
    "champion": None,
    "reason": "no encoder has been released yet",
    "knn": NOTHING,
    "probe": NOTHING,
    "old_index": NO_INDEX,
    "megabytes": {"candidate": 4.2, "champion": None},
}
UNLABELED: dict[str, Any] = COMPARE | {
    "reason": "no labeled test images; put some into inbox/test/<class>/",
    "knn": {**NOTHING, "candidate": None},
    "probe": {**NOTHING, "candidate": None},
    "old_index": NO_INDEX,
}
NOT_JUDGED: dict[str, Any] = {
    "verdict": "not judged",
    "batch": "0001",
    "champion": {"version": None, "bundle": None, "preprocessing": None},
    "reference_images": 0,
    "batch_images": 3,
    **dict.fromkeys(("auroc", "mmd", "mmd_p_value", "novel_share")),
    "statistics": [],
    "novel": [],
    "advice": "no encoder has been released yet",
}
DRIFT: dict[str, Any] = NOT_JUDGED | {
    "verdict": "drift",
    "champion": {"version": "v0.0.3", "bundle": "0123456789abcdef", "preprocessing": {"size": 28, "resize": 28}},
    "mmd_p_value": 0.005,
    "statistics": [{"name": "novel_share", "effect": 0.27, "threshold": 0.05, "drifted": True}],
    "advice": "to v0.0.3 the new images differ: look at reports/novel.png",
}
CRITICAL, WARNING, INFO = "short_side", "not_dark", "no_gps"
"""An expectation of each severity."""


def outcome(name: str, **changes: Any) -> dict[str, Any]:
    """What the stage ``validate`` says of an expectation that holds."""
    (rule,) = [rule for rule in RULES if rule.name == name]
    fine = {"success": True, "observed": 1.0, "unexpected_count": 0, "sample_ids": [], "error": None}
    return {"name": name, "suite": rule.suite, "severity": rule.severity, "threshold": "as asked", **fine} | changes


def unmet(name: str, **changes: Any) -> dict[str, Any]:
    ids = [f"{number:016x}-{number:012x}" for number in range(10)]
    return outcome(name, success=False, observed=0.9, unexpected_count=31, sample_ids=ids) | changes


def contract(*changed: dict[str, Any], without: str = "", passed: bool = True) -> dict[str, Any]:
    """The whole report, in which all but these expectations hold."""
    outcomes = {rule.name: outcome(rule.name) for rule in RULES if rule.name != without}
    outcomes |= {one["name"]: one for one in changed}
    images = {"ingested": 40, "accepted": 38, "converted": 0, "quarantined": {"too_small": 2}}
    return {"passed": passed, "images": images, "expectations": list(outcomes.values())}
