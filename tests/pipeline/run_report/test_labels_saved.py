"""Labels saved, compared with numbers that are found by trying each number of labels."""

import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest

from benchmarks.pipeline import labels_saved as committed
from pipeline.run_report.labels_saved import (
    Point,
    describe,
    find_best,
    find_labels_saved,
    find_worth,
    labels_to_reach,
    read_curves,
)
from simclr_core.evaluation_reports import BudgetAccuracies, Estimate, LinearEvalReport
from tests.reports import FINETUNE, LINEAR_EVAL, SEVERAL, TUNED


def budget(labels: int, simclr: float, random: float, pixels: float, half: float = 2.0) -> BudgetAccuracies:
    return BudgetAccuracies(labels, 3, *(Estimate(one, one - half, one + half) for one in (simclr, random, pixels)))


EVALUATION = replace(
    LINEAR_EVAL,
    budgets={
        "1 per class": budget(10, 50.0, 30.0, 35.0),
        "0.01": budget(80, 70.0, 48.0, 50.0),
        "0.1": budget(800, 80.0, 62.0, 68.0),
        "1.0": budget(8000, 85.0, 72.0, 78.0),
    },
)
SCRATCH = replace(FINETUNE, labels=800, fraction="0.1", scratch_interval=Estimate(69.0, 66.0, 72.0))


def reached_by_trying(target: float, curve: list[tuple[int, float]]) -> float | None:
    """The first of many numbers of labels with which the interpolated curve, as high as it ever was, is there."""
    xs = np.log([labels for labels, _ in curve])
    highest = np.maximum.accumulate([value for _, value in curve])
    for x in np.linspace(xs[0], xs[-1], 20_001):
        if np.interp(x, xs, highest) >= target:
            return math.exp(x)
    return None


@pytest.mark.parametrize("target", [20.0, 40.0, 41.0, 55.0, 57.0, 60.0, 79.9, 80.0, 80.1])
def test_the_labels_are_those_of_the_interpolated_curve(target: float) -> None:
    curve = [(10, 40.0), (20, 55.0), (50, 52.0), (100, 58.0), (1000, 80.0)]  # one point is lower by chance
    expected = reached_by_trying(target, curve)
    found = labels_to_reach(target, curve)
    assert found == (None if expected is None else pytest.approx(expected, rel=1e-3))


def test_an_equal_value_is_reached_by_its_labels() -> None:
    assert labels_to_reach(50.0, [(10, 50.0), (20, 50.0)]) == 10
    assert labels_to_reach(50.0, [(10, 40.0), (20, 50.0), (40, 50.0)]) == pytest.approx(20)
    assert labels_to_reach(50.0, []) is None


def test_the_sentence_is_of_the_smallest_share() -> None:
    found = find_labels_saved(EVALUATION, [SCRATCH])
    assert found
    # 70 % is between 69 on 800 labels, from scratch, and 78 on 8,000 labels, of pixels: 800 times 10 to the ninth.
    assert [one.without for one in found.worth if one.labels == 80] == [pytest.approx(800 * 10 ** (1 / 9))]
    assert found.sentence.startswith("80 labels with this encoder are worth 1,000 labels without it (95 % interval: ")


def test_the_interval_has_what_cannot_be_distinguished() -> None:
    """Both half-widths are 2 points, so together 2.83."""
    without = [Point(10, 40.0, 38.0, 42.0), Point(1000, 80.0, 78.0, 82.0)]
    found = find_worth(Point(5, 60.0, 58.0, 62.0), without)
    assert found.without == pytest.approx(100)
    assert found.low == pytest.approx(10 ** (1 + (20 - math.sqrt(8)) / 20))
    assert found.high == pytest.approx(10 ** (1 + (20 + math.sqrt(8)) / 20))


def test_where_it_is_never_reached_it_is_more_than_was_measured() -> None:
    without = [Point(10, 40.0, 38.0, 42.0), Point(1000, 80.0, 78.0, 82.0)]
    assert describe(find_worth(Point(5, 90.0, 88.0, 92.0), without)) == (
        "5 labels with this encoder are worth more than 1,000 labels without it (95 % interval: more than 1,000)."
    )
    assert "worth 890 labels without it (95 % interval: 640 to more than 1,000)." in describe(
        find_worth(Point(5, 79.0, 77.0, 81.0), without)
    )


def test_an_encoder_that_is_worse_saves_none() -> None:
    without = [Point(10, 40.0, 38.0, 42.0), Point(1000, 80.0, 78.0, 82.0)]
    assert describe(find_worth(Point(1000, 45.0, 43.0, 47.0), without)) == (
        "1,000 labels with this encoder are worth 18 labels without it (95 % interval: 13 to 25)."
    )
    assert "worth at most 10 labels without it (95 % interval: at most 10)." in describe(
        find_worth(Point(5, 30.0, 28.0, 32.0), without)
    )


def test_without_the_encoder_is_the_best_of_each_number() -> None:
    points = [Point(10, 40.0, 1, 2), Point(20, 50.0, 1, 2), Point(10, 41.0, 3, 4)]
    assert find_best(points) == [Point(10, 41.0, 3, 4), Point(20, 50.0, 1, 2)]


def test_curves_have_all_that_was_measured() -> None:
    start = replace(EVALUATION.budgets["0.1"], start=Estimate(75.0, 74.0, 76.0))
    curves = read_curves(replace(EVALUATION, budgets={**EVALUATION.budgets, "0.1": start}), [SCRATCH])
    assert [one.labels for one in curves["probe"]] == [10, 80, 800, 8000]
    assert curves["start"] == [Point(800, 75.0, 74.0, 76.0)]
    assert curves["scratch"] == [Point(800, 69.0, 66.0, 72.0)]
    assert curves["finetuned"] == [Point(800, 70.0, 63.4, 76.6)]
    assert set(curves) == {"probe", "finetuned", "start", "scratch", "random_init", "pixels"}
    earlier = replace(SCRATCH, interval=None, scratch_interval=None)
    assert not {"scratch", "finetuned"} & read_curves(EVALUATION, [earlier]).keys(), "a report without intervals"


def test_of_several_labels_it_is_of_mean_average_precision() -> None:
    curves = read_curves(SEVERAL, [TUNED])
    assert curves["pixels"] == [Point(20, 45.0, 41.0, 49.0)]
    assert curves["scratch"][0].value == 50.0


@pytest.mark.parametrize("evaluation", [None, replace(LINEAR_EVAL, budgets={}), LINEAR_EVAL])
def test_without_two_numbers_of_labels_there_is_no_sentence(evaluation: LinearEvalReport | None) -> None:
    assert find_labels_saved(evaluation, []) is None


def test_without_a_share_it_is_of_the_fewest_labels() -> None:
    per_class = {name: one for name, one in EVALUATION.budgets.items() if name not in ("0.01", "0.1")}
    found = find_labels_saved(replace(EVALUATION, budgets=per_class), [])
    assert found
    assert found.sentence.startswith("10 labels with this encoder are worth ")
    assert [row["labels"] for row in asdict(found)["worth"]] == [10, 8000]


def test_the_readme_has_the_sentence_of_the_committed_run() -> None:
    summary = json.loads(committed.find_newest().read_text(encoding="utf-8"))
    readme = " ".join((committed.RESULTS.parents[1] / "README.md").read_text(encoding="utf-8").split())
    assert f"**{committed.describe_summary(summary)}**" in readme


def test_a_run_that_tells_the_sentence_is_believed() -> None:
    assert committed.describe_summary({"labels_saved": {"sentence": "Five are worth nine."}}) == "Five are worth nine."
