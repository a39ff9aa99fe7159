"""What a difference in mean average precision shows, where an image may have several labels.

Its standard error is that of a bootstrap over the test images, paired (``simclr_core.evaluation.multi_label``), and the
difference is taken to be normally distributed, as that of a mean over many images is.
"""

import math
from statistics import NormalDist

from simclr_core.evaluation.paired_comparison import Interval
from simclr_core.evaluation_reports import Gain, Measured


def gain_interval(gain: Gain, confidence: float) -> Interval:
    """-1..1, with one-sided bounds, each of which holds with this confidence."""
    margin = NormalDist().inv_cdf(confidence) * gain.standard_error
    return Interval(*(one / 100 for one in (gain.difference, gain.difference - margin, gain.difference + margin)))


def measured_interval(one: Measured, confidence: float) -> Interval:
    """0..1, with bounds of this confidence in place of those of 97.5 % each."""
    scale = NormalDist().inv_cdf(confidence) / NormalDist().inv_cdf(0.975) / 100
    low, high = (one.value / 100 + scale * (bound - one.value) for bound in (one.low, one.high))
    return Interval(one.value / 100, low, high)


def gain_p_value(gain: Gain) -> float:
    """One-sided, of the hypothesis that there is no gain."""
    if gain.standard_error == 0:
        return 0.0 if gain.difference > 0 else 1.0
    return 1 - NormalDist().cdf(gain.difference / gain.standard_error)


def images_to_exclude(gain: Gain, images: int, max_loss: float, confidence: float, power: float) -> int:
    """How many test images let an equally good encoder show that it does not lose ``max_loss`` points: a standard error
    shrinks with the root of their number."""
    errors = NormalDist().inv_cdf(confidence) + NormalDist().inv_cdf(power)
    return math.ceil(images * (errors * gain.standard_error / max_loss) ** 2)


def equivalent_disagreement(gain: Gain, images: float) -> float:
    """How often two classifiers would have to disagree, for the difference of their accuracies on these images to be as
    uncertain as the gain is."""
    return images * (gain.standard_error / 100) ** 2
