"""The judgment without labels: four epochs may not replace thirty, and what nothing can be said of is UNJUDGED."""

from typing import Any

import pytest

from pipeline.gates.champion import representation
from pipeline.gates.verdict import Verdict
from tests.pipeline.gates.conftest import Case
from tests.pipeline.gates.reports import ALONE, CHAMPION, NOTHING, PINNED, PRETRAIN, UNLABELED

UNKNOWN = {**NOTHING, "candidate": None}


def ask(
    case: Case,
    difference: float,
    standard_error: float,
    steps: tuple[int, int] = (900, 900),
    init: str = "scratch",
    **limits: object,
) -> Verdict:
    """About a candidate of these steps, whose views keep ``difference`` points more neighbors than the champion's."""
    case.set_limits(**limits)
    case.put("reports/pretrain.json", PRETRAIN | {"steps": steps[0], "init": init})
    case.put(CHAMPION, PINNED | {"reports": {"pretrain": PRETRAIN | {"steps": steps[1]}}})
    views = {
        "images": 1000,
        "split": "test",
        "candidate": 40.0 + difference,
        "champion": 40.0,
        "difference": difference,
        "standard_error": standard_error,
    }
    return case.compare(representation, **UNLABELED | {"label_free": views})


@pytest.mark.parametrize(
    ("difference", "standard_error", "outcome"),
    [
        (3.0, 0.5, "passed"),
        (0.0, 0.5, "passed"),
        (-1.0, 0.5, "passed"),  # at least -1.82: a loss of 2 is ruled out
        (-1.3, 0.5, "refused"),  # at least -2.12, at most -0.48
        (-9.0, 0.5, "refused"),
        (0.0, 2.0, "undecided"),  # -3.29 to 3.29
    ],
)
def test_a_loss_has_to_be_ruled_out(case: Case, difference: float, standard_error: float, outcome: str) -> None:
    verdict = ask(case, difference, standard_error)
    assert verdict.outcome == outcome
    assert verdict.passed is (outcome == "passed")
    assert "no labels" in verdict.description
    assert ("gates.max_loss" in verdict.description) is (outcome != "passed")
    margin = 1.6448536 * standard_error
    assert verdict.numbers["at_least"] == pytest.approx(difference - margin)
    assert verdict.numbers["at_most"] == pytest.approx(difference + margin)


@pytest.mark.parametrize(("abstain", "severity"), [("refuse", "error"), ("warn", "warning")])
def test_undecided_stops_a_release_unless_it_may_warn(case: Case, abstain: str, severity: str) -> None:
    assert ask(case, 0.0, 2.0, abstain=abstain).severity == severity


def test_four_epochs_do_not_replace_thirty_unless_they_are_shown_to_be_better(case: Case) -> None:
    few = (4 * 31, 30 * 31)
    verdict = ask(case, 0.5, 0.5, few)
    assert verdict.outcome == "refused"
    assert "124 steps, v0.0.3 for 930" in verdict.description
    assert ask(case, 0.5, 0.5).passed
    assert ask(case, 1.0, 0.5, few).passed  # at least +0.18


def test_half_the_steps_are_not_far_less_and_one_that_continues_the_champion_has_its_steps_too(case: Case) -> None:
    assert ask(case, 0.0, 0.5, (450, 900)).passed
    assert not ask(case, 0.0, 0.5, (449, 900)).passed
    assert ask(case, 0.0, 0.5, (100, 900), init="champion v0.0.3").passed


def test_better_asks_for_a_gain(case: Case) -> None:
    assert not ask(case, 0.5, 0.5, release_if="better").passed
    assert ask(case, 1.0, 0.5, release_if="better").passed


def test_views_of_images_that_were_trained_on_are_said_to_be_so(case: Case) -> None:
    ask(case, 0.0, 0.5)
    seen = {"images": 80, "split": "train", "candidate": 1.0, "champion": 1.0, "difference": 0.0, "standard_error": 0.1}
    assert "trained on" in case.compare(representation, **UNLABELED | {"label_free": seen}).description


@pytest.mark.parametrize(
    "report",
    [
        UNLABELED,  # too few images for views, or a report of an earlier version
        ALONE | {"reason": UNLABELED["reason"], "knn": UNKNOWN, "probe": UNKNOWN},
    ],
)
def test_what_nothing_can_be_said_of_is_released_as_unjudged(case: Case, report: dict[str, Any]) -> None:
    case.put("reports/pretrain.json", PRETRAIN | {"init": "scratch", "steps": 900})
    case.put(CHAMPION, PINNED | {"reports": {"pretrain": PRETRAIN | {"steps": 900}}})
    verdict = case.compare(representation, **report)
    assert (verdict.outcome, verdict.severity) == ("undecided", "warning")
    assert verdict.description.startswith("UNJUDGED: ")
    assert report["reason"] in verdict.description
    assert ("v0.0.3" in verdict.description) is (report["champion"] is not None)


def test_a_first_encoder_that_was_judged_out_of_fold_is_not_called_unjudged(case: Case) -> None:
    alone = ALONE | {"reason": UNLABELED["reason"], "knn": UNKNOWN, "probe": UNKNOWN, "estimated": True}
    verdict = case.compare(representation, **alone)
    assert (verdict.outcome, verdict.passed) == ("not applicable", True)
    assert verdict.description == f"not applicable: {UNLABELED['reason']}"
    case.put("reports/pretrain.json", PRETRAIN)
    case.put(CHAMPION, PINNED)
    assert case.compare(representation, **UNLABELED | {"estimated": True}).description.startswith("UNJUDGED")


def test_images_too_few_for_views_do_not_let_four_epochs_replace_thirty(case: Case) -> None:
    case.put("reports/pretrain.json", PRETRAIN | {"init": "scratch", "steps": 124})
    case.put(CHAMPION, PINNED | {"reports": {"pretrain": PRETRAIN | {"steps": 930}}})
    verdict = case.compare(representation, **UNLABELED)
    assert (verdict.outcome, verdict.severity) == ("refused", "error")
    assert "124 steps, v0.0.3 for 930" in verdict.description
    case.put("reports/pretrain.json", PRETRAIN | {"init": "scratch", "steps": 930})
    case.set_limits(release_if="better")
    assert case.ask(representation).outcome == "refused"
    case.set_limits()
    assert case.ask(representation).outcome == "undecided"
