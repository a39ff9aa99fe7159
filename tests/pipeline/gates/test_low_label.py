"""The gate on few labels: against training from scratch, and against what the champion's report says."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.gates.reports import CHAMPION, Rejections, changed, judge, put_params, record_rejections

FINETUNE: dict[str, Any] = {
    "fraction": "0.01",
    "labels": 80,
    "top1": 70.0,
    "ci95": 1.0,
    "scratch_top1": 60.0,
    "scratch_ci95": 2.0,
    "reason": None,
}
PINNED: dict[str, Any] = {"version": "v0.0.3", "reports": {"finetune-0.01": FINETUNE, "linear_eval": {}}}


@pytest.fixture
def rejections(monkeypatch: pytest.MonkeyPatch) -> Rejections:
    return record_rejections(monkeypatch)


@pytest.fixture(autouse=True)
def params(tmp_path: Path) -> None:
    put_params(tmp_path)


@pytest.mark.parametrize(
    ("ours", "champion", "passed"),
    [
        ({}, {}, True),
        ({"scratch_top1": 73.0, "scratch_ci95": 2.0}, {}, True),  # 70 + 1 reaches 73 - 2
        ({"scratch_top1": 73.1, "scratch_ci95": 2.0}, {}, False),
        ({"top1": 65.0}, {}, True),  # 65 + 1 reaches 70 - 1 - 3
        ({"top1": 64.9}, {}, False),
        ({"top1": 64.9, "ci95": None}, {}, False),  # one seed: no interval to allow for
        ({"top1": 66.0, "ci95": None}, {"ci95": None}, False),
        ({"top1": 67.0, "ci95": None}, {"ci95": None}, True),
        ({"top1": 64.0}, {"top1": None, "ci95": None}, True),  # the champion had no labels
    ],
)
def test_low_label(
    tmp_path: Path, ours: dict[str, Any], champion: dict[str, Any], passed: bool, rejections: Rejections
) -> None:
    pinned = PINNED | {"reports": {"finetune-0.01": FINETUNE | champion}}
    files = {CHAMPION: json.dumps(pinned), "reports/finetune-0.01.json": changed(FINETUNE, **ours)}
    assert judge(tmp_path, "low_label", files).passed is passed
    assert len(rejections) == (not passed)


def test_each_fraction_is_judged_and_told(tmp_path: Path, rejections: Rejections) -> None:
    """The champion knows only one of them."""
    files = {
        CHAMPION: json.dumps(PINNED),
        "reports/finetune-0.01.json": json.dumps(FINETUNE),
        "reports/finetune-0.1.json": changed(FINETUNE, fraction="0.1", labels=800, top1=80.0, scratch_top1=90.0),
    }
    result = judge(tmp_path, "low_label", files)
    assert not result.passed
    assert result.description == (
        "70.00 ± 1.00 % with 80 labels, from scratch 60.00 ± 2.00 %, v0.0.3 70.00 ± 1.00 % (may lose 3 points); "
        "80.00 ± 1.00 % with 800 labels, from scratch 90.00 ± 2.00 %"
    )
    assert result.metadata["0.1/top1"].value == 80.0


@pytest.mark.parametrize("worse", [{"scratch_top1": 90.0}, {"top1": 60.0}])
@pytest.mark.parametrize("place", [0, 1])
def test_one_bad_fraction_is_enough(
    tmp_path: Path, worse: dict[str, float], place: int, rejections: Rejections
) -> None:
    fractions = ("0.01", "0.1")
    pinned = PINNED | {"reports": {f"finetune-{fraction}": FINETUNE for fraction in fractions}}
    files = {f"reports/finetune-{one}.json": changed(FINETUNE, fraction=one) for one in fractions}
    assert judge(tmp_path, "low_label", {CHAMPION: json.dumps(pinned)} | files).passed
    bad = f"reports/finetune-{fractions[place]}.json"
    assert not judge(tmp_path, "low_label", {bad: changed(FINETUNE, fraction=fractions[place], **worse)}).passed


def test_low_label_without_a_champion_or_without_labels(tmp_path: Path, rejections: Rejections) -> None:
    files = {CHAMPION: '{"version": null}', "reports/finetune-0.01.json": changed(FINETUNE, top1=62.0)}
    assert judge(tmp_path, "low_label", files).passed
    nothing = changed(FINETUNE, top1=None, ci95=None, scratch_top1=None, scratch_ci95=None, reason="no labels")
    result = judge(tmp_path, "low_label", {CHAMPION: json.dumps(PINNED), "reports/finetune-0.01.json": nothing})
    assert result.passed
    assert result.description == "nothing to compare on 0.01 of the labels: no labels"


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({CHAMPION: json.dumps(PINNED)}, "reports/finetune-*.json does not exist"),
        ({"reports/finetune-0.01.json": json.dumps(FINETUNE)}, f"{CHAMPION} does not exist"),
        ({CHAMPION: "{}", "reports/finetune-0.01.json": json.dumps(FINETUNE)}, f"{CHAMPION} lacks"),
        ({CHAMPION: json.dumps(PINNED), "reports/finetune-0.01.json": "{}"}, "reports/finetune-0.01.json lacks"),
        (
            {CHAMPION: json.dumps(PINNED), "reports/finetune-0.01.json": changed(FINETUNE, top1=float("nan"))},
            "reports/finetune-0.01.json cannot be read: NaN is not a number",
        ),
    ],
)
def test_low_label_without_its_evidence(
    tmp_path: Path, files: dict[str, str], says: str, rejections: Rejections
) -> None:
    result = judge(tmp_path, "low_label", files)
    assert not result.passed
    assert says in result.description
    assert rejections == []
