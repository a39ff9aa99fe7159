"""The scores of one classifier where an image may have several labels, as a whole and class by class."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from simclr_core.evaluation.multi_label.images import Targets
from simclr_core.evaluation.multi_label.precision import Precision, draw_counts, f1_scores, measured
from simclr_core.evaluation.scores.classification import of_class
from simclr_core.evaluation_reports import SetScores

SEED = 0  # of the resamples


def score(
    found: NDArray[np.float64],
    even: float,
    precision: Precision,
    truth: Targets,
    known: Targets,
    classes: Sequence[str],
    worth: float = 1.0,
) -> SetScores:
    """What the answers [n, classes] of one classifier are worth: the higher, the likelier the class.

    Args:
        even: the answer that is as likely as not; from there on an image is said to have the class.
        precision: their mean average precision.
        truth: the classes of the images, [n, classes].
        known: those that the classifier was fitted on, to be counted.
        worth: what an image counts for, of a test image: see ``out_of_fold_worth``.
    """
    predicted = found >= even
    resampled = [f1_scores(predicted, truth, counts) for counts in draw_counts(len(truth), SEED)]
    exact = f1_scores(predicted, truth, np.ones((1, len(truth))))
    macro, micro = (
        measured(float(value[0]), np.concatenate(draws), worth)
        for value, draws in zip(exact, zip(*resampled, strict=True), strict=True)
    )
    labels = known.sum(axis=0)
    per_class = {
        name: of_class(found[:, number], truth[:, number], predicted[:, number], int(labels[number]))
        for number, name in enumerate(classes)
    }
    return SetScores(measured(precision.value, precision.resampled, worth), macro, micro, per_class)
