"""The gates on what the candidate gives: a loss that is not ruled out does not pass, nor does weak evidence."""

from typing import Any

import pytest

from pipeline.gates.champion import low_label, old_index, representation
from pipeline.gates.verdict import Verdict
from simclr_core.evaluation.paired_comparison import images_needed, lower_bound, mcnemar_p_value
from tests.pipeline.gates.conftest import Case
from tests.pipeline.gates.reports import (
    ALONE,
    CHAMPION,
    COMPARE,
    COMPARISON,
    FINETUNE,
    NO_INDEX,
    PINNED,
    UNLABELED,
    pair,
)


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
def test_not_worse_passes_when_both_bounds_are_above_the_margin(
    case: Case, knn: dict[str, Any], probe: dict[str, Any], passed: bool
) -> None:
    bounds = [100 * lower_bound(2000, one["candidate_only"], one["champion_only"], 0.95) for one in (knn, probe)]
    assert passed is all(bound > -2 for bound in bounds), "the case is not what it says"
    verdict = case.compare(representation, knn=knn, probe=probe)
    assert (verdict.passed, verdict.judged) == (passed, True)
    assert [verdict.numbers[f"{name}/bound"] for name in ("knn", "probe")] == bounds


def test_the_description_has_numbers_thresholds_and_the_number_of_images(case: Case) -> None:
    bound = 100 * lower_bound(2000, 100, 100, 0.95)
    other = 100 * lower_bound(2000, 90, 80, 0.95)
    assert case.compare(representation).description == (
        f"kNN 80.00 % against 80.00 % of v0.0.3, with 95 % confidence at least {bound:+.2f} points; linear probe "
        f"80.50 % against 80.00 % of v0.0.3, with 95 % confidence at least {other:+.2f} points; a loss of 2 points is "
        "ruled out by 2,000 test images"
    )
    verdict = case.compare(representation, test_images=200, knn=pair(10, 12, 200), probe=pair(9, 9, 200))
    needed = images_needed(200, 10, 12, 0.02, 0.95)
    assert (verdict.outcome, verdict.passed, verdict.severity) == ("undecided", False, "error")
    assert verdict.description.endswith(
        f"not ruled out by 200 test images; about {needed:,} would show it of an equally good encoder; "
        "add test images, train longer, or raise gates.max_loss, or set gates.abstain to warn"
    )
    assert verdict.numbers["knn/difference"] == pytest.approx(-1)
    assert verdict.numbers["test_images"] == 200


@pytest.mark.parametrize("limits", [{"abstain": "warn"}, {"approval": "borderline"}, {"approval": "required"}])
def test_too_few_images_refuse_what_is_shown_and_gates_abstain_or_a_person_decides_on_the_rest(
    case: Case, limits: dict[str, str]
) -> None:
    case.set_limits(**limits)
    even, worse = pair(10, 12, 200), pair(2, 30, 200)
    verdict = case.compare(representation, test_images=200, knn=even, probe=even)
    assert (verdict.outcome, verdict.severity) == ("undecided", "warning")
    assert "gates.abstain" not in verdict.description
    verdict = case.compare(representation, test_images=200, knn=even, probe=worse)
    assert (verdict.outcome, verdict.severity) == ("refused", "error")


def test_better_is_not_released_undecided(case: Case) -> None:
    """A gain has to be shown, whether a loss is ruled out or not."""
    even, gained = pair(10, 12, 200), pair(40, 8, 200)
    case.set_limits(abstain="warn", release_if="better")
    verdict = case.compare(representation, test_images=200, knn=even, probe=even)
    assert (verdict.outcome, verdict.severity) == ("refused", "error")
    assert "set gates.release_if to not_worse" in verdict.description
    verdict = case.compare(representation, test_images=200, knn=gained, probe=even)
    assert (verdict.outcome, verdict.severity) == ("undecided", "warning")


def test_a_loss_that_is_shown_is_said_to_be_and_more_images_are_not_advised(case: Case) -> None:
    verdict = case.compare(representation, test_images=200, knn=pair(10, 12, 200), probe=pair(2, 30, 200))
    assert verdict.outcome == "refused"
    assert "by linear probe it is shown to be worse" in verdict.description
    assert "add test images" not in verdict.description


def test_no_more_images_are_requested_when_there_are_enough(case: Case) -> None:
    verdict = case.compare(representation, knn=pair(20, 90))
    assert not verdict.passed
    assert "equally good" not in verdict.description


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
def test_better_passes_when_one_difference_is_significant(
    case: Case, knn: dict[str, Any], probe: dict[str, Any], passed: bool
) -> None:
    case.set_limits(release_if="better")
    verdict = case.compare(representation, knn=knn, probe=probe)
    assert (verdict.passed, verdict.judged) == (passed, True)
    p_value = mcnemar_p_value(knn["candidate_only"], knn["champion_only"])
    assert f"McNemar p {p_value:.2g} and" in verdict.description
    parts = verdict.description.split("; ")
    end = parts[-1] if passed else parts[-2]
    assert end.endswith("one of them must be at most 0.025")
    assert passed or "train longer, " in parts[-1]
    assert verdict.numbers["knn/p_value"] == p_value


def test_thresholds_are_those_of_the_time_of_the_check(case: Case) -> None:
    worse = {"knn": pair(100, 125), "probe": pair(100, 125)}
    assert not case.compare(representation, **worse).passed
    case.set_limits(max_loss=3.0)
    assert case.compare(representation, **worse).passed
    case.set_limits(max_loss=3.0, confidence=0.999)
    assert not case.compare(representation, **worse).passed
    case.set_limits(max_loss=0.0)
    assert not case.compare(representation).passed


def test_with_nothing_to_compare_it_passes_with_the_reason(case: Case) -> None:
    verdict = case.compare(representation, **ALONE)
    assert verdict.passed
    assert verdict.description == f"not applicable: {ALONE['reason']}"
    assert not verdict.applicable


@pytest.mark.parametrize(
    "values",
    [
        {"knn": pair(100, 100) | {"candidate_only": 100.5}},
        {"knn": pair(100, 100) | {"candidate_only": -1}},
        {"knn": pair(100, 100) | {"candidate_only": None}},
        {"probe": pair(1500, 1500)},
        {"probe": None},
        {"knn": {}, "probe": {}},
        {"test_images": 0},
        {"test_images": float("nan")},
        {"knn": pair(100, 100) | {"champion": float("nan")}},
    ],
)
def test_impossible_counts_fail(case: Case, values: dict[str, Any]) -> None:
    verdict = case.compare(representation, **values)
    assert not verdict.judged
    assert verdict.description.startswith(COMPARISON)


def tuned(gain: int = 200, images: int = 2000, seeds: int = 3, top1: float = 70.0, **changes: Any) -> dict[str, Any]:
    """``gain`` more test images are right than from scratch, nearly the same with every seed; 200 each are right in one
    of the two alone."""
    per_seed = [top1 + 0.2 * (number - (seeds - 1) / 2) for number in range(seeds)]
    counts = {"trained_only": [200 + max(gain, 0)] * seeds, "baseline_only": [200 + max(-gain, 0)] * seeds}
    return FINETUNE | {"top1": top1, "top1_per_seed": per_seed, "test_images": images, "paired": counts} | changes


def ask_low_label(case: Case, ours: dict[str, Any], champion: dict[str, Any]) -> Verdict:
    pinned = PINNED | {"reports": {"finetune-0.01": champion}}
    return case.ask(low_label, {CHAMPION: pinned, "reports/finetune-0.01.json": ours})


@pytest.mark.parametrize(
    ("ours", "champion", "outcome"),
    [
        (tuned(), tuned(), "passed"),
        (tuned(gain=0), tuned(), "passed"),
        (tuned(gain=-70), tuned(), "refused"),  # 3.5 points below training from scratch, beyond 1.8 that are chance
        (tuned(top1=62.0), tuned(), "refused"),  # 8 points below the champion, beyond 3 and 2.5 that are chance
        (tuned(top1=66.0), tuned(), "undecided"),  # 4 points: beyond 3, and not beyond chance
        (tuned(top1=62.0), tuned() | {"test_images": None}, "refused"),  # of before there were counts
        (tuned(top1=62.0, gain=9), {"top1": None}, "passed"),  # the champion had no labels
        (tuned(gain=-10, images=1000), tuned(), "undecided"),  # neither shown nor ruled out
        (tuned(gain=-70, seeds=1), tuned(seeds=1), "undecided"),  # one seed: other labels might give more
        (tuned(gain=-600, seeds=1), tuned(seeds=1), "refused"),  # 30 points are beyond that
        (tuned(gain=0, seeds=1, images=500), tuned(seeds=1), "undecided"),
        (tuned() | {"paired": None}, tuned(), "undecided"),  # of before there were counts
    ],
)
def test_low_label(case: Case, ours: dict[str, Any], champion: dict[str, Any], outcome: str) -> None:
    verdict = ask_low_label(case, ours, FINETUNE | champion)
    assert (verdict.outcome, verdict.severity) == (outcome, "warning" if outcome == "undecided" else "error")


def test_the_spread_between_seeds_is_part_of_the_interval(case: Case) -> None:
    """The same mean difference, once nearly the same for each seed, once not: only the first is shown."""
    spread = {"trained_only": [200, 200, 200], "baseline_only": [130, 270, 410]}
    assert ask_low_label(case, tuned(gain=-70), tuned()).outcome == "refused"
    assert ask_low_label(case, tuned(gain=-70, paired=spread), tuned()).outcome == "undecided"


def test_each_fraction_is_judged_and_reported(case: Case) -> None:
    """The champion knows only one of them."""
    files = {
        CHAMPION: PINNED | {"reports": {"finetune-0.01": tuned()}},
        "reports/finetune-0.01.json": tuned(),
        "reports/finetune-0.1.json": tuned(gain=-200, fraction="0.1", labels=800, top1=80.0),
    }
    verdict = case.ask(low_label, files)
    assert verdict.outcome == "refused"
    tenth = widest(-200)
    assert f"; 80.00 % with 800 labels, from scratch 90.00 % ({tenth}); a loss is shown, " in verdict.description
    assert verdict.description.startswith("70.00 % with 80 labels, from scratch 60.00 % (")
    assert ", v0.0.3 70.00 % (" in verdict.description
    assert "raise gates.max_low_label_loss" in verdict.description
    assert verdict.numbers["0.1/top1"] == 80.0


def widest(gain: int) -> str:
    """The interval of ``tuned(gain)`` with two fractions: that of the test images, as the seeds agree."""
    won, lost = 200 + max(gain, 0), 200 + max(-gain, 0)
    low, high = 100 * lower_bound(2000, won, lost, 0.975), -100 * lower_bound(2000, lost, won, 0.975)
    return f"{low:+.1f} to {high:+.1f} points"


@pytest.mark.parametrize("worse", [{"gain": -200}, {"top1": 60.0}])
@pytest.mark.parametrize("place", [0, 1])
def test_one_bad_fraction_is_enough(case: Case, worse: dict[str, Any], place: int) -> None:
    fractions = ("0.01", "0.1")
    pinned = PINNED | {"reports": {f"finetune-{one}": tuned(fraction=one) for one in fractions}}
    files = {f"reports/finetune-{one}.json": tuned(fraction=one) for one in fractions}
    assert case.ask(low_label, {CHAMPION: pinned} | files).outcome == "passed"
    bad = f"reports/finetune-{fractions[place]}.json"
    assert case.ask(low_label, {bad: tuned(fraction=fractions[place], **worse)}).outcome == "refused"


def test_what_the_champion_lacks_is_not_said_of_the_candidate(case: Case) -> None:
    verdict = case.ask(
        low_label,
        {
            CHAMPION: PINNED | {"reports": {"finetune-0.01": {}}},
            "reports/finetune-0.01.json": tuned(),
        },
    )
    assert not verdict.judged
    assert verdict.description.startswith(f"finetune-0.01 in {CHAMPION} lacks")


def test_low_label_without_a_champion_or_without_labels(case: Case) -> None:
    files = {CHAMPION: '{"version": null}', "reports/finetune-0.01.json": tuned(top1=62.0)}
    assert case.ask(low_label, files).passed
    nothing = FINETUNE | {"top1": None, "ci95": None, "scratch_top1": None, "scratch_ci95": None, "reason": "no labels"}
    verdict = case.ask(low_label, {CHAMPION: PINNED, "reports/finetune-0.01.json": nothing})
    assert verdict.passed
    assert verdict.description == "not applicable: no accuracies with 0.01 of the labels: no labels"


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({CHAMPION: PINNED}, "reports/finetune-*.json does not exist"),
        ({"reports/finetune-0.01.json": FINETUNE}, f"{CHAMPION} does not exist"),
        ({CHAMPION: "{}", "reports/finetune-0.01.json": FINETUNE}, f"{CHAMPION} lacks"),
        ({CHAMPION: PINNED, "reports/finetune-0.01.json": "{}"}, "reports/finetune-0.01.json lacks"),
        (
            {CHAMPION: PINNED, "reports/finetune-0.01.json": FINETUNE | {"top1": float("nan")}},
            "reports/finetune-0.01.json cannot be read: NaN is not a number",
        ),
    ],
)
def test_low_label_without_its_reports_fails(case: Case, files: dict[str, object], says: str) -> None:
    verdict = case.ask(low_label, files)
    assert not verdict.judged
    assert says in verdict.description


@pytest.mark.parametrize(
    ("index", "reported", "required", "says"),
    [
        (COMPARE["old_index"], True, True, "the index can stay"),
        (COMPARE["old_index"] | {"new_queries": 75.0}, True, True, "the index can stay"),
        (COMPARE["old_index"] | {"new_queries": 74.9}, True, False, "embed everything again"),
        (NO_INDEX, True, False, "their vectors have different lengths; embed everything again"),
    ],
)
def test_old_index(case: Case, index: dict[str, Any], reported: bool, required: bool, says: str) -> None:
    for mode, passed in (("report", reported), ("require", required)):
        case.set_limits(old_index=mode)
        verdict = case.compare(old_index, old_index=index)
        assert (verdict.passed, verdict.judged) == (passed, True)
        assert says in verdict.description
        assert ("(reported only)" in verdict.description) is (mode == "report" and index["comparable"])


def test_the_description_of_the_old_index_gate(case: Case) -> None:
    assert case.compare(old_index).description == (
        "kNN in the index of v0.0.3: 80.00 % with its own queries, 76.00 % with the candidate's, 5 points may be lost "
        "(reported only); 41.50 % of 2,000 test images keep their nearest neighbor; the index can stay"
    )


def test_a_required_old_index_that_is_missing_fails(case: Case) -> None:
    case.set_limits(old_index="require")
    assert not case.compare(old_index, **UNLABELED).passed
    assert case.compare(old_index, **ALONE).passed, "before the first release there is no old index"
