"""Mean average precision and F1 of answers with several labels, and how sure they are, by bootstrap over the images.

Average precision of a class is that of ``scores.classification``. The images are drawn again with replacement, as many
as there are (Efron 1979, "Bootstrap methods: another look at the jackknife"); all answers are asked on the same draws,
so that the difference of two is paired. A class without a positive image in a draw does not count in its mean.

Of few images with a class the draws show too little: of one, whose average precision is one number, nothing. How much
they would show of errors that differ from image to image follows from the labels alone (``Spread``), and the resamples
are spread by what is missing.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Self

import numpy as np
from numpy.typing import NDArray

from simclr_core.data.order import uniform
from simclr_core.evaluation.multi_label.images import Targets
from simclr_core.evaluation.paired_comparison import Interval, lower_bound, single_draw, widened
from simclr_core.evaluation.scores.classification import BOUND
from simclr_core.evaluation_reports import Gain, Measured

Scores = NDArray[np.floating]
"""The higher, the likelier the class: [n, classes]."""

RESAMPLES = 400  # a standard error from them is off by 4 %
CELLS = 4_000_000  # counts in memory at a time


@dataclass(frozen=True)
class Ranking:
    """The images in the order of their scores for one class: ``order`` [n], which of them have it, and the ``ends`` of
    the runs of equal scores, which are taken together."""

    order: NDArray[np.int64]
    positive: NDArray[np.bool_]
    ends: NDArray[np.int64]

    @classmethod
    def of(cls, scores: Scores, positive: NDArray[np.bool_]) -> Self:
        order = np.argsort(-scores, kind="stable")
        ends = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
        return cls(order, positive[order], ends)

    def precision(self, counts: NDArray[np.float64]) -> NDArray[np.float64]:
        """Average precision, 0..1, where the images count so often: [b, n] to [b]; NaN without a positive image."""
        weights = counts[:, self.order]
        seen = np.cumsum(weights, axis=1)[:, self.ends]
        found = np.cumsum(weights * self.positive, axis=1)[:, self.ends]
        gained = np.diff(found, axis=1, prepend=0.0)
        total = found[:, -1]
        summed = (gained * found / np.maximum(seen, 1.0)).sum(axis=1)
        means: NDArray[np.float64] = np.divide(summed, total, out=np.full(len(total), np.nan), where=total > 0)
        return means


def draw_counts(images: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """How often each image is drawn: some of RESAMPLES rows [b, images] at a time."""
    rows = max(1, min(RESAMPLES, CELLS // images))
    for start in range(0, RESAMPLES, rows):
        draws = np.arange(start, min(start + rows, RESAMPLES))
        chosen = (uniform(seed, 0, draws, 0, images) * images).astype(np.int64)
        yield np.stack([np.bincount(row, minlength=images) for row in chosen]).astype(np.float64)


@dataclass(frozen=True)
class Precision:
    """Mean average precision, 0..1, of answers to the images, and of the same answers to each resample of these, spread
    as widely as the value varies. ``images`` is what they count for: see ``Spread``."""

    value: float
    resampled: NDArray[np.float64]
    images: float = math.inf


@dataclass(frozen=True)
class Spread:
    """What the labels of the images alone say of a mean average precision.

    Each image has a part in the mean, which is over classes and in each over the images that have it. ``images`` is how
    many with equal parts would make it as sure (Kish 1965, "Survey Sampling"): all of them, or fewer where classes are
    rare. ``factor`` is by how much the standard deviation of the resamples is too small for errors that differ from
    image to image, independently.
    """

    images: float
    factor: float

    @classmethod
    def of(cls, truth: Targets, counts: NDArray[np.float64]) -> Self:
        """For the draws in ``counts`` [b, n]; one draw shows no spread."""
        asked = truth[:, truth.any(axis=0)].astype(np.float64)
        drawn = counts @ asked
        present = drawn > 0
        inverse = np.divide(1.0, drawn, out=np.zeros_like(drawn), where=present)
        parts = counts * (inverse @ asked.T) / np.maximum(present.sum(axis=1, keepdims=True), 1)
        shown = float(parts.var(axis=0).sum())
        true = float(np.square((asked / asked.sum(axis=0)).mean(axis=1)).sum())
        return cls(1 / true, max(1.0, math.sqrt(true / shown)) if shown else 1.0)

    def widened(self, resampled: NDArray[np.float64]) -> NDArray[np.float64]:
        middle = resampled.mean()
        found: NDArray[np.float64] = middle + self.factor * (resampled - middle)
        return found


def exact_precision(scores: Scores, truth: Targets) -> float:
    """Mean average precision, 0..1, over the classes that images have; there is at least one."""
    return float(_mean_over_classes(_rank(scores, truth), np.ones((1, len(truth))))[0])


def mean_precision(answers: Mapping[str, Scores], truth: Targets, seed: int) -> dict[str, Precision]:
    """The same of each of the answers by name, with the resamples."""
    rankings = {name: _rank(scores, truth) for name, scores in answers.items()}
    resampled: dict[str, list[NDArray[np.float64]]] = {name: [] for name in answers}
    spread = Spread(math.inf, 1.0)
    for number, counts in enumerate(draw_counts(len(truth), seed)):
        if number == 0:
            spread = Spread.of(truth, counts)  # of many images a part of the draws does
        for name, of_class in rankings.items():
            resampled[name].append(_mean_over_classes(of_class, counts))
    return {
        name: Precision(exact_precision(scores, truth), spread.widened(np.concatenate(resampled[name])), spread.images)
        for name, scores in answers.items()
    }


def _rank(scores: Scores, truth: Targets) -> list[Ranking]:
    """For each class that images have."""
    return [Ranking.of(scores[:, one], truth[:, one]) for one in np.flatnonzero(truth.any(axis=0)).tolist()]


def _mean_over_classes(rankings: Sequence[Ranking], counts: NDArray[np.float64]) -> NDArray[np.float64]:
    found = np.stack([one.precision(counts) for one in rankings])
    known = np.isfinite(found)
    summed: NDArray[np.float64] = np.where(known, found, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    return summed


def f1_scores(
    predicted: NDArray[np.bool_], truth: Targets, counts: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Macro and micro F1, 0..1, where the images count so often: [b, n] to [b] each."""
    hits, images, answers = (counts @ one.astype(np.float64) for one in (predicted & truth, truth, predicted))
    asked = images > 0
    per_class = np.divide(2 * hits, images + answers, out=np.zeros_like(hits), where=images + answers > 0)
    macro = np.where(asked, per_class, 0.0).sum(axis=1) / np.maximum(asked.sum(axis=1), 1)
    given = images.sum(axis=1) + answers.sum(axis=1)
    micro = np.divide(2 * hits.sum(axis=1), given, out=np.zeros(len(given)), where=given > 0)
    return macro, micro


def measured(value: float, resampled: NDArray[np.float64], worth: float) -> Measured:
    """In percent, with 1.96 standard errors to either side; ``worth`` is what an image counts for, of a test image."""
    return _in_percent(_interval(value, resampled, worth))


def mean_of_draws(precisions: Sequence[float], first: Precision, worth: float, labels: int) -> Measured:
    """The mean over draws of ``labels`` labels; of the images knows the ``first``, and of the draws their spread."""
    mean = float(np.mean(precisions))
    spread = _interval(mean, first.resampled, worth)
    return _in_percent(widened(spread, precisions, BOUND, single_draw(mean * (1 - mean), labels)))


def gain(trained: Precision, others: Sequence[Precision], worth: float) -> Gain:
    """Over the mean of the others, in percentage points."""
    other = float(np.mean([one.value for one in others]))
    differences = trained.resampled - np.mean([one.resampled for one in others], axis=0)
    return Gain(
        trained=round(100 * trained.value, 3),
        other=round(100 * other, 3),
        difference=round(100 * (trained.value - other), 4),
        standard_error=round(100 * standard_error(differences, worth), 4),
        images=round(worth * trained.images, 2) if math.isfinite(trained.images) else None,
    )


def difference(found: Precision, exact: Precision, images: int, confidence: float) -> Interval:
    """A gain on other answers to the same ``images``, -1..1, with one-sided bounds.

    Resamples of answers that hardly differ hardly vary; what so few images cannot rule out is taken from the paired
    comparison of this many single answers that all agree.
    """
    value, resampled = found.value - exact.value, found.resampled - exact.resampled
    margin = NormalDist().inv_cdf(confidence) * standard_error(resampled, 1.0)
    return Interval(value, min(value - margin, lower_bound(images, 0, 0, confidence)), value + margin)


def standard_error(resampled: NDArray[np.float64], worth: float) -> float:
    return float(resampled.std(ddof=1)) / math.sqrt(worth)


def _interval(value: float, resampled: NDArray[np.float64], worth: float) -> Interval:
    margin = NormalDist().inv_cdf(BOUND) * standard_error(resampled, worth)
    return Interval(value, value - margin, value + margin)


def _in_percent(one: Interval) -> Measured:
    low, high = max(0.0, one.low), min(1.0, one.high)
    return Measured(*(round(100 * number, 3) for number in (one.difference, low, high)))
