"""What a difference in mean average precision shows, where an image may have several labels.

Its standard error is that of a bootstrap over the test images, paired (``simclr_core.evaluation.multi_label``). As of a
mean over few images, the difference follows Student's t, with one degree of freedom fewer than the images count for.
"""

import math
from statistics import NormalDist

from simclr_core.evaluation.paired_comparison import Interval
from simclr_core.evaluation_reports import Gain, Measured


def gain_interval(gain: Gain, confidence: float) -> Interval:
    """-1..1, with one-sided bounds, each of which holds with this confidence.

    Answers that hardly differ on few images say little of others: the bounds are never nearer than those of this
    number of single answers that all agree (Tango 1998, ``paired_comparison``).
    """
    difference = gain.difference / 100
    margin = max(_quantile(gain, confidence) * gain.standard_error / 100, _nearest(gain, confidence))
    return Interval(difference, max(-1.0, difference - margin), min(1.0, difference + margin))


def measured_interval(one: Measured, confidence: float) -> Interval:
    """0..1, with bounds of this confidence in place of those of 97.5 % each."""
    scale = NormalDist().inv_cdf(confidence) / NormalDist().inv_cdf(0.975) / 100
    low, high = (one.value / 100 + scale * (bound - one.value) for bound in (one.low, one.high))
    return Interval(one.value / 100, low, high)


def gain_p_value(gain: Gain) -> float:
    """One-sided, of the hypothesis that there is no gain; no smaller than if each image had decided for it alone."""
    least = 0.0 if gain.images is None else 0.5**gain.images
    if gain.standard_error == 0:
        return least if gain.difference > 0 else 1.0
    return max(least, _survival(gain, gain.difference / gain.standard_error))


def images_to_exclude(gain: Gain, images: int, max_loss: float, confidence: float, power: float) -> int:
    """How many test images let an equally good encoder show that it does not lose ``max_loss`` points: a standard error
    shrinks with the root of their number, and so does what answers that all agree leave open with the number itself."""
    shrunk = _errors(confidence, power) * gain.standard_error / max_loss
    left = 0.0
    if gain.images is not None:
        left = NormalDist().inv_cdf(confidence) ** 2 * (100 / max_loss - 1) / gain.images
    return math.ceil(images * max(shrunk**2, left))


def smallest_gain(gain: Gain, confidence: float, power: float) -> float:
    """The smallest true difference, up to 1, that is found on these images with this ``power``."""
    return min(1.0, _errors(confidence, power) * gain.standard_error / 100)


def images_to_show(gain: Gain, images: int, difference: float, confidence: float, power: float) -> int:
    """How many test images find a true ``difference``, above 0 and up to 1, with this ``power``."""
    return math.ceil(images * (smallest_gain(gain, confidence, power) / difference) ** 2)


def _errors(confidence: float, power: float) -> float:
    """The distance between the hypotheses, in standard errors, at which both errors are as asked."""
    return NormalDist().inv_cdf(confidence) + NormalDist().inv_cdf(power)


def _quantile(gain: Gain, confidence: float) -> float:
    """Of Student's t; without a number of images, of the normal distribution."""
    if gain.images is None:
        return NormalDist().inv_cdf(confidence)
    from scipy.special import stdtrit  # not above: `simclr status` asks gates, and most of them need no scipy

    return float(stdtrit(gain.images - 1, confidence)) if gain.images > 1 else 0.0


def _survival(gain: Gain, quantile: float) -> float:
    """The probability of more than ``quantile``, in that distribution."""
    if gain.images is None:
        return 1 - NormalDist().cdf(quantile)
    from scipy.special import stdtr

    return float(stdtr(gain.images - 1, -quantile)) if gain.images > 1 else 1.0


def _nearest(gain: Gain, confidence: float) -> float:
    """How far a bound is from the difference at least; one image shows nothing."""
    if gain.images is None:
        return 0.0
    square = NormalDist().inv_cdf(confidence) ** 2
    return square / (gain.images + square) if gain.images > 1 else 2.0
