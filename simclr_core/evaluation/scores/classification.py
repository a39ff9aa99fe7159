"""How good a classifier is on labeled images, class by class, and how sure that is.

Accuracy alone hides a rare class that is never the answer: balanced accuracy, macro F1 and mean average precision count
each class the same.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from simclr_core.evaluation.paired_comparison import proportion, single_draw, widened
from simclr_core.evaluation_reports import ClassScores, Estimate, Scores

BOUND = 0.975  # confidence of each of the two bounds of a 95 % interval


def score(
    scores: NDArray[np.floating],
    actual: NDArray[np.integer],
    predicted: NDArray[np.integer],
    known: NDArray[np.integer],
    classes: Sequence[str],
    worth: float = 1.0,
) -> Scores:
    """What answers to labeled images are worth.

    Args:
        scores: [n, classes], the higher, the likelier the class.
        actual, predicted: [n], the classes of the images, and the answers.
        known: the labels that the classifier was fitted on, to be counted.
        worth: what an image counts for, of a test image: see ``out_of_fold_worth``.
    """
    per_class = {
        name: of_class(scores[:, number], actual == number, predicted == number, int(np.sum(known == number)))
        for number, name in enumerate(classes)
    }
    present = [one for one in per_class.values() if one.images]
    right = float(np.mean(actual == predicted))
    return Scores(
        top1=estimate([right], worth * len(actual), len(known)),
        balanced_accuracy=_mean([one.recall for one in present]),
        macro_f1=_mean([one.f1 for one in present]),
        mean_average_precision=_mean([one.average_precision for one in present]),
        per_class=per_class,
    )


def estimate(accuracies: Sequence[float], images: float, labels: int) -> Estimate:
    """The mean of ``accuracies``, 0..1, one for each draw of ``labels`` labels, all on the same ``images`` test images,
    or on what is worth that many.

    One draw does not tell how much draws differ, and its interval is wider for that: see ``single_draw``.
    """
    mean = float(np.mean(accuracies))
    alone = single_draw(mean * (1 - mean), labels)
    interval = widened(proportion(mean, images, BOUND), accuracies, BOUND, alone)
    return Estimate(*(round(100 * one, 3) for one in (mean, max(0.0, interval.low), interval.high)))


def average_precision(scores: NDArray[np.floating], positive: NDArray[np.bool_]) -> float:
    """The mean, over the positive images, of the precision at the score of each; equal scores are taken together.

    The area under the precision-recall curve by steps, without interpolation.
    """
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)  # of runs of equal scores
    found = np.cumsum(positive[order])[ends]
    gained = np.diff(found, prepend=0)
    return float(np.sum(gained * found / (ends + 1)) / found[-1])


def of_class(
    scores: NDArray[np.floating], actual: NDArray[np.bool_], predicted: NDArray[np.bool_], labels: int
) -> ClassScores:
    """What the answers [n] to one class are worth, fitted on ``labels`` images of it."""
    hits, images, answers = int(np.sum(actual & predicted)), int(actual.sum()), int(predicted.sum())
    return ClassScores(
        labels=labels,
        images=images,
        answers=answers,
        recall=_percent(hits, images),
        precision=_percent(hits, answers),
        f1=_percent(2 * hits, images + answers),
        average_precision=round(100 * average_precision(scores, actual), 3) if images else None,
        right=hits,
    )


def _percent(count: int, total: int) -> float | None:
    return round(100 * count / total, 3) if total else None


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return round(float(np.mean(known)), 3)
