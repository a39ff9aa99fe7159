"""Pictures of the evaluation: which images are in them, and what their titles say."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simclr_core import plots
from simclr_core.evaluation import pictures
from simclr_core.evaluation.pictures import QUERIES, choose_queries, save_confusion


@pytest.mark.parametrize(
    ("counts", "chosen"),
    [([100, 1, 40], [4, 1, 4]), ([500, 3, *[10] * 8], [1] * 10), ([7], [7]), ([5] * 12, [1] * 12), ([50, 50], [6, 6])],
)
def test_every_class_has_a_row_of_neighbors(counts: list[int], chosen: list[int]) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    rows = choose_queries(labels)
    assert len(set(rows.tolist())) == len(rows) <= QUERIES
    assert np.bincount(labels[rows], minlength=len(counts)).tolist() == chosen


def test_of_many_classes_and_of_none_there_are_some_rows() -> None:
    assert len(choose_queries(np.repeat(np.arange(40), 3))) == QUERIES
    assert len(choose_queries(np.full(30, -1))) == QUERIES
    assert choose_queries(np.empty(0, np.int64)).tolist() == []


def test_the_title_of_the_confusion_matrix_has_the_accuracy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(plots, "confusion_matrix", lambda *shown: drawn.extend(shown))
    actual, predicted = np.array([0, 0, 1, 1, 1, 1, 1]), np.array([0, 1, 1, 1, 1, 0, 1])
    save_confusion(tmp_path, actual, predicted, ["cat", "dog"])
    path, matrix, _, title = drawn
    assert path == tmp_path / pictures.CONFUSION
    assert matrix.tolist() == [[1, 1], [1, 4]]
    assert title == "Linear probe: 71.4 % of 7 answers right; a dark diagonal is good"
