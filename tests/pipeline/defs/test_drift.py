"""The check of the embeddings' drift: it warns, never blocks, and shows what was measured."""

import json
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from pipeline.defs.checks import drift_check
from pipeline.defs.translator import asset_key
from pipeline.gates.stages import EMBEDDING_DRIFT as REPORT
from pipeline.workspace import Workspace

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
    "advice": "to v0.0.3 the new images differ",
}


def asked(folder: Path, text: str | None) -> dg.AssetCheckResult:
    if text is not None:
        (folder / REPORT).parent.mkdir(parents=True, exist_ok=True)
        (folder / REPORT).write_text(text, encoding="utf-8")
    result = drift_check(workspace=Workspace(folder))
    assert isinstance(result, dg.AssetCheckResult)
    assert result.severity == dg.AssetCheckSeverity.WARN
    return result


def test_it_warns_about_the_asset_of_its_stage_and_does_not_block() -> None:
    (spec,) = drift_check.check_specs
    assert (spec.name, spec.asset_key, spec.blocking) == ("embedding_drift", asset_key(REPORT), False)
    assert spec.description


def test_drift_is_a_warning_with_every_number(tmp_path: Path) -> None:
    result = asked(tmp_path, json.dumps(DRIFT))
    assert not result.passed
    assert result.description == "drift: to v0.0.3 the new images differ"
    shown = {name: value.value for name, value in result.metadata.items()}
    assert (shown["champion"], shown["bundle"], shown["batch"]) == ("v0.0.3", "0123456789ab", "0001")
    assert (shown["novel_share"], shown["novel_share/threshold"], shown["mmd_p_value"]) == (0.27, 0.05, 0.005)


@pytest.mark.parametrize("report", [NOT_JUDGED, DRIFT | {"verdict": "none"}])
def test_anything_else_passes(tmp_path: Path, report: dict[str, Any]) -> None:
    result = asked(tmp_path, json.dumps(report))
    assert result.passed
    assert report["advice"] in (result.description or "")


@pytest.mark.parametrize("text", [None, "", "{", "[]", "{}", '{"verdict": NaN}', json.dumps(DRIFT | {"statistics": 3})])
def test_a_report_that_is_missing_or_broken_does_not_pass(tmp_path: Path, text: str | None) -> None:
    result = asked(tmp_path, text)
    assert not result.passed
    assert REPORT in (result.description or "")
    assert "run the stage" in (result.description or "")
