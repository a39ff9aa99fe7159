"""How different two groups of images are: distances between distributions, and how well a classifier tells them apart.

Each function takes the pooled values of both groups and says by a mask which of them belong to the newer one. The mask
may have leading axes, so that hundreds of ways to split the same pool cost one sort.
"""

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

FOLDS = 5
NEWTON_STEPS = 6
RIDGE = 1.0  # on standardized features: keeps the weights finite where the groups separate
SHORTLIST = 64  # neighbors among which the few that are older are nearly always found


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
        features: [n, d], standardized; neighbors in it must not belong together.
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


def squared_distances(vectors: Array) -> Array:
    """Squared Euclidean distances between all pairs of vectors [n, d]: [n, n], its diagonal zero."""
    lengths = np.square(vectors).sum(axis=1)
    squared: Array = np.maximum(lengths[:, np.newaxis] + lengths - 2 * vectors @ vectors.T, 0)
    np.fill_diagonal(squared, 0)
    return squared


def mmd_squared(kernel: Array, newer: Array) -> Array:
    """Squared maximum mean discrepancy, the unbiased estimate of Gretton et al. 2012 (lemma 6): also below zero.

    Args:
        kernel: similarities of all pairs [n, n], symmetric.
        newer: bool [..., n]; both groups have two members or more.

    Returns:
        [...]: hundreds of ways to split the same pool cost one matrix product.
    """
    mask = newer.astype(kernel.dtype)
    new = mask.sum(axis=-1)
    old = mask.shape[-1] - new
    near = mask @ kernel  # how much each row is like the new ones together
    within_new = (near * mask).sum(axis=-1) - mask @ kernel.diagonal()
    across = near.sum(axis=-1) - (near * mask).sum(axis=-1)
    within_old = kernel.sum() - kernel.trace() - within_new - 2 * across
    estimate: Array = within_new / (new * (new - 1)) + within_old / (old * (old - 1)) - 2 * across / (new * old)
    return estimate


def older_neighbor(squared: Array, newer: Array, rank: int) -> Array:
    """How far the ``rank``-th nearest of the older others is from each row.

    Args:
        squared: squared distances of all pairs [n, n].
        newer: bool [splits, n]; more than ``rank`` rows are older in each.

    Returns:
        [splits, n].
    """
    squared = squared + np.diag(np.full(len(squared), np.inf, squared.dtype))  # nothing is its own neighbor
    # Looked for among a few nearest of either group, found once for all splits, and among all where those are too few.
    few = min(SHORTLIST, len(squared))
    nearest = np.argpartition(squared, few - 1, axis=1)[:, :few]
    shortlist = np.take_along_axis(squared, nearest, axis=1)
    order = np.argsort(shortlist, axis=1)
    nearest, shortlist = np.take_along_axis(nearest, order, axis=1), np.take_along_axis(shortlist, order, axis=1)
    found = np.empty(newer.shape, squared.dtype)
    for mask, distances in zip(newer, found, strict=True):
        seen = np.cumsum(~mask[nearest], axis=1, dtype=np.int16)
        distances[:] = np.take_along_axis(shortlist, np.argmax(seen >= rank, axis=1)[:, np.newaxis], axis=1)[:, 0]
        short = np.flatnonzero(seen[:, -1] < rank)
        distances[short] = np.partition(squared[np.ix_(short, ~mask)], rank - 1, axis=1)[:, rank - 1]
    return np.sqrt(found)


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
