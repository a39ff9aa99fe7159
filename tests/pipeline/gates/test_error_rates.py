"""The gates by simulation: how rarely they err, and how often they find twice the smallest difference that matters."""

import math

import pytest

from benchmarks.pipeline.gates import GATES, LIMITS, SET_GATES, shares

ROUNDS, SET_ROUNDS = 300, 100
RATE = 1 - LIMITS.confidence


def chance(rounds: int) -> float:
    """By which a rate may differ in these rounds: a right gate fails once in 30,000."""
    return 4 * math.sqrt(RATE * (1 - RATE) / rounds)


@pytest.mark.seconds
@pytest.mark.parametrize("images", [50, 200, 1000])
@pytest.mark.parametrize("name", GATES)
def test_with_no_true_difference_the_wrong_verdict_is_as_rare_as_stated(name: str, images: int) -> None:
    judge, _ = GATES[name]
    wrong = "passed" if name == "beats_baselines" else "refused"
    assert shares(judge, images, 0.0, ROUNDS)[wrong] <= RATE + chance(ROUNDS)


@pytest.mark.seconds
@pytest.mark.parametrize("name", GATES)
def test_twice_the_smallest_difference_is_found_or_the_gate_is_undecided(name: str) -> None:
    judge, smallest = GATES[name]
    right, wrong = ("passed", "refused") if name == "beats_baselines" else ("refused", "passed")
    few, many = (shares(judge, images, 2 * smallest, ROUNDS) for images in (50, 1000))
    assert few["undecided"] > LIMITS.power
    assert many[right] >= LIMITS.power - 4 * math.sqrt(LIMITS.power * (1 - LIMITS.power) / ROUNDS)
    assert max(few[wrong], many[wrong]) <= RATE + chance(ROUNDS)


@pytest.mark.seconds
@pytest.mark.parametrize(("name", "images"), [("beats_baselines", 20), ("representation", 20), ("representation", 60)])
def test_of_several_labels_the_wrong_verdict_is_as_rare_as_stated(name: str, images: int) -> None:
    """On few images with rare classes too, of which a bootstrap alone shows too little."""
    judge, _ = SET_GATES[name]
    wrong = "passed" if name == "beats_baselines" else "refused"
    assert shares(judge, images, 0.0, SET_ROUNDS)[wrong] <= RATE + chance(SET_ROUNDS)
