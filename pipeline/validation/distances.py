"""How different two groups of images are: distances between distributions, and how well a classifier tells them apart.

Each function takes the pooled values of both groups and says by a mask which of them belong to the newer one. The mask
may have leading axes, so that hundreds of ways to split the same pool cost one sort.
"""

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

FOLDS = 5
NEWTON_STEPS = 6
RIDGE = 1.0  # on standardised features: keeps the weights finite where the groups separate


def wasserstein(values: Array, newer: Array) -> Array:
    """Wasserstein-1 distance, the area between both distribution functions.

    Args:
        values: [n].
        newer: bool [..., n]; both groups have members.

    Returns:
        [...], in the unit of the values.
    """
    order = np.argsort(values, kind="stable")
    gaps = np.diff(values[order])
    newer = newer[..., order]
    seen = np.cumsum(newer, axis=-1)
    count = seen[..., -1:]
    below, older_below = seen[..., :-1], np.arange(1, values.size) - seen[..., :-1]
    distance: Array = np.abs(below / count - older_below / (values.size - count)) @ gaps
    return distance


def jensen_shannon(categories: Array, newer: Array) -> Array:
    """Jensen-Shannon distance (the root of the divergence in bits): 0 for equal shares, 1 for nothing in common.

    Args:
        categories: [n], of any type that sorts.
        newer: bool [..., n]; both groups have members.
    """
    _, codes = np.unique(categories, return_inverse=True)
    indicator = np.eye(codes.max() + 1)[codes]
    new, old = (mask @ indicator / mask.sum(axis=-1, keepdims=True) for mask in (newer, ~newer))
    mixed = (new + old) / 2
    divergence = sum(_entropy_terms(share, mixed).sum(axis=-1) for share in (new, old)) / 2
    distance: Array = np.sqrt(np.maximum(divergence, 0.0))
    return distance


def domain_auroc(features: Array, newer: Array) -> float:
    """Cross-validated AUROC of a logistic regression that tells the newer images from the older: 0.5 when it cannot.

    Every fifth image is held out in turn; the result is the mean over the five.

    Args:
        features: [n, d], standardised; neighbours in it must not belong together.
        newer: bool [n], with members of both groups in every fold.
    """
    design = np.column_stack([features, np.ones(len(features))])
    fold = np.empty(len(newer), dtype=np.int64)
    for group in (newer, ~newer):
        fold[group] = np.arange(group.sum()) % FOLDS
    scores = []
    for held_out in (fold == index for index in range(FOLDS)):
        weights = _logistic_regression(design[~held_out], newer[~held_out])
        scores.append(auroc(design[held_out] @ weights, newer[held_out]))
    return float(np.mean(scores))


def auroc(scores: Array, positive: Array) -> float:
    """The share of pairs in which the positive one scores higher; a tie is half a pair."""
    others, ours = np.sort(scores[~positive]), scores[positive]
    below = np.searchsorted(others, ours, "left") + np.searchsorted(others, ours, "right")
    return float(below.mean() / 2 / others.size)


def _logistic_regression(design: Array, positive: Array) -> Array:
    """Weights [d] by Newton's method, both classes having the same total weight, with a ridge penalty."""
    importance = np.where(positive, 0.5 / positive.mean(), 0.5 / (1 - positive.mean()))
    weights = np.zeros(design.shape[1])
    for _ in range(NEWTON_STEPS):
        probability = 1 / (1 + np.exp(-np.clip(design @ weights, -30, 30)))
        curvature = importance * probability * (1 - probability)
        hessian = (design.T * curvature) @ design + RIDGE * np.eye(len(weights))
        gradient = design.T @ (importance * (positive - probability)) - RIDGE * weights
        weights = weights + np.linalg.solve(hessian, gradient)
    return weights


def _entropy_terms(share: Array, mixed: Array) -> Array:
    ratio = np.divide(share, mixed, out=np.ones_like(share), where=share > 0)
    return share * np.log2(ratio)
