"""Whether other settings are better than the present ones: trainings with the same seeds, paired.

The seeds are none of the search: the winner of a search has been lucky with the seed that it was chosen by.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from simclr_core.evaluation.paired_comparison import half_width

CONFIDENCE = 0.95  # of the one-sided test, as of the gates
FEWEST_SEEDS = 3


@dataclass(frozen=True)
class Comparison:
    """The winner less the present settings, in points: the mean over ``seeds``, and between which limits it is with
    ``CONFIDENCE`` on either side. ``better`` where the lower limit is above zero."""

    seeds: int
    difference: float
    low: float
    high: float
    better: bool


def compare(winner: Sequence[float], present: Sequence[float]) -> Comparison:
    """Student's t over the differences of pairs, [seeds] each.

    Examples:
        >>> compare([72.0, 73.0, 74.0], [70.0, 71.0, 71.9])
        Comparison(seeds=3, difference=2.033, low=1.936, high=2.131, better=True)
        >>> compare([75.0, 70.0, 72.0], [70.0, 71.0, 71.0]).better  # a mean of 1.7 within the noise
        False
    """
    assert len(winner) == len(present) >= FEWEST_SEEDS
    differences = [one - other for one, other in zip(winner, present, strict=True)]
    mean, margin = fmean(differences), half_width(differences, CONFIDENCE)
    low, high = mean - margin, mean + margin
    return Comparison(len(differences), round(mean, 3), round(low, 3), round(high, 3), low > 0)
