"""How the tests of the gates run one: on a folder with the given files, and with a registry that only takes notes."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest
import yaml

from deploy.artifact import identity, publish
from pipeline.defs.checks import GATES
from pipeline.workspace import Workspace
from tests.conftest import TINY_PARAMS

COMPARISON, LATENCY, CHAMPION = "reports/compare.json", ".simclr/timings/latency.json", "models/champion/champion.json"
RUN_ID = "b1946ac9"
Rejections = list[tuple[Any, ...]]
NOTHING = {"candidate": 81.0, "champion": None, "candidate_only": None, "champion_only": None}
NO_INDEX = {"comparable": False, "old_queries": None, "new_queries": None, "same_neighbour": None}


def pair(won: int, lost: int, images: int = 2000) -> dict[str, float]:
    """Counts around a champion that is right on 80 % of the images."""
    candidate = 80 + 100 * (won - lost) / images
    return {"candidate": candidate, "champion": 80.0, "candidate_only": won, "champion_only": lost}


COMPARE: dict[str, Any] = {
    "champion": "v0.0.3",
    "test_images": 2000,
    "classes": 10,
    "reason": None,
    "knn": pair(100, 100),
    "probe": pair(90, 80),
    "old_index": {"comparable": True, "old_queries": 80.0, "new_queries": 76.0, "same_neighbour": 41.5},
    "megabytes": {"candidate": 4.2, "champion": 4.0},
}
ALONE = COMPARE | {
    "champion": None,
    "reason": "no encoder has been released yet",
    "knn": NOTHING,
    "probe": NOTHING,
    "old_index": NO_INDEX,
    "megabytes": {"candidate": 4.2, "champion": None},
}
UNLABELLED = COMPARE | {
    "reason": "no labelled test images; put some into inbox/test/<class>/",
    "knn": {**NOTHING, "candidate": None},
    "probe": {**NOTHING, "candidate": None},
    "old_index": NO_INDEX,
}


def record_rejections(monkeypatch: pytest.MonkeyPatch) -> Rejections:
    """What gates have told the registry: workspace, candidate, gate, reason, run, metrics."""
    calls: Rejections = []

    def open_registry(workspace: Workspace) -> SimpleNamespace:
        return SimpleNamespace(reject=lambda *refused: calls.append((workspace, *refused)))

    monkeypatch.setattr("pipeline.release.registry.open_registry", open_registry)
    return calls


def find(gate: str) -> dg.AssetChecksDefinition:
    (check,) = [check for check in GATES if next(iter(check.check_keys)).name == gate]
    return check


def changed(report: dict[str, Any], **values: object) -> str:
    return json.dumps(report | values)


def put_pretrained(folder: Path) -> str:
    """A candidate, and the name under which its rejections are recorded."""
    with publish(folder / "models" / "pretrained", replace=True) as work:
        (work / "model.json").write_text("{}")
    return identity(folder / "models" / "pretrained")[:12]


def put_params(folder: Path, **gates: object) -> None:
    (folder / "params.yaml").write_text(yaml.safe_dump(TINY_PARAMS | {"gates": gates}))


def judge(folder: Path, gate: str, files: dict[str, str], pretrained: bool = True) -> dg.AssetCheckResult:
    """Write the files, and ask the gate as Dagster does."""
    if pretrained:
        put_pretrained(folder)
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        # Dagster gives no run to a check that is called directly.
        patch.setattr(dg.AssetCheckExecutionContext, "run", SimpleNamespace(run_id=RUN_ID))
        result = find(gate)(dg.build_asset_check_context(), Workspace(folder))
    assert isinstance(result, dg.AssetCheckResult)
    assert result.description
    return result


def compared(folder: Path, gate: str, report: dict[str, Any] = COMPARE, **values: object) -> dg.AssetCheckResult:
    return judge(folder, gate, {COMPARISON: changed(report, **values)})
