"""Few-shot classification on frozen features by prototypes (Snell et al. 2017), in the protocol of Ericsson et al.
(2021, "How Well Do Self-Supervised Models Transfer?", section 3): 600 episodes of five classes, an interval of 95 %.

In an episode a prototype is the mean of the features of its examples, each of length 1, and a query is of the class
whose prototype has the most similar direction, as ``class_mean`` of ``deploy.search.few_shot``.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WAYS, SHOTS, QUERIES, EPISODES = 5, 5, 15, 600
Z = 1.959963984540054  # of a two-sided interval of 95 %


@dataclass(frozen=True)
class Episode:
    """Positions of the examples [ways, shots] and of the queries [ways, queries]; row i is of class i."""

    examples: NDArray[np.int64]
    queries: NDArray[np.int64]


def draw_episodes(
    labels: NDArray[np.int64], seed: int, ways: int = WAYS, shots: int = SHOTS, episodes: int = EPISODES
) -> Iterator[Episode]:
    """Episodes from the images with ``labels`` [n]; none if fewer than ``ways`` classes have images enough. No image is
    twice in an episode."""
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    members = [one for one in members if len(one) >= shots + QUERIES]
    generator = np.random.default_rng(seed)
    for _ in range(episodes if len(members) >= ways else 0):
        classes = generator.choice(len(members), ways, replace=False)
        taken = np.stack([generator.choice(members[one], shots + QUERIES, replace=False) for one in classes])
        yield Episode(taken[:, :shots], taken[:, shots:])


def episode_accuracy(features: NDArray[np.float32], episode: Episode) -> float:
    """Percent of the queries whose nearest prototype is that of their class; ``features`` [n, d] of any length.

    Examples:
        >>> features = np.array([[1, 0], [2, 0.2], [0, 1], [0.1, 1]], np.float32)
        >>> episode_accuracy(features, Episode(np.array([[0], [2]]), np.array([[1], [3]])))
        100.0
    """
    prototypes = _directions(_directions(features[episode.examples].astype(np.float64)).mean(axis=1))
    found = (features[episode.queries].astype(np.float64) @ prototypes.T).argmax(axis=2)
    return 100 * float((found == np.arange(len(found))[:, None]).mean())


def interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """The mean of independent ``values`` [n], and half the width of its interval of 95 %."""
    return float(values.mean()), Z * float(values.std(ddof=1)) / math.sqrt(len(values))


def _directions(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    directions: NDArray[np.float64] = vectors / np.maximum(lengths, 1e-9)
    return directions
