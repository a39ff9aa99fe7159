"""Successive halving (Jamieson and Talwalkar 2016, "Non-stochastic Best Arm Identification", AISTATS): all settings are
trained for a short time, the best third three times as long, and so on, so that every rung takes the same time.

A setting that is promoted starts over. The learning rate follows a cosine over the whole training and ends at zero, so
a checkpoint of a short training is not a point on the way of a longer one: to continue from it would be a warm
restart, which is not what params.yaml describes. With a factor of three, that costs at most half as much again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

FACTOR = 3
TRAINED = 0.8  # share of the budget; the rest is for measuring, loading and judging


@dataclass(frozen=True)
class Rung:
    """How many settings are trained, and for how many seconds each."""

    settings: int
    seconds: float


@dataclass(frozen=True)
class Plan:
    """The rungs of the search, and the seconds of each training of the comparison at its end."""

    rungs: tuple[Rung, ...]
    final_seconds: float


def plan(budget: float, trials: int, seeds: int) -> Plan:
    """Share ``budget`` seconds among rungs of ``trials`` settings, a third of them, and so on down to more than one;
    then the last one and the present settings, ``seeds`` times each, trained three times as long as the last rung.

    Examples:
        >>> plan(900.0, 9, 3)  # 9 * 10 s + 3 * 30 s + 2 * 3 * 90 s, of 720 s
        Plan(rungs=(Rung(settings=9, seconds=10.0), Rung(settings=3, seconds=30.0)), final_seconds=90.0)
    """
    sizes = [trials]
    while sizes[-1] // FACTOR > 1:
        sizes.append(sizes[-1] // FACTOR)
    final = FACTOR ** len(sizes)
    units = sum(size * FACTOR**rung for rung, size in enumerate(sizes)) + 2 * seeds * final
    unit = TRAINED * budget / units
    return Plan(tuple(Rung(size, unit * FACTOR**rung) for rung, size in enumerate(sizes)), unit * final)


def promote(scores: Mapping[int, float | None], count: int) -> Sequence[int]:
    """The ``count`` settings with the highest scores, the best first; equal ones in their order. None is a failure,
    which is never promoted.

    Examples:
        >>> promote({0: 70.0, 1: None, 2: 75.0, 3: 70.0}, 2)
        [2, 0]
    """
    judged = {number: score for number, score in scores.items() if score is not None}
    return sorted(judged, key=lambda number: (-judged[number], number))[:count]
