"""What an encoder has to be better than: shown, not shown, shown to be worse, and too few test images to tell."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from pipeline.gates.baselines import beats_baselines
from pipeline.gates.verdict import Verdict
from simclr_core.evaluation.paired_comparison import images_to_find, lower_bound, smallest_found
from tests.pipeline.gates.conftest import Case
from tests.pipeline.gates.reports import LINEAR_EVAL

SURE = {"trained_only": [300], "baseline_only": [100]}  # of 2,000: ten points, beyond any doubt
EVEN = {"trained_only": [200], "baseline_only": [200]}
NAMES = ("random_init", "pixels", "majority")
THE_NEWCOMER = {
    # 172 images, 58 of them for testing: kNN 22.4 %, random weights 29.9 %, raw pixels 43.1 %.
    "simclr": {"knn_top1": 22.414, "linear_top1": {"1.0": 24.138}, "linear_top5": {"1.0": 80.0}},
    "random_init": {"knn_top1": 29.885, "linear_top1": {"1.0": 24.713}, "linear_top5": {"1.0": 80.0}},
    "pixels": {"knn_top1": 43.103, "linear_top1": {"1.0": 41.379}, "linear_top5": {"1.0": 80.0}},
    "labels": {"1.0": 60},
    "test_images": 58,
}


def ask(case: Case, **changes: Any) -> Verdict:
    return case.ask(beats_baselines, {"reports/linear_eval.json": LINEAR_EVAL | changes})


def paired(**changes: Any) -> dict[str, Any]:
    """Every comparison sure but these of kNN."""
    sure = dict.fromkeys(NAMES, SURE)
    return {"knn": sure | changes, "probe": sure}


def test_it_passes_when_every_gain_is_shown_and_says_how_large_it_is_at_least(case: Case) -> None:
    verdict = ask(case, paired=paired(pixels={"trained_only": [260], "baseline_only": [200]}))
    assert verdict.outcome == "passed"
    low = 100 * lower_bound(2000, 260, 200, 0.95)
    high = -100 * lower_bound(2000, 200, 260, 0.95)
    assert low > 0
    assert f"kNN 82.80 % against 79.80 % of raw pixels ({low:+.1f} to {high:+.1f} points)" in verdict.description
    assert verdict.numbers["knn/pixels/at_least"] == low
    assert verdict.numbers["knn/pixels/gain"] == pytest.approx(3.0)


@pytest.mark.parametrize("classifier", ["knn", "probe"])
@pytest.mark.parametrize("baseline", NAMES)
def test_one_gain_that_many_images_do_not_show_is_refused(case: Case, classifier: str, baseline: str) -> None:
    counts = paired()
    counts[classifier] = counts[classifier] | {baseline: {"trained_only": [2000], "baseline_only": [2000]}}
    verdict = ask(case, test_images=20_000, paired=counts)
    assert verdict.outcome == "refused"
    assert verdict.description.startswith("no better: ")
    assert verdict.numbers[f"{classifier}/{baseline}/gain"] == 0
    other = [name for name in NAMES if name != baseline]
    case.set_limits(baselines=other)
    assert case.ask(beats_baselines).outcome == "passed"


def test_few_images_that_show_nothing_are_undecided_and_it_says_what_would_settle_it(case: Case) -> None:
    few = {"trained_only": [9], "baseline_only": [6]}
    report = {"test_images": 58, "paired": dict.fromkeys(("knn", "probe"), dict.fromkeys(NAMES, few))}
    verdict = ask(case, **report)
    assert (verdict.outcome, verdict.passed, verdict.severity) == ("undecided", False, "error")
    needed = images_to_find(3 / 58, 16 / 60, 0.95, 0.8)
    assert verdict.description.endswith(
        "58 test images can show a difference of 16.9 points at 80 % power; "
        f"about {needed} would settle one of 5.2 points; add test images, or set gates.abstain to warn to release it "
        "undecided"
    )
    case.set_limits(abstain="warn")
    verdict = case.ask(beats_baselines)
    assert (verdict.outcome, verdict.severity) == ("undecided", "warning")
    assert "gates.abstain" not in verdict.description


@pytest.mark.parametrize("abstain", ["refuse", "warn"])
def test_the_newcomers_encoder_is_refused_with_the_right_reason(case: Case, abstain: str) -> None:
    """It was released because the mean over the probes was 24.71 % against 24.14 %."""
    case.set_limits(abstain=abstain)
    random_knn = {"trained_only": [6, 7, 6], "baseline_only": [10, 11, 11]}
    random_probe = {"trained_only": [8, 8, 9], "baseline_only": [9, 8, 9]}
    guess = {"trained_only": [8], "baseline_only": [4]}
    worse = {"trained_only": [3], "baseline_only": [15]}
    counts = {
        "knn": {"random_init": random_knn, "pixels": worse, "majority": guess},
        "probe": {"random_init": random_probe, "pixels": worse, "majority": guess},
    }
    verdict = ask(case, **THE_NEWCOMER, paired=counts)
    assert (verdict.outcome, verdict.severity) == ("refused", "error")
    assert verdict.description.startswith("worse: kNN 22.41 % against 43.10 % of raw pixels (-")


@pytest.mark.parametrize("abstain", ["refuse", "warn"])
def test_a_report_without_counts_is_judged_by_its_accuracies(case: Case, abstain: str) -> None:
    """As committed by an earlier version, whose workspace keeps running."""
    case.set_limits(abstain=abstain)
    old = {"paired": {}, "majority_class": None}
    assert ask(case, **old, pixels=LINEAR_EVAL["random_init"]).outcome == "passed"
    verdict = ask(case, **THE_NEWCOMER, **old)
    assert (verdict.outcome, verdict.severity) == ("refused", "error")
    assert verdict.description.startswith("worse: kNN 22.41 % against 43.10 % of raw pixels")
    close = LINEAR_EVAL["simclr"] | {"knn_top1": 71.0, "linear_top1": {"1.0": 71.0}}
    verdict = ask(case, **old, simclr=close, random_init=close, pixels=LINEAR_EVAL["random_init"], test_images=200)
    assert (verdict.outcome, verdict.severity) == ("undecided", "error" if abstain == "refuse" else "warning")


def test_a_baseline_that_leaves_nothing_to_gain_only_has_to_be_matched(case: Case) -> None:
    perfect = {"knn_top1": 100.0, "linear_top1": {"1.0": 100.0}, "linear_top5": {"1.0": 100.0}}
    same = {"trained_only": [0], "baseline_only": [0]}
    everywhere = {"knn": dict.fromkeys(NAMES, same), "probe": dict.fromkeys(NAMES, same)}
    verdict = ask(case, simclr=perfect, paired=everywhere)
    assert verdict.outcome == "not applicable"
    assert "classify nearly every test image correctly, too" in verdict.description
    assert ask(case, simclr=perfect, paired=paired(random_init=same)).outcome == "passed"
    worse = {"trained_only": [0], "baseline_only": [100]}
    lost = LINEAR_EVAL["simclr"] | {"knn_top1": 95.0}
    verdict = ask(case, simclr=lost, paired=paired(random_init=worse))
    assert verdict.outcome == "refused"
    assert "worse: kNN 95.00 % against 100.00 % of random weights" in verdict.description


def everywhere(won: int, lost: int) -> dict[str, Any]:
    same = {name: {"trained_only": [won], "baseline_only": [lost]} for name in NAMES}
    return {"knn": same, "probe": same}


@pytest.mark.parametrize("min_gain", [0.5, 2.0, 60.0, 100.0])
def test_a_larger_gain_that_is_asked_for_never_lets_more_pass(case: Case, min_gain: float) -> None:
    """Half the images are right with either: nothing is gained, and much could be."""
    case.set_limits(min_gain=min_gain)
    half = {"knn_top1": 50.0, "linear_top1": {"1.0": 50.0}, "linear_top5": {"1.0": 90.0}}
    verdict = ask(case, simclr=half, paired=everywhere(200, 200))
    assert not verdict.passed
    assert verdict.applicable


def test_few_images_that_a_baseline_alone_gets_right_do_not_pass(case: Case) -> None:
    """Raw pixels are right on all 20, the encoder on 18: that is neither a match nor shown to be worse."""
    counts = everywhere(15, 0)
    counts = {name: one | {"pixels": {"trained_only": [0], "baseline_only": [2]}} for name, one in counts.items()}
    known = {"knn_top1": 90.0, "linear_top1": {"1.0": 90.0}, "linear_top5": {"1.0": 90.0}}
    verdict = ask(case, simclr=known, paired=counts, test_images=20)
    assert verdict.outcome == "undecided"
    assert verdict.description.startswith("not shown to be as good: kNN 90.00 % against 100.00 % of raw pixels (")
    assert "; train longer, or add test images, or set gates.abstain" in verdict.description


def test_what_is_asked_for_and_not_measured_does_not_pass(case: Case) -> None:
    case.set_limits(baselines=[])
    assert ask(case).description == "not applicable: gates.baselines is empty"
    case.set_limits(baselines=["start"])
    assert ask(case).outcome == "not applicable"
    case.set_limits(baselines=["majority"])
    verdict = ask(case, paired={})
    assert not verdict.judged
    assert "measures none of gates.baselines: majority" in verdict.description
    case.set_limits()
    for broken in (
        {"paired": {"knn": LINEAR_EVAL["paired"]["knn"]}},
        {"paired": paired(pixels={"trained_only": [], "baseline_only": []})},
        {"paired": paired(pixels={"trained_only": [3, 4], "baseline_only": [3]})},
        {"simclr": LINEAR_EVAL["simclr"] | {"knn_top1": None}},
        {"test_images": 0},
    ):
        assert not ask(case, **broken).judged


def test_each_outcome_is_named_once_and_one_image_is_one_image(case: Case) -> None:
    description = ask(case, paired=everywhere(1, 0), test_images=1).description
    assert description.count("not shown to be better: ") == 1
    assert "; 1 test image can show" in description


def test_without_accuracies_there_is_nothing_to_compare(case: Case) -> None:
    verdict = ask(case, reason="no labeled test images", paired={}, test_images=0)
    assert (verdict.outcome, verdict.description) == ("not applicable", "not applicable: no labeled test images")


def out_of_fold(images: int) -> dict[str, Any]:
    return {"test_images": 0, "estimate": "out_of_fold", "out_of_fold": {"images": images, "folds": 5}}


def test_out_of_fold_a_gain_has_to_be_larger_and_the_description_says_what_it_is(case: Case) -> None:
    counts = paired(pixels={"trained_only": [260], "baseline_only": [220]})
    assert ask(case, paired=counts).outcome == "passed"
    verdict = ask(case, paired=counts, **out_of_fold(2000))
    low = 100 * lower_bound(2000, 260, 220, 0.95, 4 / 9)
    assert low < 0
    assert verdict.numbers["knn/pixels/at_least"] == low
    assert verdict.outcome == "undecided"
    for counted in (paired(), counts):
        assert (
            "2,000 labeled training images, estimated out of fold (5 folds); the encoder was pretrained on them too"
        ) in ask(case, paired=counted, **out_of_fold(2000)).description


def test_out_of_fold_only_a_loss_stops_the_release(case: Case) -> None:
    """With as few labels and none held out, nothing was judged before, and the encoder went out."""
    few = {"trained_only": [5], "baseline_only": [3]}
    verdict = ask(case, paired=dict.fromkeys(("knn", "probe"), dict.fromkeys(NAMES, few)), **out_of_fold(40))
    assert (verdict.outcome, verdict.severity) == ("undecided", "warning")
    assert "gates.abstain" not in verdict.description
    disagree, worth = 9 / 42, 4 / 9
    smallest = 100 * smallest_found(40 * worth, disagree, 0.95, 0.8)
    needed = math.ceil(images_to_find(2 / 40, disagree, 0.95, 0.8) / worth)
    shown = f"40 labeled images can show a difference of {smallest:.1f} points at 80 % power; about {needed:,} would"
    assert shown in verdict.description
    won, lost = {"trained_only": [25], "baseline_only": [0]}, {"trained_only": [0], "baseline_only": [25]}
    counts = {"knn": dict.fromkeys(NAMES, won) | {"pixels": lost}, "probe": dict.fromkeys(NAMES, won)}
    verdict = ask(case, paired=counts, **out_of_fold(40))
    assert (verdict.outcome, verdict.severity) == ("refused", "error")
    assert verdict.description.startswith("worse: kNN")


def test_impossible_counts_are_not_judged(case: Case) -> None:
    verdict = ask(case, paired=paired(pixels={"trained_only": [1500], "baseline_only": [1500]}))
    assert not verdict.judged
    assert "contradicts itself" in verdict.description


def test_the_demos_encoder_passes_even_if_errors_were_independent(case: Case) -> None:
    """A committed run of the demo, which was written before there were counts."""
    file = Path(__file__).parents[3] / "benchmarks" / "results" / "2026-11-22_amd-epyc-2-cores_demo.json"
    numbers = json.loads(file.read_text())["evaluation"]
    known = {name: LINEAR_EVAL[name] | numbers[name] for name in ("simclr", "random_init", "pixels")}
    verdict = ask(case, **known, paired={}, majority_class=None)
    assert verdict.outcome == "passed"
    assert "kNN 82.75 % against 80.20 % of raw pixels (+0.5 to +4.6 points)" in verdict.description


def test_an_encoder_that_is_worse_than_the_weights_it_began_with_is_refused(case: Case) -> None:
    verdict = ask(case, paired=paired(start={"trained_only": [40], "baseline_only": [140]}))
    assert (verdict.outcome, verdict.severity) == ("refused", "error")
    assert verdict.description.startswith("worse: kNN")
    assert "of the weights that pretraining began with (" in verdict.description
    better = ask(case, paired=paired(start={"trained_only": [140], "baseline_only": [40]}))
    assert better.outcome == "passed"
