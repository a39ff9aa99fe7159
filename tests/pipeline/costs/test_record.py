"""What a run was expected to cost is kept next to what it did cost, and corrects the next expectation."""

from pathlib import Path

import pytest

from pipeline.costs import record
from pipeline.costs.comparison import TOTAL, comparison, comparison_rows
from pipeline.costs.model import REST, Cost


def test_stages_are_compared_when_both_are_known(tmp_path: Path) -> None:
    record.begin(tmp_path, "run", {"prepare": Cost(10, 2e9, 100), "compare": Cost(1, 1, 1)})
    record.note(tmp_path, "run", "prepare", Cost(12, 1e9, 50))
    record.note(tmp_path, "run", "other", Cost(1, 1, 1))
    record.note(tmp_path, "another run", "compare", Cost(9, 9, 9))
    found = record.latest(tmp_path)
    assert comparison(found) == {
        "prepare": (Cost(10, 2e9, 100), Cost(12, 1e9, 50)),
        TOTAL: (Cost(10, 2e9, 100), Cost(12, 1e9, 50)),
    }
    _, row, _ = comparison_rows(comparison(found))
    assert row == ["prepare", "10 s", "12 s", "1.20", "2.0 GB", "1.0 GB", "100 bytes", "50 bytes", "0.50"]


def test_how_far_a_stage_was_off_corrects_the_model_and_not_the_correction(tmp_path: Path) -> None:
    assert record.factors(tmp_path) == {}
    record.begin(tmp_path, "one", {"prepare": Cost(10)})
    record.note(tmp_path, "one", "prepare", Cost(15))
    assert record.factors(tmp_path) == {"prepare": 1.5}
    record.begin(tmp_path, "two", {"prepare": Cost(15)})  # the model says 10, times 1.5
    assert record.factors(tmp_path) == {"prepare": 1.5}, "kept while the stage has not run"
    record.note(tmp_path, "two", "prepare", Cost(20))
    assert record.factors(tmp_path) == {"prepare": 2.0}
    record.note(tmp_path, "two", "prepare", Cost(1e6))
    assert record.factors(tmp_path) == {"prepare": record.MOST_FACTOR}


def test_what_no_stage_took_is_the_rest(tmp_path: Path) -> None:
    record.begin(tmp_path, "run", {})
    record.note(tmp_path, "run", "prepare", Cost(12, 5, 50))
    record.end(tmp_path, "run", Cost(20, 0, 60))
    found = record.latest(tmp_path)
    assert found is not None
    assert found.actual[REST] == Cost(8, 0, 10)
    assert comparison(found) == {}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"run": 1, "expected": {"a": {"seconds": NaN}}}', "\xff"])
def test_a_damaged_record_counts_as_missing(tmp_path: Path, text: str) -> None:
    (tmp_path / ".simclr").mkdir()
    (tmp_path / record.FILE).write_text(text, encoding="latin-1")
    assert record.latest(tmp_path) is None
    assert record.factors(tmp_path) == {}
    record.note(tmp_path, "1", "prepare", Cost(1))
