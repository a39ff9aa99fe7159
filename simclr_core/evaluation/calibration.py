"""Probabilities that mean what they say: temperature scaling, and how far off they are (Guo et al. 2017).

One number T divides all logits. It does not change which class comes first, only how sure the classifier says it is.
Where an image may have several labels, each class is a separate question with the sigmoid in place of the softmax, and
T is the same for all: few images of a class do not tell a separate number.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from simclr_core.data.label_sets import as_targets, strata
from simclr_core.data.subsets import folds
from simclr_core.evaluation.fewest import CALIBRATION_LABELS
from simclr_core.evaluation.linear_probe import FOLDS
from simclr_core.evaluation.logistic_regression import regularization_path
from simclr_core.evaluation.regression.standardized import standardization

BINS = 15  # as in the paper
COLDEST, HOTTEST = 0.05, 20.0  # where every held-out answer is right, the best temperature would be zero
BISECTIONS = 60

Labels = NDArray[np.integer] | NDArray[np.bool_]
"""The class of each image [n]; where an image may have several labels, bool [n, classes]."""


def fit_temperature(logits: NDArray[np.floating], labels: Labels) -> float:
    """The temperature with the lowest cross-entropy on held-out ``logits`` [n, classes] and ``labels``.

    1 for few labels, and where that temperature does not bring the probabilities of the held-out answers closer to the
    shares that are right: then the classifier was calibrated before. The cross-entropy, of several labels summed over
    the classes, is convex in 1 / T, so its derivative is bisected: the mean over the samples of the logits, each
    weighted by its probability less whether the sample has the class.
    """
    if len(labels) < CALIBRATION_LABELS:
        return 1.0
    exact, targets = logits.astype(np.float64), as_targets(labels, logits.shape[1])
    activation = sigmoid if labels.ndim == 2 else softmax
    low, high = 1 / HOTTEST, 1 / COLDEST
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        slope = float(((activation(exact * middle) - targets) * exact).sum(axis=1).mean())
        low, high = (middle, high) if slope < 0 else (low, middle)
    found = 2 / (low + high)
    before, after = (expected_calibration_error(activation(exact / one), labels) for one in (1.0, found))
    return found if after < before else 1.0


def held_out_logits(
    features: NDArray[np.float32],
    labels: Labels,
    keys: NDArray[np.uint8],
    classes: int,
    l2: float,
) -> tuple[NDArray[np.floating], Labels]:
    """Logits [n, classes] that linear probes give for labeled images which they were not fitted on, and the labels.

    ``features`` [m, d], ``labels`` of m and ``keys`` [m, 32] are of labeled images; each probe is fitted with ``l2`` on
    all folds but one, and asked about that one.
    """
    if len(labels) < CALIBRATION_LABELS:
        return np.empty((0, classes)), labels[:0]
    inputs = torch.from_numpy(features)
    mean, std = standardization(inputs)
    standardized, targets = ((inputs - mean) / std).float(), torch.from_numpy(labels)
    fold = folds(strata(labels), keys, FOLDS, seed=0)
    logits, known = [], []
    for number in range(FOLDS):
        held = torch.from_numpy(fold == number)
        head = regularization_path(standardized[~held], targets[~held], classes, [l2])[0]
        logits.append(head.logits(standardized[held]).double().numpy())
        known.append(labels[fold == number])
    return np.concatenate(logits), np.concatenate(known)


def softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Of each row, in float64."""
    exponentials = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    probabilities: NDArray[np.float64] = exponentials / exponentials.sum(axis=1, keepdims=True)
    return probabilities


def sigmoid(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Of each number, in float64, without overflow."""
    found: NDArray[np.float64] = np.exp(-np.logaddexp(0.0, -logits.astype(np.float64)))
    return found


def log_odds(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Of each class against all others, [n, classes], two classes at least: the logit of what ``softmax`` gives.

    It orders the images as the probability does, and where that is rounded to 0 or 1 too: equal probabilities of a sure
    classifier would be ranked together.
    """
    exact, rows = logits.astype(np.float64), np.arange(len(logits))
    first = exact.argmax(axis=1)
    whole, others = np.logaddexp.reduce(exact, axis=1), exact.copy()
    others[rows, first] = -np.inf
    rest = np.logaddexp.reduce(others, axis=1)
    found: NDArray[np.float64] = others - whole[:, None]
    found -= np.log1p(-np.exp(found))  # of the others, each has half of the probability at most
    found[rows, first] = exact[rows, first] - rest
    return found


def expected_calibration_error(probabilities: NDArray[np.floating], labels: Labels) -> float:
    """Mean distance, in percentage points, between the confidence of the answers and the share that is right.

    ``probabilities`` [n, classes]; the answers are put into 15 bins of confidence of equal width. Where an image may
    have several labels, it is the mean over the classes of the distance between the probability of a class and the
    share of the images that have it (Kull et al. 2019, "Beyond temperature scaling", section 2, classwise).
    """
    if labels.ndim == 2:
        of_class = zip(probabilities.T, labels.T, strict=True)
        return float(np.mean([_mean_distance(stated, true) for stated, true in of_class]))
    return _mean_distance(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels)


def _mean_distance(stated: NDArray[np.floating], true: NDArray[np.bool_]) -> float:
    bins = np.minimum((stated * BINS).astype(int), BINS - 1)
    distances = [abs(float(stated[bins == one].sum()) - float(true[bins == one].sum())) for one in range(BINS)]
    return 100 * sum(distances) / len(true)
