"""Probabilities that mean what they say: temperature scaling, and how far off they are (Guo et al. 2017).

One number T divides all logits. It does not change which class comes first, only how sure the classifier says it is.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from simclr_core.data.subsets import folds
from simclr_core.evaluation.fewest import CALIBRATION_LABELS
from simclr_core.evaluation.linear_probe import FOLDS
from simclr_core.evaluation.logistic_regression import regularization_path, standardization

BINS = 15  # as in the paper
COLDEST, HOTTEST = 0.05, 20.0  # where every held-out answer is right, the best temperature would be zero
BISECTIONS = 60


def fit_temperature(logits: NDArray[np.floating], labels: NDArray[np.integer]) -> float:
    """The temperature with the lowest cross-entropy on held-out ``logits`` [n, classes] and ``labels`` [n].

    1 for few labels, and where that temperature does not bring the confidence of the held-out answers closer to the
    share that is right: then the classifier was calibrated before. The cross-entropy is convex in 1 / T, so its
    derivative, the mean over the samples of the expected logit less that of the right class, is bisected.
    """
    if len(labels) < CALIBRATION_LABELS:
        return 1.0
    exact = logits.astype(np.float64)
    right = exact[np.arange(len(labels)), labels]
    low, high = 1 / HOTTEST, 1 / COLDEST
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        slope = float(((softmax(exact * middle) * exact).sum(axis=1) - right).mean())
        low, high = (middle, high) if slope < 0 else (low, middle)
    found = 2 / (low + high)
    before, after = (expected_calibration_error(softmax(exact / one), labels) for one in (1.0, found))
    return found if after < before else 1.0


def held_out_logits(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    keys: NDArray[np.uint8],
    classes: int,
    l2: float,
) -> tuple[NDArray[np.floating], NDArray[np.int64]]:
    """Logits [n, classes] that linear probes give for labels [n] which they were not fitted on.

    ``features`` [m, d], ``labels`` [m] and ``keys`` [m, 32] are of labeled images; each probe is fitted with ``l2`` on
    all folds but one, and asked about that one.
    """
    if len(labels) < CALIBRATION_LABELS:
        return np.empty((0, classes)), labels[:0]
    inputs = torch.from_numpy(features)
    mean, std = standardization(inputs)
    standardized, targets = ((inputs - mean) / std).float(), torch.from_numpy(labels)
    fold = folds(labels, keys, FOLDS, seed=0)
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


def expected_calibration_error(probabilities: NDArray[np.floating], labels: NDArray[np.integer]) -> float:
    """Mean distance, in percentage points, between the confidence of the answers and the share that is right.

    ``probabilities`` [n, classes]; the answers are put into 15 bins of confidence of equal width.
    """
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    distances = [abs(float(confidence[bins == one].sum()) - float(right[bins == one].sum())) for one in range(BINS)]
    return 100 * sum(distances) / len(labels)
