"""The gates where an image may have several labels: what a difference in mean average precision has to show."""

from dataclasses import asdict, replace
from statistics import NormalDist
from typing import Any

import pytest
from scipy.stats import t as student

from pipeline.gates.baselines import beats_baselines
from pipeline.gates.champion import low_label, old_index, representation
from pipeline.gates.precision import (
    gain_interval,
    gain_p_value,
    images_to_exclude,
    images_to_show,
    measured_interval,
    smallest_gain,
)
from pipeline.gates.verdict import Verdict
from simclr_core.evaluation.paired_comparison import lower_bound
from simclr_core.evaluation_reports import ClassScores, FinetunePrecision, Gain, Measured, MultiLabelResults, SetScores
from tests.pipeline.gates.conftest import Case
from tests.pipeline.gates.reports import COMPARE, FINETUNE, LINEAR_EVAL, NOTHING, PINNED

SURE, EVEN = Gain(60.0, 40.0, 20.0, 2.0), Gain(60.0, 60.0, 0.0, 2.0)
SCORES = SetScores(
    Measured(60.0, 55.0, 65.0),
    Measured(50.0, 45.0, 55.0),
    Measured(52.0, 48.0, 56.0),
    {"cat": ClassScores(50, 400, 300, 60.0, 80.0, 68.6, 61.0)},
)
NAMES = ("random_init", "pixels", "prevalence")


def evaluated(**changes: Gain) -> dict[str, Any]:
    """Every gain sure but these of kNN."""
    sure = dict.fromkeys(NAMES, SURE)
    results = MultiLabelResults(1.5, 20.0, {"knn": SCORES, "probe": SCORES}, {"knn": sure | changes, "probe": sure}, {})
    nothing = {"knn_top1": None, "linear_top1": {"1.0": None}, "linear_top5": {"1.0": None}}
    others = {"simclr": nothing, "random_init": nothing, "pixels": nothing, "scores": {}, "paired": {}, "budgets": {}}
    return LINEAR_EVAL | others | {"majority_class": None, "multi_label": asdict(results)}


def ask(case: Case, **changes: Gain) -> Verdict:
    return case.ask(beats_baselines, {"reports/linear_eval.json": evaluated(**changes)})


def test_gains_that_are_shown_pass_and_chance_has_the_place_of_the_most_frequent_class(case: Case) -> None:
    verdict = ask(case)
    assert verdict.outcome == "passed"
    low = 20 - NormalDist().inv_cdf(0.95) * 2
    assert (
        f"mean average precision of kNN 60.00 % against 40.00 % of chance ({low:+.1f} to {40 - low:+.1f} points)"
        in verdict.description
    )
    assert verdict.numbers["probe/prevalence/at_least"] == pytest.approx(low)
    case.set_limits(baselines=["majority"])
    assert set(ask(case).numbers) == {
        f"{one}/prevalence/{name}" for one in ("knn", "probe") for name in ("gain", "at_least", "at_most")
    }


@pytest.mark.parametrize(
    ("gain", "outcome", "says"),
    [
        (Gain(60.0, 70.0, -10.0, 2.0), "refused", "worse: "),
        (Gain(60.0, 60.0, 0.0, 0.01), "refused", "no better: "),
        (Gain(60.0, 59.0, 1.0, 2.0), "undecided", "not shown to be better: "),
        (Gain(99.5, 99.4, 0.1, 0.1), "passed", "as good: "),
    ],
)
def test_one_gain_that_is_not_shown_decides(case: Case, gain: Gain, outcome: str, says: str) -> None:
    verdict = ask(case, pixels=gain)
    assert verdict.outcome == outcome
    assert says in verdict.description


def test_what_is_open_says_how_many_images_settle_it(case: Case) -> None:
    """A standard error shrinks with the root of the number of images."""
    open_gain = Gain(64.0, 60.0, 4.0, 3.0)
    verdict = ask(case, pixels=open_gain)
    errors = NormalDist().inv_cdf(0.95) + NormalDist().inv_cdf(0.8)
    needed = 2000 * (errors * 3.0 / 4.0) ** 2
    assert f"can show a difference of {errors * 3.0:.1f} points" in verdict.description
    assert f"about {needed:,.0f}"[:9] in verdict.description


def compared(knn: Gain, probe: Gain = SURE) -> dict[str, Any]:
    found = {"knn": asdict(knn), "probe": asdict(probe)}
    nothing = NOTHING | {"candidate": None}
    return COMPARE | {"knn": nothing, "probe": nothing, "precision": {"knn": 60.0, "probe": 60.0}, "gains": found}


@pytest.mark.parametrize(
    ("gain", "outcome", "says"),
    [
        (Gain(60.0, 60.5, -0.5, 0.3), "passed", "a loss of 2 points is ruled out by"),
        (Gain(60.0, 62.0, -2.0, 3.0), "undecided", "is not ruled out"),
        (Gain(60.0, 70.0, -10.0, 2.0), "refused", "by mean average precision of kNN it is shown to be worse"),
    ],
)
def test_a_loss_to_the_champion_has_to_be_ruled_out(case: Case, gain: Gain, outcome: str, says: str) -> None:
    case.set_limits(max_loss=2.0)
    verdict = case.ask(representation, {"reports/compare.json": compared(gain)})
    assert verdict.outcome == outcome
    assert says in verdict.description
    assert verdict.numbers["knn/bound"] == pytest.approx(100 * gain_interval(gain, 0.95).low)


def test_the_first_release_is_not_unjudged(case: Case) -> None:
    alone = {"champion": None, "reason": "no encoder has been released yet", "gains": {}}
    verdict = case.ask(representation, {"reports/compare.json": compared(SURE) | alone})
    assert verdict.outcome == "not applicable"


def test_the_old_index_is_judged_by_mean_average_precision(case: Case) -> None:
    index = {"comparable": True, "old_queries": 60.0, "new_queries": 30.0, "same_neighbour": 10.0}
    verdict = case.ask(old_index, {"reports/compare.json": compared(SURE) | {"old_index": index}})
    assert verdict.description.startswith("mean average precision of kNN in the index of")


def tuned(gain: Gain, *per_seed: float) -> dict[str, Any]:
    found = FinetunePrecision(*(Measured(60.0, 57.0, 63.0) for _ in range(3)), gain, per_seed, SCORES)
    nothing = dict.fromkeys(("top1", "ci95", "scratch_top1", "scratch_ci95", "paired", "interval", "scratch_interval"))
    return FINETUNE | nothing | {"probe": None, "scores": None, "multi_label": asdict(found)}


@pytest.mark.parametrize(
    ("gain", "per_seed", "outcome", "says"),
    [
        (Gain(60.0, 50.0, 10.0, 1.0), (10.1, 9.9, 10.0), "passed", "is ruled out"),
        (Gain(50.0, 60.0, -10.0, 1.0), (-10.1, -9.9, -10.0), "refused", "a loss is shown"),
        (Gain(60.0, 60.0, 0.0, 3.0), (0.0, 4.0, -4.0), "undecided", "is not ruled out"),
    ],
)
def test_fine_tuning_is_held_against_training_from_scratch(
    case: Case, gain: Gain, per_seed: tuple[float, ...], outcome: str, says: str
) -> None:
    champion = {"version": None, "reports": {}}
    files = {"models/champion/champion.json": champion, "reports/finetune-0.01.json": tuned(gain, *per_seed)}
    verdict = case.ask(low_label, files)
    assert verdict.outcome == outcome
    assert says in verdict.description
    assert verdict.description.startswith("mean average precision 60.00 % with")


def test_fine_tuning_is_held_against_that_of_a_champion_with_several_labels_alone(case: Case) -> None:
    """Accuracies of one label and mean average precisions cannot be compared."""
    steady = tuned(Gain(60.0, 50.0, 10.0, 1.0), 10.1, 9.9, 10.0)
    files: dict[str, Any] = {"models/champion/champion.json": PINNED, "reports/finetune-0.01.json": steady}
    assert "v0.0.3" not in case.ask(low_label, files).description
    files["models/champion/champion.json"] = PINNED | {"reports": {"finetune-0.01": steady}}
    assert "v0.0.3 60.00 %" in case.ask(low_label, files).description


def test_the_statistics_are_those_of_a_normal_distribution() -> None:
    gain = Gain(50.0, 47.0, 3.0, 1.5)
    low, high = NormalDist(0.03, 0.015).inv_cdf(0.05), NormalDist(0.03, 0.015).inv_cdf(0.95)
    found = gain_interval(gain, 0.95)
    assert (found.difference, found.low, found.high) == pytest.approx((0.03, low, high))
    assert gain_p_value(gain) == pytest.approx(NormalDist(0, 1.5).cdf(-3.0))
    assert [gain_p_value(Gain(1.0, 0.0, one, 0.0)) for one in (1.0, 0.0, -1.0)] == [0.0, 1.0, 1.0]
    needed = images_to_exclude(gain, 500, 2.0, 0.95, 0.8)
    smaller_error = 1.5 * (500 / needed) ** 0.5
    assert NormalDist(0, smaller_error).cdf(2.0 - NormalDist().inv_cdf(0.95) * smaller_error) == pytest.approx(
        0.8, abs=0.01
    )
    assert measured_interval(Measured(50.0, 46.0, 54.0), 0.975).low == pytest.approx(0.46)


def test_of_few_images_the_difference_follows_student() -> None:
    gain = Gain(50.0, 47.0, 3.0, 1.5, images=12.0)
    low, high = student(11, 0.03, 0.015).interval(0.9)
    found = gain_interval(gain, 0.95)
    reached = NormalDist().inv_cdf(0.95) ** 2 / (12 + NormalDist().inv_cdf(0.95) ** 2)
    assert reached > 0.03 - low, "what twelve images that all agree leave open is more"
    assert (found.low, found.high) == pytest.approx((0.03 - reached, 0.03 + reached))
    many = gain_interval(replace(gain, images=120.0), 0.95)
    assert (many.low, many.high) == pytest.approx(student(119, 0.03, 0.015).interval(0.9))
    assert gain_p_value(replace(gain, images=120.0)) == pytest.approx(student(119).sf(2.0))
    assert gain_p_value(gain) == pytest.approx(student(11).sf(2.0))
    assert high - 0.03 == pytest.approx(0.03 - low)


def test_answers_that_do_not_differ_leave_open_what_single_answers_do() -> None:
    """As of accuracy: a bootstrap of two encoders that agree on ten images knows of no others."""
    alike = Gain(50.0, 50.0, 0.0, 0.0, images=80.0)
    assert gain_interval(alike, 0.95).low == pytest.approx(lower_bound(80, 0, 0, 0.95))
    one = Gain(100.0, 50.0, 50.0, 0.0, images=1.0)
    assert (gain_interval(one, 0.95).low, gain_interval(one, 0.95).high) == (-1.0, 1.0)
    assert gain_p_value(one) == 0.5
    assert gain_p_value(replace(one, images=3.0)) == 0.125
    needed = images_to_exclude(alike, 160, 2.0, 0.95, 0.8)
    assert lower_bound(needed // 2 + 1, 0, 0, 0.95) > -0.02 > lower_bound(needed // 2 - 1, 0, 0, 0.95)


def test_equal_encoders_are_released_from_the_same_number_of_images_on(case: Case) -> None:
    case.set_limits(max_loss=2.0)
    for images, outcome in ((132.0, "undecided"), (133.0, "passed")):
        alike = Gain(50.0, 50.0, 0.0, 0.0, images=images)
        verdict = case.ask(representation, {"reports/compare.json": compared(alike, alike)})
        assert verdict.outcome == outcome


def test_a_gain_that_is_asked_for_names_its_test(case: Case) -> None:
    case.set_limits(release_if="better")
    verdict = case.ask(representation, {"reports/compare.json": compared(EVEN, EVEN)})
    assert "paired bootstrap p 0.5 and 0.5, one of them must be at most 0.025" in verdict.description
    assert "McNemar" not in verdict.description


def test_what_can_be_shown_shrinks_with_the_root_of_the_images() -> None:
    """Also where a difference is a large part of the standard error: no answers are counted that could run out."""
    gain = Gain(50.0, 47.0, 3.0, 2.0)
    smallest = smallest_gain(gain, 0.95, 0.8)
    assert NormalDist(smallest, 0.02).cdf(NormalDist().inv_cdf(0.95) * 0.02) == pytest.approx(0.2)
    assert images_to_show(gain, 60, smallest, 0.95, 0.8) == 60
    assert images_to_show(gain, 60, smallest / 2, 0.95, 0.8) == 240
    assert smallest_gain(replace(gain, standard_error=90.0), 0.95, 0.8) == 1.0
