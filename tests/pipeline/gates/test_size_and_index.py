"""The gates on the size of the ONNX file and on the champion's index."""

from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.gates.reports import (
    ALONE,
    COMPARE,
    COMPARISON,
    NO_INDEX,
    UNLABELLED,
    Rejections,
    compared,
    put_params,
    record_rejections,
)


@pytest.fixture
def rejections(monkeypatch: pytest.MonkeyPatch) -> Rejections:
    return record_rejections(monkeypatch)


@pytest.fixture(autouse=True)
def params(tmp_path: Path) -> None:
    put_params(tmp_path)


@pytest.mark.parametrize(
    ("report", "gates", "passed", "says"),
    [
        (COMPARE, {}, True, "4.2 MB (ONNX file); the champion's 4 MB, 1.5 times as much allowed"),
        (COMPARE, {"max_size_ratio": 1.05}, True, "1.05 times as much allowed"),
        (COMPARE, {"max_size_ratio": 1.04}, False, "1.04 times as much allowed"),
        (COMPARE, {"max_megabytes": 4.1}, False, "at most 4.1 MB allowed"),
        (COMPARE, {"max_megabytes": 4.2}, True, "at most 4.2 MB allowed; the champion's"),
        (ALONE, {}, True, "no champion and no limit to hold it against"),
        (ALONE, {"max_megabytes": 4.1}, False, "at most 4.1 MB allowed"),
        (UNLABELLED, {"max_size_ratio": 1.0}, False, "1 times as much"),  # labels do not matter here
    ],
)
def test_size(
    tmp_path: Path, report: dict[str, Any], gates: dict[str, Any], passed: bool, says: str, rejections: Rejections
) -> None:
    put_params(tmp_path, **gates)
    result = compared(tmp_path, "size_budget", report)
    assert result.passed is passed
    assert says in result.description
    assert result.metadata["MB"].value == 4.2
    assert len(rejections) == (not passed)


def test_a_champion_without_a_size_does_not_pass(tmp_path: Path, rejections: Rejections) -> None:
    result = compared(tmp_path, "size_budget", megabytes={"candidate": 4.2, "champion": None})
    assert not result.passed
    assert result.description.startswith(f"{COMPARISON} lacks")


@pytest.mark.parametrize(
    ("index", "reported", "required", "says"),
    [
        (COMPARE["old_index"], True, True, "the index can stay"),
        (COMPARE["old_index"] | {"new_queries": 75.0}, True, True, "the index can stay"),
        (COMPARE["old_index"] | {"new_queries": 74.9}, True, False, "embed everything again"),
        (NO_INDEX, True, False, "their vectors have different lengths; embed everything again"),
    ],
)
def test_old_index(
    tmp_path: Path, index: dict[str, Any], reported: bool, required: bool, says: str, rejections: Rejections
) -> None:
    for mode, passed in (("report", reported), ("require", required)):
        put_params(tmp_path, old_index=mode)
        result = compared(tmp_path, "old_index", old_index=index)
        assert result.passed is passed
        assert says in result.description
        assert ("(reported only)" in result.description) is (mode == "report" and index["comparable"])
    assert len(rejections) == (not required)


def test_the_old_index_in_words(tmp_path: Path) -> None:
    assert compared(tmp_path, "old_index").description == (
        "kNN in the index of v0.0.3: 80.00 % with its own queries, 76.00 % with the candidate's, 5 points may be lost "
        "(reported only); 41.50 % of 2000 test images keep their nearest neighbour; the index can stay"
    )


def test_what_is_required_and_cannot_be_had_does_not_pass(tmp_path: Path, rejections: Rejections) -> None:
    put_params(tmp_path, old_index="require")
    assert not compared(tmp_path, "old_index", UNLABELLED).passed
    assert compared(tmp_path, "old_index", ALONE).passed, "before the first release there is no old index"
