"""kNN and the linear probe where an image may have several labels: of each class for itself, how likely it is.

kNN gives the share of the votes, 0 to 1, and the probe log-odds: probabilities of a sure probe are rounded to 1, and
images with equal ones would be ranked together.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from simclr_core.evaluation.knn import nearest
from simclr_core.evaluation.multi_label.images import Targets

KNN, PROBE = "knn", "probe"
EVEN = {KNN: 0.5, PROBE: 0.0}  # as likely as not; from there on an image is said to have the class


def vote(
    bank: NDArray[np.float32], targets: Targets, queries: NDArray[np.float32], neighbors: int, temperature: float
) -> NDArray[np.float64]:
    """The share of the votes for each class: [q, classes]. Each neighbor votes for all its classes, and against the
    others, with the weight of ``knn_votes``.

    Examples:
        >>> bank = np.array([[1, 0], [0.9, 0.1], [0, 1]], np.float32)
        >>> targets = np.array([[True, True], [True, False], [False, True]])
        >>> vote(bank, targets, np.array([[1, 0]], np.float32), neighbors=2, temperature=1e6).round(3).tolist()
        [[1.0, 0.5]]
    """
    similarities, positions = nearest(bank, queries, neighbors)
    weights = torch.exp((similarities.double() - 1) / temperature).numpy()
    votes = np.zeros((len(queries), targets.shape[1]))
    for weight, position in zip(weights.T, positions.numpy().T, strict=True):
        votes += weight[:, None] * targets[position]
    total = weights.sum(axis=1, keepdims=True)
    found: NDArray[np.float64] = np.divide(votes, total, out=np.zeros_like(votes), where=total > 0)
    return found
