"""Successive halving: who is promoted, and that every rung takes the same time."""

import random
from itertools import pairwise

import pytest

from simclr_core.tune.halving import FACTOR, TRAINED, plan, promote


@pytest.mark.parametrize(("trials", "sizes"), [(2, [2]), (5, [5]), (6, [6, 2]), (9, [9, 3]), (27, [27, 9, 3])])
def test_a_third_comes_into_the_next_rung_for_three_times_as_long(trials: int, sizes: list[int]) -> None:
    found = plan(3600.0, trials, 3)
    assert [one.settings for one in found.rungs] == sizes
    times = [one.seconds for one in found.rungs] + [found.final_seconds]
    assert [later / earlier for earlier, later in pairwise(times)] == pytest.approx([FACTOR] * len(sizes))
    spent = sum(one.settings * one.seconds for one in found.rungs) + 2 * 3 * found.final_seconds
    assert spent == pytest.approx(TRAINED * 3600)


def test_the_best_are_promoted_as_a_slow_search_finds_them() -> None:
    draw = random.Random(0)
    for _ in range(50):
        scores = {number: draw.choice([None, 1.0, 2.0, 3.0, 4.0]) for number in range(9)}
        left, best = dict(scores), []
        while len(best) < 3 and any(score is not None for score in left.values()):
            highest = max(score for score in left.values() if score is not None)
            best.append(min(number for number, score in left.items() if score == highest))
            del left[best[-1]]
        assert promote(scores, 3) == best
