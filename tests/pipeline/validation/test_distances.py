import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.stats import wasserstein_distance
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import PredefinedSplit, cross_val_score

from pipeline.validation.distances import FOLDS, auroc, domain_auroc, jensen_shannon, wasserstein

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


def test_the_classifier_sees_what_no_feature_shows_alone() -> None:
    first = RANDOM.normal(size=2000)
    newer = np.arange(2000) >= 1000
    features = np.column_stack([first, first + RANDOM.normal(size=2000) / 10 + np.where(newer, 0.15, 0.0)])
    assert float(wasserstein(features[:, 1], newer)) < 0.25
    assert domain_auroc(features, newer) > 0.8
