"""The statistics of the champion gates against published values, brute force, and their exact error rates."""

import math
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from itertools import product

import pytest

from simclr_core.evaluation.paired_comparison import (
    Interval,
    disagreement,
    images_needed,
    images_to_find,
    interval,
    lower_bound,
    mcnemar_p_value,
    proportion,
    single_draw,
    smallest_found,
    widened,
)


@pytest.mark.parametrize(
    ("images", "won", "lost", "confidence", "low", "high"),
    [
        (21, 1, 7, 0.975, -0.517, -0.026),  # Fagerland et al. 2014, airway responsiveness: 95 % two-sided
        (44, 0, 1, 0.95, -0.096, 0.037),  # Tango 1998, disinfection of contact lenses: 90 % two-sided
        (32, 9, 3, 0.975, -0.027, 0.390),  # a test of the R package ratesci 0.3: 95 % two-sided
        (618, 28, 25, 0.95, -0.0148, 0.0247),  # PropCIs::scoreci.mp(25, 28, 618, 0.9) in R
    ],
)
def test_the_bound_is_the_published_end_of_tangos_interval(
    images: int, won: int, lost: int, confidence: float, low: float, high: float
) -> None:
    digits = len(str(low).partition(".")[2])
    assert round(lower_bound(images, won, lost, confidence), digits) == low
    assert round(-lower_bound(images, lost, won, confidence), digits) == high  # exchanged, the lower end is the upper


@pytest.mark.parametrize(("images", "won", "lost"), [(40, 3, 6), (200, 0, 2), (60, 25, 20), (1000, 10, 40), (30, 0, 0)])
def test_at_the_bound_the_score_at_the_most_likely_rates_is_the_quantile(images: int, won: int, lost: int) -> None:
    """The likelihood of the three outcomes is maximized by search, under the difference that the bound gives."""
    bound = lower_bound(images, won, lost, 0.95)

    def log_likelihood(lost_rate: float) -> float:
        rates = ((won, lost_rate + bound), (lost, lost_rate), (images - won - lost, 1 - 2 * lost_rate - bound))
        return sum(count * math.log(rate) for count, rate in rates if count)

    low, high = max(0.0, -bound) + 1e-12, (1 - bound) / 2 - 1e-12
    for _ in range(200):
        third = (high - low) / 3
        worse = log_likelihood(low + third) < log_likelihood(high - third)
        low, high = (low + third, high) if worse else (low, high - third)
    spread = math.sqrt((2 * low + bound - bound**2) / images)
    assert ((won - lost) / images - bound) / spread == pytest.approx(1.6448536, abs=1e-3)


def test_the_bound_at_the_edges() -> None:
    z2 = 1.6448536269514722**2
    assert lower_bound(400, 0, 0, 0.95) == pytest.approx(-z2 / (400 + z2))  # agreement everywhere is not certainty
    assert lower_bound(5, 0, 5, 0.95) == -1
    assert -1 < lower_bound(1, 0, 0, 0.95) < -0.7
    assert 0 < lower_bound(50, 50, 0, 0.95) < 1
    assert lower_bound(100, 7, 5, 0.5) == pytest.approx(0.02)  # with no confidence asked, the difference itself
    assert lower_bound(100, 7, 5, 0.99) < lower_bound(100, 7, 5, 0.9) < 0.02


@pytest.mark.parametrize("images", [40, 133, 500])
def test_the_bound_exceeds_the_true_difference_as_rarely_as_stated(images: int) -> None:
    """Exact, by summing over every possible outcome: how often the bound is above the true difference."""
    expected = (0, 0.5, 1, 2, 2.7, 4, 8, 12)
    pairs = [(won / images, lost / images) for won, lost in product(expected, expected) if won < lost]
    errors = [
        sum(
            chance
            for w, c, chance in outcomes(images, won, lost)
            if (w - c) / images > won - lost and lower_bound(images, w, c, 0.95) > won - lost
        )
        for won, lost in pairs
    ]
    assert max(errors) < 0.068
    assert sum(errors) / len(errors) < 0.045


def test_mcnemar_counts_sequences() -> None:
    for won, lost in product(range(6), range(5)):
        sequences = list(product((True, False), repeat=won + lost))
        at_least = sum(sum(sequence) >= won for sequence in sequences)
        assert mcnemar_p_value(won, lost) == Fraction(at_least, len(sequences))
    assert mcnemar_p_value(0, 0) == 1


def test_mcnemar_is_exact_in_the_far_tail_and_for_many_images() -> None:
    assert mcnemar_p_value(900, 0) == pytest.approx(0.5**900, rel=1e-12)
    assert mcnemar_p_value(0, 900) == 1
    z = (5100 - 0.5 - 5000) / 50  # the normal approximation with continuity correction
    assert mcnemar_p_value(5100, 4900) == pytest.approx(math.erfc(z / math.sqrt(2)) / 2, rel=1e-3)


@pytest.mark.parametrize(("disagreement", "max_loss"), [(0.1, 0.06), (0.05, 0.05), (0.3, 0.12)])
def test_with_the_images_needed_an_equal_candidate_passes_four_times_in_five(
    disagreement: float, max_loss: float
) -> None:
    half = round(disagreement / 2 * 1000)
    needed = images_needed(1000, half, half, max_loss, 0.95)

    def power(images: int) -> float:
        rate = disagreement / 2
        return sum(chance for won, lost, chance in outcomes(images, rate, rate) if passes(images, won, lost, max_loss))

    assert power(needed) == pytest.approx(0.8, abs=0.05)
    assert power(needed // 2) < 0.65


def test_images_needed_when_the_encoders_never_disagree() -> None:
    needed = images_needed(50, 0, 0, 0.02, 0.95)
    assert passes(needed, 0, 0, 0.02)
    assert not passes(needed - 1, 0, 0, 0.02)


@pytest.mark.parametrize(
    ("images", "won", "lost"),
    [(0, 0, 0), (10, 6, 5), (10, -1, 0), (10, 1.0, 0), (10, True, 0), (10, 0, math.nan), (None, 0, 0), (10, "1", 0)],
)
def test_impossible_counts_are_refused(images: int, won: int, lost: int) -> None:
    with pytest.raises(ValueError, match=r"test images|whole number"):
        lower_bound(images, won, lost, 0.95)
    with pytest.raises(ValueError, match=r"test images|whole number"):
        images_needed(images, won, lost, 0.02, 0.95)
    if won != 6 and images:
        with pytest.raises(ValueError, match="whole number"):
            mcnemar_p_value(won, lost)


def test_it_imports_only_the_standard_library() -> None:
    program = "import simclr_core.evaluation.paired_comparison, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"numpy", "scipy", "pyarrow", "torch", "dagster"} & set(done.stdout.split())


def passes(images: int, won: int, lost: int, max_loss: float) -> bool:
    return lower_bound(images, won, lost, 0.95) > -max_loss


def outcomes(images: int, won_rate: float, lost_rate: float) -> Iterator[tuple[int, int, float]]:
    """Every outcome of the trinomial that is not out of the question, with its probability."""

    def near(rate: float) -> range:
        spread = 5 * math.sqrt(images * rate * (1 - rate)) + 6 * (rate > 0)
        return range(max(0, int(images * rate - spread)), min(images, int(images * rate + spread)) + 1)

    for won, lost in product(near(won_rate), near(lost_rate)):
        same = images - won - lost
        if same >= 0:
            ways = math.lgamma(images + 1) - math.lgamma(won + 1) - math.lgamma(lost + 1) - math.lgamma(same + 1)
            rates = ((won, won_rate), (lost, lost_rate), (same, 1 - won_rate - lost_rate))
            yield won, lost, math.exp(ways + sum(count * math.log(rate) for count, rate in rates if count))


def test_the_interval_of_one_pair_is_tangos_and_of_several_the_mean() -> None:
    one = interval(618, [(28, 25)], 0.95)
    assert (round(one.low, 4), round(one.high, 4), one.difference) == (-0.0148, 0.0247, 3 / 618)
    several = interval(618, [(28, 25), (40, 20), (30, 30)], 0.95)
    assert several.low == pytest.approx(
        sum(lower_bound(618, *pair, 0.95) for pair in [(28, 25), (40, 20), (30, 30)]) / 3
    )
    assert several.difference == pytest.approx(23 / 3 / 618)


def test_three_equal_pairs_are_no_more_evidence_than_one() -> None:
    assert interval(200, [(20, 10)] * 3, 0.95).low == pytest.approx(interval(200, [(20, 10)], 0.95).low)


@pytest.mark.parametrize(
    ("right", "images", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_interval_of_an_accuracy_is_the_published_score_interval(
    right: int, images: int, low: float, high: float
) -> None:
    """Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3: 95 % two-sided."""
    found = proportion(right / images, images, 0.975)
    assert (round(found.low, 4), round(found.high, 4)) == (low, high)


@pytest.mark.parametrize(("right", "images"), [(0.5, 0), (1.2, 10), (-0.1, 10), (math.nan, 10)])
def test_an_impossible_accuracy_is_refused(right: float, images: int) -> None:
    with pytest.raises(ValueError, match="an accuracy of"):
        proportion(right, images, 0.95)


def test_the_spread_between_seeds_adds_up_with_that_of_the_images() -> None:
    """Student's t of NIST/SEMATECH 1.3.6.7.2: 2.920 for two degrees of freedom and 95 % one-sided."""
    images = Interval(0.1, 0.07, 0.14)
    seeds = 2.920 * 0.02 / math.sqrt(3)  # 0.08, 0.10, 0.12 have a standard deviation of 0.02
    found = widened(images, [0.08, 0.10, 0.12], 0.95, alone=9.9)
    assert found.low == pytest.approx(0.1 - math.hypot(seeds, 0.03), abs=1e-5)
    assert found.high == pytest.approx(0.1 + math.hypot(seeds, 0.04), abs=1e-5)
    difference = images - Interval(0.2, 0.16, 0.23)
    assert difference.low == pytest.approx(-0.1 - math.hypot(0.03, 0.03))
    assert difference.high == pytest.approx(-0.1 + math.hypot(0.04, 0.04))


def test_a_single_repetition_widens_the_interval_by_what_is_assumed_of_it() -> None:
    images = Interval(0.1, 0.07, 0.14)
    alone = single_draw(0.25, 100)  # one image's answer is right with 50 %, as is the mean of 100
    assert alone == pytest.approx(math.sqrt(0.5 * 0.5 / 100))
    found = widened(images, [0.1], 0.95, alone)
    assert found.low == pytest.approx(0.1 - math.hypot(0.03, 1.6448536 * 0.05))
    assert found.high == pytest.approx(0.1 + math.hypot(0.04, 1.6448536 * 0.05))


@pytest.mark.parametrize(("difference", "disagreeing"), [(0.05, 0.2), (0.02, 0.15), (0.1, 0.3)])
def test_with_the_images_to_find_it_a_difference_is_found_as_often_as_stated(
    difference: float, disagreeing: float
) -> None:
    """Exact, over every outcome: the lower bound is above 0."""
    images = images_to_find(difference, disagreeing, 0.95, 0.8)
    rates = (disagreeing + difference) / 2, (disagreeing - difference) / 2
    found = sum(
        probability
        for won, lost, probability in outcomes(images, *rates)
        if won > lost and (won - lost) ** 2 > 1.6448536**2 * (won + lost)  # where Tango's lower bound is above 0
    )
    assert found == pytest.approx(0.8, abs=0.025)
    assert smallest_found(images, disagreeing, 0.95, 0.8) == pytest.approx(difference, rel=0.01)


def test_few_images_without_a_disagreement_do_not_promise_that_there_is_none() -> None:
    assert disagreement(58, [(0, 0)]) == 1 / 60
    assert disagreement(98, [(10, 9), (20, 19)]) == 0.3
    assert smallest_found(4, 0.5, 0.95, 0.8) == 1.0
    assert smallest_found(100, 0.01, 0.95, 0.8) > 0.01  # a difference larger than the disagreement takes more images
    assert lower_bound(100, 30, 17, 0.95) > 0 > lower_bound(100, 28, 19, 0.95)


def test_no_bound_is_beyond_what_accuracies_can_differ_by() -> None:
    """Student's t of two seeds at 99.99 % is 3183."""
    found = widened(Interval(0.1, 0.07, 0.14), [0.08, 0.12], 0.9999, alone=0.0)
    assert (found.low, found.high) == (-1, 1)
    far = Interval(1.0, 0.1, 1.0) - Interval(0.0, 0.0, 0.9)
    assert -1 <= far.low < far.high <= 1


@pytest.mark.parametrize(("images", "stated"), [(1, 0), (2, 0), (3, 0.125), (4, 0.079), (12, 0.073), (20, 0.058)])
def test_a_gain_is_found_where_there_is_none_as_rarely_as_stated(images: int, stated: float) -> None:
    """Exact, by summing over every possible outcome, at every rate of disagreement, as in ``docs/gates.md``."""
    found = [
        (won, lost)
        for won, lost in product(range(images + 1), repeat=2)
        if won + lost <= images and lower_bound(images, won, lost, 0.95) > 0
    ]
    assert stated == pytest.approx(
        max(
            sum(
                math.comb(images, won)
                * math.comb(images - won, lost)
                * (rate / 2) ** (won + lost)
                * (1 - rate) ** (images - won - lost)
                for won, lost in found
            )
            for rate in (step / 100 for step in range(1, 101))
        ),
        abs=6e-4,
    )
