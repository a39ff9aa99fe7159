"""t-SNE (van der Maaten and Hinton 2008) of some hundred vectors, in numpy: exact, with a fixed start, the same twice.

The steps are those of scikit-learn: a start by principal components, early exaggeration, momentum and gains.
"""

import numpy as np
from numpy.typing import NDArray

PERPLEXITY = 30.0  # about the number of neighbors that matter to each
STEPS, EXAGGERATED = 350, 100
EXAGGERATION = 12.0
SEARCH = 40  # halvings of the interval of a bandwidth
SPREAD = 1e-6  # below, all vectors are one direction up to rounding


def tsne(vectors: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """Places [n, 2] of vectors [n, dim] of length 1; None where all have one direction."""
    points = vectors.astype(np.float64)
    if points.std(axis=0).max() < SPREAD:
        return None
    wanted = _affinities(np.maximum(2 - 2 * points @ points.T, 0))
    centered = points - points.mean(axis=0)
    left, values, right = np.linalg.svd(centered, full_matrices=False)
    signs = np.sign(right[np.arange(2), np.abs(right[:2]).argmax(axis=1)])  # those of a decomposition are arbitrary
    places = left[:, :2] * values[:2] * signs
    places *= 1e-4 / max(places[:, 0].std(), np.finfo(float).tiny)
    rate = max(len(points) / EXAGGERATION / 4, 50.0)
    speed, gains = np.zeros_like(places), np.ones_like(places)
    for step in range(STEPS):
        early = step < EXAGGERATED
        gradient = _gradient(wanted * (EXAGGERATION if early else 1.0), places)
        same = (gradient > 0) == (speed > 0)
        gains = np.maximum(np.where(same, gains * 0.8, gains + 0.2), 0.01)
        speed = (0.5 if early else 0.8) * speed - rate * gains * gradient
        places = places + speed
    found: NDArray[np.float32] = (places - places.mean(axis=0)).astype(np.float32)
    return found


def _gradient(wanted: NDArray[np.float64], places: NDArray[np.float64]) -> NDArray[np.float64]:
    squares = (places**2).sum(axis=1)
    near = 1 / (1 + np.maximum(squares[:, None] + squares - 2 * places @ places.T, 0))
    np.fill_diagonal(near, 0)
    forces = (wanted - near / near.sum()) * near
    found: NDArray[np.float64] = 4 * (forces.sum(axis=1)[:, None] * places - forces @ places)
    return found


def _affinities(squares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Symmetric probabilities [n, n] whose rows have the perplexity before they are made symmetric."""
    count = len(squares)
    entropy = np.log(min(PERPLEXITY, (count - 1) / 3))
    low, high = np.zeros((count, 1)), np.full((count, 1), np.inf)
    precision = np.full((count, 1), 1.0)
    away = squares - np.where(np.eye(count, dtype=bool), np.inf, squares).min(axis=1, keepdims=True)
    for _ in range(SEARCH):
        weights = np.exp(-away * precision)
        np.fill_diagonal(weights, 0)
        total = weights.sum(axis=1, keepdims=True)
        flat = np.log(total) + precision * (weights * away).sum(axis=1, keepdims=True) / total > entropy
        low, high = np.where(flat, precision, low), np.where(flat, high, precision)
        precision = np.where(np.isinf(high), 2 * precision, (low + high) / 2)
    shares = weights / total
    found: NDArray[np.float64] = np.maximum((shares + shares.T) / (2 * count), 1e-12)
    return found
