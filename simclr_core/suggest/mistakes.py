"""Labels that are likely wrong, by confident learning (Northcutt, Jiang, Chuang 2021, "Confident Learning: Estimating
Uncertainty in Dataset Labels", JAIR 70, section 3).

Each class has a threshold: the mean probability that images with its label get for it. An image counts as one of the
class whose threshold its probability reaches, of several the most probable. Where that is another class than its label,
it is off the diagonal of the confident joint, and its label is suspected. Classes of which the probe is never sure have
low thresholds, so that not everything of a difficult class is suspected.

The probabilities are of classifiers that have not seen the label.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ROUNDING = 1e-9  # a mean of equal probabilities may be larger than they are


@dataclass(frozen=True)
class Mistakes:
    """Positions of the suspected labels, the most suspicious first, and the class that each image counts as."""

    positions: NDArray[np.int64]
    likely: NDArray[np.int64]


def suspect(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> Mistakes:
    """The labels off the diagonal of the confident joint, in the order of the normalized margin: the probability of the
    label less that of the likely class.

    Args:
        probabilities: [n, classes], out of fold.
        labels: [n], the class of each image.

    Examples:
        >>> sure = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.1, 0.9]])
        >>> suspect(sure, np.array([0, 0, 1, 0])).positions.tolist()
        [3]
    """
    thresholds = confidence_thresholds(probabilities, labels)
    reached = np.where(probabilities >= thresholds - ROUNDING, probabilities, -1.0)
    likely = reached.argmax(axis=1)
    rows = np.arange(len(labels))
    suspected = np.flatnonzero((reached[rows, likely] >= 0) & (likely != labels)) if len(labels) else rows
    margin = probabilities[suspected, labels[suspected]] - probabilities[suspected, likely[suspected]]
    order = suspected[np.argsort(margin, kind="stable")]
    return Mistakes(order, likely[order])


def confidence_thresholds(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Of each class the mean probability that images with its label get for it; infinite where no image has it."""
    classes = probabilities.shape[1]
    counts = np.bincount(labels, minlength=classes)
    sums = np.bincount(labels, probabilities[np.arange(len(labels)), labels], minlength=classes)
    means: NDArray[np.float64] = np.divide(sums, counts, out=np.full(classes, np.inf), where=counts > 0)
    return means
