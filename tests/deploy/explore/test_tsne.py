"""t-SNE in numpy: islands come apart, as in scikit-learn, and twice the same."""

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.manifold import trustworthiness

from deploy.explore.tsne import _affinities, tsne


def islands(count: int, dim: int = 12) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    random = np.random.default_rng(1)
    labels = np.arange(count) % 4
    vectors = np.eye(dim)[labels] + random.normal(0, 0.15, (count, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), labels


@pytest.mark.seconds
def test_islands_come_apart_and_neighbors_stay_together() -> None:
    vectors, labels = islands(240)
    places = tsne(vectors)
    assert places is not None
    apart = np.linalg.norm(places[:, None] - places, axis=2)
    np.fill_diagonal(apart, np.inf)
    assert (labels[apart.argmin(axis=1)] == labels).mean() > 0.99
    assert trustworthiness(vectors, places, n_neighbors=10) > 0.85
    np.testing.assert_array_equal(tsne(vectors), places)


@pytest.mark.parametrize("count", [10, 150])
def test_every_row_has_the_perplexity(count: int) -> None:
    """The conditional probabilities of a row, before they are made symmetric, by their definition."""
    vectors, _ = islands(count)
    squares = np.maximum(2 - 2 * vectors.astype(float) @ vectors.T.astype(float), 0)
    found = _affinities(squares)
    assert found.sum() == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(found, found.T)
    from sklearn.manifold._utils import _binary_search_perplexity

    rows = np.asarray(_binary_search_perplexity(squares.astype(np.float32), min(30.0, (count - 1) / 3), 0))
    np.testing.assert_allclose(found, (rows + rows.T) / (2 * count), atol=2e-5)


def test_equal_vectors_have_no_map() -> None:
    assert tsne(np.full((20, 4), 0.5, np.float32)) is None
