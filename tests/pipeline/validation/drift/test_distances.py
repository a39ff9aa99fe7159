import numpy as np
import pytest
from scipy.spatial.distance import cdist, jensenshannon
from scipy.stats import wasserstein_distance
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import PredefinedSplit, cross_val_score

from pipeline.validation.drift.distances import (
    FOLDS,
    SHORTLIST,
    auroc,
    domain_auroc,
    jensen_shannon,
    mmd_squared,
    older_neighbor,
    squared_distances,
    wasserstein,
)

RANDOM = np.random.default_rng(0)


def masks(count: int, size: int) -> np.ndarray:
    """Random masks [count, size] with members of both groups, of very different shares."""
    found = RANDOM.random((count, size)) < RANDOM.uniform(0.02, 0.98, (count, 1))
    found[:, 0], found[:, 1] = True, False
    return found


@pytest.mark.parametrize("ties", [False, True])
def test_wasserstein_is_scipys(ties: bool) -> None:
    values = RANDOM.gamma(2, 30, 300)
    values = values.round(-1) if ties else values
    newer = masks(20, 300)
    oracle = [wasserstein_distance(values[mask], values[~mask]) for mask in newer]
    assert wasserstein(values, newer) == pytest.approx(oracle, rel=1e-12)
    assert float(wasserstein(values, newer[0])) == pytest.approx(oracle[0], rel=1e-12)


def test_wasserstein_of_a_shift_is_the_shift() -> None:
    values = np.concatenate([np.arange(50.0), np.arange(50.0) + 7])
    assert float(wasserstein(values, np.arange(100) >= 50)) == pytest.approx(7)
    assert float(wasserstein(np.full(10, 3.0), np.arange(10) >= 5)) == 0


def test_jensen_shannon_is_scipys() -> None:
    names = RANDOM.choice(["JPEG", "PNG", "WEBP", "GIF"], 300, p=[0.7, 0.2, 0.09, 0.01]).astype(object)
    newer = masks(20, 300)
    shares = [[[(names[part] == name).mean() for name in set(names)] for part in (mask, ~mask)] for mask in newer]
    oracle = [jensenshannon(new, old, base=2) for new, old in shares]
    assert jensen_shannon(names.astype(str), newer) == pytest.approx(oracle, abs=1e-7)


def test_jensen_shannon_goes_from_zero_to_one() -> None:
    half = np.arange(100) >= 50
    assert float(jensen_shannon(half.astype(str), half)) == pytest.approx(1)
    assert float(jensen_shannon(np.array(["a", "b"] * 50), half)) == 0
    assert float(jensen_shannon(np.full(100, "a"), half)) == 0


def test_auroc_is_scikit_learns() -> None:
    scores, positive = RANDOM.normal(size=200).round(1), masks(1, 200)[0]
    assert auroc(scores, positive) == pytest.approx(roc_auc_score(positive, scores), rel=1e-12)
    assert auroc(np.zeros(200), positive) == 0.5


@pytest.mark.parametrize(("new", "old"), [(200, 200), (60, 900)])
@pytest.mark.parametrize("shift", [0.0, 0.3, 1.0, 20.0])
def test_the_classifier_is_scikit_learns(new: int, old: int, shift: float) -> None:
    features = RANDOM.normal(size=(new + old, 6))
    newer = np.arange(new + old) < new
    features[newer, 2] += shift
    folds = np.concatenate([np.arange(new) % FOLDS, np.arange(old) % FOLDS])
    oracle = LogisticRegression(C=1.0, class_weight="balanced")
    score = cross_val_score(oracle, features, newer, scoring="roc_auc", cv=PredefinedSplit(folds)).mean()
    assert domain_auroc(features, newer) == pytest.approx(score, abs=2e-3)


def test_the_classifier_detects_a_shift_that_no_single_feature_shows() -> None:
    first = RANDOM.normal(size=2000)
    newer = np.arange(2000) >= 1000
    features = np.column_stack([first, first + RANDOM.normal(size=2000) / 10 + np.where(newer, 0.15, 0.0)])
    assert float(wasserstein(features[:, 1], newer)) < 0.25
    assert domain_auroc(features, newer) > 0.8


def test_squared_distances_are_scipys() -> None:
    vectors = RANDOM.normal(size=(60, 7))
    assert squared_distances(vectors) == pytest.approx(cdist(vectors, vectors, "sqeuclidean"), abs=1e-12)
    assert squared_distances(np.full((5, 3), 0.1)).max() < 1e-12


def test_mmd_is_the_mean_over_all_pairs() -> None:
    kernel = np.exp(-cdist(*2 * (RANDOM.normal(size=(40, 3)),), "sqeuclidean"))
    for newer in (RANDOM.permuted(np.arange(40) < count) for count in (2, 13, 38)):
        new, old = np.flatnonzero(newer), np.flatnonzero(~newer)
        within = [np.mean([kernel[i, j] for i in group for j in group if i != j]) for group in (new, old)]
        across = np.mean([kernel[i, j] for i in new for j in old])
        assert float(mmd_squared(kernel, newer)) == pytest.approx(sum(within) - 2 * across, abs=1e-12)


def test_mmd_is_unbiased() -> None:
    """Over all splits of what belongs together it is zero in the mean, and not above it."""
    kernel = np.exp(-cdist(*2 * (RANDOM.normal(size=(30, 3)),), "sqeuclidean"))
    splits = RANDOM.permuted(np.tile(np.arange(30) < 10, (4000, 1)), axis=1)
    found = mmd_squared(kernel, splits)
    assert found.shape == (4000,)
    assert found.mean() == pytest.approx(0, abs=4 * found.std() / np.sqrt(4000))


@pytest.mark.seconds
@pytest.mark.parametrize("rank", [1, 5])
def test_the_nearest_older_neighbor_equals_that_of_a_full_search(rank: int) -> None:
    """Also where a tight cluster of new ones fills the shortlist, which then has no older one in it."""
    vectors = np.concatenate([RANDOM.normal(size=(150, 4)), 9 + RANDOM.normal(size=(100, 4)) / 100])
    squared = squared_distances(vectors)
    before = squared.copy()
    newer = np.stack([np.arange(250) >= 150, RANDOM.random(250) < 0.5, np.arange(250) % 2 == 0])
    found = older_neighbor(squared, newer, rank)
    for mask, distances in zip(newer, found, strict=True):
        oracle = [
            sorted(np.linalg.norm(vectors[row] - vectors[other]) for other in np.flatnonzero(~mask) if other != row)
            for row in range(250)
        ]
        assert distances == pytest.approx([one[rank - 1] for one in oracle], abs=1e-6)
    assert (squared == before).all()
    assert SHORTLIST < 100
