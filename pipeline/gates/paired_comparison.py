"""Is one classifier worse than another? Paired statistics over the same test images, in the standard library alone.

Of ``images`` test images the candidate alone classifies ``candidate_only`` rightly and the champion alone
``champion_only``; on the others they agree. Their accuracies differ by (candidate_only - champion_only) / images, and
only the images on which they disagree tell how certain that is.
"""

import math
from statistics import NormalDist

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


def lower_bound(images: int, candidate_only: int, champion_only: int, confidence: float) -> float:
    """The smallest difference of accuracies, -1..1, that the counts do not refute at this one-sided confidence.

    It inverts the score test of Tango (1998, "Equivalence test and confidence interval for the difference in
    proportions for the paired-sample design", Statistics in Medicine 17), which unlike Wald's also holds when they
    hardly disagree: without a single disagreement the bound is -z^2 / (images + z^2) and not 0. Its confidence is
    approximate: for a candidate that is truly worse, 95 % are 96 % on average, and 93.3 % where it is farthest off,
    with no win and 2.7 losses expected.
    """
    _check(images, candidate_only, champion_only)
    quantile = _quantile(confidence)
    low, high = -1.0, (candidate_only - champion_only) / images
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if _score(images, candidate_only, champion_only, middle) > quantile:
            low = middle
        else:
            high = middle
    return high


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
