"""The gates on what the candidate gives: a loss that is not ruled out does not pass, nor does weak evidence."""

from typing import Any

import pytest

from pipeline.gates.champion import low_label, old_index, representation
from pipeline.gates.paired_comparison import images_needed, lower_bound, mcnemar_p_value
from tests.pipeline.gates.conftest import Case
from tests.pipeline.gates.reports import (
    ALONE,
    CHAMPION,
    COMPARE,
    COMPARISON,
    FINETUNE,
    NO_INDEX,
    PINNED,
    UNLABELLED,
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
        "ruled out by 2000 test images"
    )
    verdict = case.compare(representation, test_images=200, knn=pair(10, 12, 200), probe=pair(9, 9, 200))
    needed = images_needed(200, 10, 12, 0.02, 0.95)
    assert not verdict.passed
    assert verdict.description.endswith(
        f"not ruled out by 200 test images; about {needed} would show it of an equally good encoder; "
        "add test images, train longer, or raise gates.max_loss"
    )
    assert verdict.numbers["knn/difference"] == pytest.approx(-1)
    assert verdict.numbers["test_images"] == 200


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


@pytest.mark.parametrize("report", [ALONE, UNLABELLED])
def test_with_nothing_to_compare_it_passes_with_the_reason(case: Case, report: dict[str, Any]) -> None:
    verdict = case.compare(representation, **report)
    assert verdict.passed
    assert verdict.description == f"not applicable: {report['reason']}"
    assert not verdict.applicable


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
def test_impossible_counts_fail(case: Case, values: dict[str, Any]) -> None:
    verdict = case.compare(representation, **values)
    assert not verdict.judged
    assert verdict.description.startswith(COMPARISON)


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
def test_low_label(case: Case, ours: dict[str, Any], champion: dict[str, Any], passed: bool) -> None:
    pinned = PINNED | {"reports": {"finetune-0.01": FINETUNE | champion}}
    files = {CHAMPION: pinned, "reports/finetune-0.01.json": FINETUNE | ours}
    verdict = case.ask(low_label, files)
    assert (verdict.passed, verdict.judged) == (passed, True)


def test_each_fraction_is_judged_and_reported(case: Case) -> None:
    """The champion knows only one of them."""
    files = {
        CHAMPION: PINNED,
        "reports/finetune-0.01.json": FINETUNE,
        "reports/finetune-0.1.json": FINETUNE | {"fraction": "0.1", "labels": 800, "top1": 80.0, "scratch_top1": 90.0},
    }
    verdict = case.ask(low_label, files)
    assert not verdict.passed
    assert verdict.description == (
        "70.00 ± 1.00 % with 80 labels, from scratch 60.00 ± 2.00 %, v0.0.3 70.00 ± 1.00 % (may lose 3 points); "
        "80.00 ± 1.00 % with 800 labels, from scratch 90.00 ± 2.00 %; "
        "train longer, or raise gates.max_low_label_loss if less is enough"
    )
    assert verdict.numbers["0.1/top1"] == 80.0


@pytest.mark.parametrize("worse", [{"scratch_top1": 90.0}, {"top1": 60.0}])
@pytest.mark.parametrize("place", [0, 1])
def test_one_bad_fraction_is_enough(case: Case, worse: dict[str, float], place: int) -> None:
    fractions = ("0.01", "0.1")
    pinned = PINNED | {"reports": {f"finetune-{fraction}": FINETUNE for fraction in fractions}}
    files = {f"reports/finetune-{one}.json": FINETUNE | {"fraction": one} for one in fractions}
    assert case.ask(low_label, {CHAMPION: pinned} | files).passed
    bad = f"reports/finetune-{fractions[place]}.json"
    assert not case.ask(low_label, {bad: FINETUNE | {"fraction": fractions[place]} | worse}).passed


def test_low_label_without_a_champion_or_without_labels(case: Case) -> None:
    files = {CHAMPION: '{"version": null}', "reports/finetune-0.01.json": FINETUNE | {"top1": 62.0}}
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
        "(reported only); 41.50 % of 2000 test images keep their nearest neighbor; the index can stay"
    )


def test_a_required_old_index_that_is_missing_fails(case: Case) -> None:
    case.set_limits(old_index="require")
    assert not case.compare(old_index, **UNLABELLED).passed
    assert case.compare(old_index, **ALONE).passed, "before the first release there is no old index"
