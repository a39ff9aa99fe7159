"""Is one classifier worse than another? Paired statistics over the same test images.

Of ``images`` test images the candidate alone classifies ``candidate_only`` rightly and the champion alone
``champion_only``; on the others they agree. Their accuracies differ by (candidate_only - champion_only) / images, and
only the images on which they disagree tell how certain that is. Nothing here needs PyTorch: gates use it as well.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev

HALVINGS = 60  # of the interval of width 1 that holds the bound: below the precision of a float


def mcnemar_p_value(candidate_only: int, champion_only: int) -> float:
    """Exact one-sided p-value of the hypothesis that the candidate is not better (McNemar 1947).

    If it holds, each image on which they disagree goes to the candidate with probability 1/2 at most, so this is
    P(X >= candidate_only) for X ~ Binomial(candidate_only + champion_only, 1/2).
    """
    total = _whole(candidate_only) + _whole(champion_only)
    ways = term = math.comb(total, candidate_only)
    for count in range(candidate_only, total):
        term = term * (total - count) // (count + 1)
        ways += term
    return ways / (1 << total)  # whole numbers up to here, so that no tail is lost


def out_of_fold_worth(folds: int) -> float:
    """What an image that was answered out of fold counts for, of a test image.

    The classifiers of the folds share labels, so their answers vary together. With J = k folds, Nadeau and Bengio
    (2003, "Inference for the Generalization Error", Machine Learning 52, section 4) replace the variance 1 / J of a
    mean by 1 / J + (asked images) / (known images), here 1 / k + 1 / (k - 1): as if there were (k - 1) / (2 k - 1) of
    the images, 4 of 9 with five folds. The correction assumes how strongly answers vary together; it is not a bound.
    """
    assert folds > 1, folds
    return (folds - 1) / (2 * folds - 1)


def lower_bound(images: int, candidate_only: int, champion_only: int, confidence: float, worth: float = 1.0) -> float:
    """The smallest difference of accuracies, -1..1, that the counts do not refute at this one-sided confidence.

    It inverts the score test of Tango (1998, "Equivalence test and confidence interval for the difference in
    proportions for the paired-sample design", Statistics in Medicine 17), which unlike Wald's also holds when they
    hardly disagree: without a single disagreement the bound is -z^2 / (images + z^2) and not 0. Its confidence is
    approximate: for a candidate that is truly worse, 95 % are 96 % on average, and 93.3 % where it is farthest off,
    with no win and 2.7 losses expected. ``worth``: see ``out_of_fold_worth``.
    """
    _check(images, candidate_only, champion_only)
    quantile = _quantile(confidence)
    low, high = -1.0, (candidate_only - champion_only) / images
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if _score(worth * images, worth * candidate_only, worth * champion_only, middle) > quantile:
            low = middle
        else:
            high = middle
    return high


@dataclass(frozen=True)
class Interval:
    """A difference of accuracies, -1..1, and its one-sided bounds, each of which holds with the confidence asked."""

    difference: float
    low: float
    high: float

    def __sub__(self, other: "Interval") -> "Interval":
        """The difference of two independent estimates: squared half-widths add up."""
        difference = self.difference - other.difference
        low = difference - math.hypot(self.difference - self.low, other.high - other.difference)
        high = difference + math.hypot(self.high - self.difference, other.difference - other.low)
        return Interval(difference, max(-1.0, low), min(1.0, high))


def interval(images: int, pairs: Sequence[tuple[int, int]], confidence: float, worth: float = 1.0) -> Interval:
    """Of the mean difference over several pairs of classifiers, each given as (candidate_only, champion_only).

    The test images are the same for all pairs, so their errors are not independent and do not shrink with the number of
    pairs. The bounds are the mean of the bounds of the pairs: the standard deviation of a mean is at most the mean of
    the standard deviations, however they are correlated (Minkowski's inequality). With one pair it is Tango's interval.
    ``worth``: see ``out_of_fold_worth``.
    """
    low = fmean(lower_bound(images, won, lost, confidence, worth) for won, lost in pairs)
    high = -fmean(lower_bound(images, lost, won, confidence, worth) for won, lost in pairs)
    return Interval(fmean(won - lost for won, lost in pairs) / images, low, high)


def widened(one: Interval, repetitions: Sequence[float], confidence: float, alone: float) -> Interval:
    """``one``, which knows of the test images alone, with the spread between independent repetitions as well.

    Both sources are independent, so the squared half-widths add up; that of the repetitions is Student's t. A single
    repetition tells nothing of the spread; its standard deviation is then taken to be ``alone``.
    """
    known = len(repetitions) > 1
    spread = half_width(repetitions, confidence) if known else _quantile(confidence) * alone
    low, high = (math.hypot(spread, bound - one.difference) for bound in (one.low, one.high))
    return Interval(one.difference, max(-1.0, one.difference - low), min(1.0, one.difference + high))


def half_width(repetitions: Sequence[float], confidence: float) -> float:
    """From the mean of two or more independent repetitions to each one-sided bound, by Student's t."""
    from scipy.special import stdtrit  # not above: `simclr status` asks gates, and most of them need no scipy

    count = len(repetitions)
    return float(stdtrit(count - 1, confidence)) * stdev(repetitions) / math.sqrt(count)


def single_draw(variance: float, labels: int) -> float:
    """The standard deviation to assume between results on draws of ``labels`` labels where only one was drawn.

    That of a mean over ``labels`` images, ``variance`` being that of one image's answer: the labels are a sample of
    that size. An assumption on the safe side: docs/evaluation.md has how far results on 40 draws really spread.
    """
    return math.sqrt(variance / max(labels, 1))


def proportion(right: float, images: float, confidence: float) -> Interval:
    """An accuracy, 0..1, on ``images`` test images, or what is worth that many, with Wilson's score interval (1927).

    It is not empty at 0 or 1.

    Raises:
        ValueError: there is no image, or the accuracy is not one.
    """
    if not (images > 0 and 0 <= right <= 1):
        raise ValueError(f"an accuracy of {right} on {images} test images")
    square = _quantile(confidence) ** 2
    middle = (right + square / (2 * images)) / (1 + square / images)
    spread = math.sqrt(square * (right * (1 - right) / images + square / (4 * images**2))) / (1 + square / images)
    return Interval(right, min(right, middle - spread), max(right, middle + spread))


def disagreement(images: int, pairs: Sequence[tuple[int, int]]) -> float:
    """The estimated share of all test images that exactly one of the two classifies correctly.

    Half an image is added to each of the four cells, so that a few images without a disagreement do not promise that
    there is none (Agresti and Min 2005, "Simple improved confidence intervals for comparing matched proportions").
    """
    return (fmean(won + lost for won, lost in pairs) + 1) / (images + 2)


def images_to_find(difference: float, disagreement: float, confidence: float, power: float) -> int:
    """How many test images let a paired test find a true ``difference``, above 0 and up to 1, with this ``power``.

    McNemar's test with the variance of no difference under both hypotheses (Lachenbruch 1992, "On the sample size for
    studies based upon McNemar's test"); two that differ so much disagree at least so often.
    """
    assert 0 < difference <= 1, difference
    return math.ceil(max(disagreement, difference) * (_errors(confidence, power) / difference) ** 2)


def smallest_found(images: float, disagreement: float, confidence: float, power: float) -> float:
    """The smallest true difference that a paired test on this many test images finds with this ``power``; at most 1."""
    errors = _errors(confidence, power)
    found = errors * math.sqrt(disagreement / images)
    return min(1.0, found if found <= disagreement else errors**2 / images)


def images_needed(
    images: int,
    candidate_only: int,
    champion_only: int,
    max_loss: float,
    confidence: float,
    power: float = 0.8,
) -> int:
    """How many test images let an equally good candidate show, with probability ``power``, that it loses less.

    ``max_loss`` is a fraction above 0 and up to 1. Taken from the counts is how often the two disagree. The formula is
    Nam's for the score test (1997, "Establishing equivalence of two treatments and sample size requirements in
    matched-pairs design", Biometrics 53).
    """
    _check(images, candidate_only, champion_only)
    assert 0 < max_loss <= 1, max_loss
    disagreement = (candidate_only + champion_only) / images
    refuted = 2 * _constrained(1, disagreement / 2, disagreement / 2, -max_loss) - max_loss * (1 + max_loss)
    spread = _quantile(confidence) * math.sqrt(refuted) + _quantile(power) * math.sqrt(disagreement)
    return math.ceil((spread / max_loss) ** 2)


def _score(images: float, candidate_only: float, champion_only: float, difference: float) -> float:
    """Tango's statistic: how many standard errors the counts lie above this difference, if it were the true one."""
    champion_rate = _constrained(images, candidate_only, champion_only, difference)
    variance = images * (2 * champion_rate + difference * (1 - difference))
    return (candidate_only - champion_only - images * difference) / math.sqrt(variance) if variance > 0 else math.inf


def _constrained(images: float, candidate_only: float, champion_only: float, difference: float) -> float:
    """The likeliest rate at which only the champion is right, given the difference: a root of a quadratic (Tango)."""
    a = 2 * images
    b = (2 * images - candidate_only + champion_only) * difference - candidate_only - champion_only
    c = -champion_only * difference * (1 - difference)
    return (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)


def _errors(confidence: float, power: float) -> float:
    """The distance between the hypotheses, in standard errors, at which both errors are as asked."""
    return _quantile(confidence) + _quantile(power)


def _quantile(probability: float) -> float:
    assert 0.5 <= probability < 1, probability
    return NormalDist().inv_cdf(probability)


def _check(images: int, candidate_only: int, champion_only: int) -> None:
    if _whole(candidate_only) + _whole(champion_only) > _whole(images) or images == 0:
        raise ValueError(f"{candidate_only} + {champion_only} of {images} test images; cannot be more than there are")


def _whole(count: int) -> int:
    if type(count) is not int or count < 0:  # the counts come from a file
        raise ValueError(f"a count of {count!r}; must be a whole number of images")
    return count
