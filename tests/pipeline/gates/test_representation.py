"""The gate on kNN and probe: a loss that is not ruled out does not pass, nor does what is no evidence."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.gates.paired_comparison import images_needed, lower_bound, mcnemar_p_value
from pipeline.release.registry import open_registry
from pipeline.workspace import Workspace
from tests.pipeline.gates.reports import (
    ALONE,
    COMPARISON,
    RUN_ID,
    UNLABELLED,
    Rejections,
    compared,
    judge,
    pair,
    put_params,
    put_pretrained,
    record_rejections,
)


@pytest.fixture
def rejections(monkeypatch: pytest.MonkeyPatch) -> Rejections:
    return record_rejections(monkeypatch)


@pytest.fixture(autouse=True)
def params(tmp_path: Path) -> None:
    put_params(tmp_path)


@pytest.mark.parametrize(
    ("knn", "probe", "passed"),
    [
        (pair(100, 100), pair(90, 80), True),
        (pair(100, 115), pair(100, 115), True),  # 0.75 points less: a loss of 2 can be ruled out
        (pair(100, 125), pair(100, 100), False),  # 1.25 points less: it cannot, by either of them
        (pair(100, 100), pair(100, 125), False),
        (pair(0, 60), pair(300, 0), False),  # the gain of one does not pay for the loss of the other
        (pair(0, 0), pair(0, 0), True),
    ],
)
def test_not_worse(
    tmp_path: Path, knn: dict[str, Any], probe: dict[str, Any], passed: bool, rejections: Rejections
) -> None:
    bounds = [100 * lower_bound(2000, one["candidate_only"], one["champion_only"], 0.95) for one in (knn, probe)]
    assert passed is all(bound > -2 for bound in bounds), "the case is not what it says"
    result = compared(tmp_path, "representation", knn=knn, probe=probe)
    assert result.passed is passed
    assert [result.metadata[f"{name}/bound"].value for name in ("knn", "probe")] == bounds
    assert len(rejections) == (not passed)


def test_the_sentence_has_numbers_thresholds_and_the_number_of_images(tmp_path: Path, rejections: Rejections) -> None:
    bound = 100 * lower_bound(2000, 100, 100, 0.95)
    other = 100 * lower_bound(2000, 90, 80, 0.95)
    assert compared(tmp_path, "representation").description == (
        f"kNN 80.00 % against 80.00 % of v0.0.3, with 95 % confidence at least {bound:+.2f} points; linear probe "
        f"80.50 % against 80.00 % of v0.0.3, with 95 % confidence at least {other:+.2f} points; a loss of 2 points is "
        "ruled out by 2000 test images"
    )
    result = compared(tmp_path, "representation", test_images=200, knn=pair(10, 12, 200), probe=pair(9, 9, 200))
    needed = images_needed(200, 10, 12, 0.02, 0.95)
    assert not result.passed
    assert result.description.endswith(
        f"not ruled out by 200 test images; about {needed} would show it of an equally good encoder"
    )
    ((_, candidate, gate, reason, run, metrics),) = rejections
    assert (candidate, gate, reason, run) == (put_pretrained(tmp_path), "representation", result.description, RUN_ID)
    assert metrics["knn/difference"] == pytest.approx(-1)
    assert metrics["test_images"] == 200


def test_more_images_are_not_asked_for_when_there_are_enough(tmp_path: Path, rejections: Rejections) -> None:
    result = compared(tmp_path, "representation", knn=pair(20, 90))
    assert not result.passed
    assert "equally good" not in result.description


@pytest.mark.parametrize(
    ("knn", "probe", "passed"),
    [
        (pair(100, 100), pair(90, 80), False),  # as good is not better
        (pair(130, 90), pair(100, 100), True),
        (pair(100, 100), pair(130, 90), True),
        (pair(115, 88), pair(100, 100), False),  # beyond chance alone, not as one of two chances
        (pair(300, 90), pair(0, 60), False),
    ],
)
def test_better(
    tmp_path: Path, knn: dict[str, Any], probe: dict[str, Any], passed: bool, rejections: Rejections
) -> None:
    put_params(tmp_path, release_if="better")
    result = compared(tmp_path, "representation", knn=knn, probe=probe)
    assert result.passed is passed
    p_value = mcnemar_p_value(knn["candidate_only"], knn["champion_only"])
    assert f"McNemar p {p_value:.2g} and" in result.description
    assert result.description.endswith("one of them must be at most 0.025")
    assert result.metadata["knn/p_value"].value == p_value
    assert len(rejections) == (not passed)


def test_thresholds_are_those_of_the_time_of_the_check(tmp_path: Path, rejections: Rejections) -> None:
    worse = {"knn": pair(100, 125), "probe": pair(100, 125)}
    assert not compared(tmp_path, "representation", **worse).passed
    put_params(tmp_path, max_loss=3.0)
    assert compared(tmp_path, "representation", **worse).passed
    put_params(tmp_path, max_loss=3.0, confidence=0.999)
    assert not compared(tmp_path, "representation", **worse).passed
    put_params(tmp_path, max_loss=0.0)
    assert not compared(tmp_path, "representation").passed


@pytest.mark.parametrize("report", [ALONE, UNLABELLED])
def test_with_nothing_to_compare_it_passes_with_words(
    tmp_path: Path, report: dict[str, Any], rejections: Rejections
) -> None:
    result = compared(tmp_path, "representation", report)
    assert result.passed
    assert result.description == f"nothing to compare: {report['reason']}"
    assert rejections == []


@pytest.mark.parametrize(
    "values",
    [
        {"knn": pair(100, 100) | {"candidate_only": 100.5}},
        {"knn": pair(100, 100) | {"candidate_only": -1}},
        {"knn": pair(100, 100) | {"candidate_only": None}},
        {"probe": pair(1500, 1500)},
        {"probe": None},
        {"test_images": 0},
        {"test_images": float("nan")},
        {"knn": pair(100, 100) | {"champion": float("nan")}},
    ],
)
def test_impossible_counts_do_not_pass(tmp_path: Path, values: dict[str, Any], rejections: Rejections) -> None:
    result = compared(tmp_path, "representation", **values)
    assert not result.passed
    assert result.description.startswith(COMPARISON)
    assert rejections == []


@pytest.mark.parametrize("gate", ["representation", "size_budget", "old_index"])
@pytest.mark.parametrize("text", [None, "", "{}", "[]", "null", '{"reason": null, "champion": "v1"}'])
def test_a_missing_or_broken_comparison_does_not_pass(
    tmp_path: Path, gate: str, text: str | None, rejections: Rejections
) -> None:
    result = judge(tmp_path, gate, {} if text is None else {COMPARISON: text})
    assert not result.passed
    assert result.description.startswith(COMPARISON)
    assert rejections == []


@pytest.mark.parametrize("gate", ["representation", "low_label", "latency_budget", "size_budget", "old_index"])
def test_a_fault_in_the_parameters_is_named(tmp_path: Path, gate: str, rejections: Rejections) -> None:
    put_params(tmp_path, max_los=1.0)
    result = compared(tmp_path, gate)
    assert not result.passed
    assert "gates.max_los: unknown key; did you mean max_loss?" in result.description
    assert rejections == []


def test_the_registry_keeps_what_was_refused(tmp_path: Path) -> None:
    result = compared(tmp_path, "representation", knn=pair(0, 200))
    assert not compared(tmp_path, "size_budget", megabytes={"candidate": 9.0, "champion": 4.0}).passed
    (kept,) = open_registry(Workspace(tmp_path)).rejections()
    assert (kept.candidate, kept.run_id) == (put_pretrained(tmp_path), RUN_ID)
    assert kept.gate == "representation, size_budget"
    assert result.description is not None
    assert result.description in kept.reason
    assert kept.metrics["knn/difference"] == -10
