"""Drift of embeddings: silent about more of the same, and each statistic sees what it is there for."""

import time

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binom
from sklearn.decomposition import PCA

from pipeline.validation.drift.calibration import CLASSIFIER, FALSE_ALARMS
from pipeline.validation.drift.embeddings import MMD, NOVEL, Comparison, compare, most_novel, principal_components
from tests.repetitions import repeated, repetitions

DIM = 16
CENTERS = np.random.default_rng(9).normal(size=(4, DIM))
LIMITS = {"auroc": 0.6, "novel_share": 0.05}


def embeddings(count: int, seed: int, classes: int = 3, spread: float = 0.4) -> NDArray[np.float32]:
    """Of images of the first ``classes`` classes, in random order: clouds on the sphere."""
    random = np.random.default_rng(seed)
    vectors = CENTERS[random.integers(0, classes, count)] + spread * random.normal(size=(count, DIM))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def new_class(count: int, seed: int, share: float) -> NDArray[np.float32]:
    """A share of them is of the fourth class."""
    vectors = embeddings(count, seed)
    unseen = CENTERS[3] + 0.4 * np.random.default_rng(seed + 1).normal(size=(int(share * count), DIM))
    vectors[:: int(1 / share)][: len(unseen)] = unseen / np.linalg.norm(unseen, axis=1, keepdims=True)
    return vectors


def effects(found: Comparison) -> dict[str, float]:
    return {one.name: one.effect for one in found.statistics}


@pytest.mark.seconds
@pytest.mark.parametrize(("earlier", "new"), [(1200, 400), (110, 50), (40, 10)])
def test_more_of_the_same_is_not_drift(earlier: int, new: int) -> None:
    found = compare(embeddings(earlier, 1), embeddings(new, 2), **LIMITS)
    assert found.drifted == ()
    assert [one.name for one in found.statistics] == [CLASSIFIER, MMD, NOVEL]
    assert found.mmd_p_value > 0.01
    assert effects(found)[CLASSIFIER] == pytest.approx(0.5, abs=0.2)


@repeated
@pytest.mark.slow
def test_false_alarms_are_as_rare_as_stated() -> None:
    rounds = repetitions(20, all=200)
    alarms = sum(
        compare(embeddings(110, 1000 + seed), embeddings(50, 5000 + seed), **LIMITS).drifted != ()
        for seed in range(rounds)
    )
    assert alarms <= binom.ppf(0.999, rounds, FALSE_ALARMS)


@pytest.mark.seconds
@pytest.mark.parametrize(("share", "seen"), [(1.0, {CLASSIFIER, MMD, NOVEL}), (0.1, {NOVEL})])
def test_a_new_class_is_detected(share: float, seen: set[str]) -> None:
    found = compare(embeddings(1200, 1), new_class(400, 2, share), **LIMITS)
    assert seen <= set(found.drifted)
    assert effects(found)[NOVEL] == pytest.approx(share, abs=0.05 + 0.2 * share)
    assert 1 / 201 <= found.mmd_p_value + 1e-4 < 0.02


@pytest.mark.seconds
def test_a_shift_without_new_neighborhoods_is_detected_by_the_other_statistics() -> None:
    """Other shares of the classes that were always there: nothing is novel, and the mixture is another."""
    found = compare(embeddings(1200, 1), embeddings(400, 2, classes=1), **LIMITS)
    assert {CLASSIFIER, MMD} <= set(found.drifted)
    assert NOVEL not in found.drifted


@pytest.mark.seconds
def test_the_largest_difference_is_named_first() -> None:
    found = compare(embeddings(600, 1), new_class(200, 2, 1.0), **LIMITS)
    strength = {one.name: one.effect / one.threshold for one in found.statistics}
    assert list(found.drifted) == sorted(found.drifted, key=lambda name: -strength[name])


@pytest.mark.seconds
def test_thresholds_of_the_user_decide_what_counts_as_drift() -> None:
    reference, batch = embeddings(1200, 1), new_class(400, 2, 0.06)
    assert compare(reference, batch, **LIMITS).drifted
    assert not compare(reference, batch, auroc=0.99, novel_share=0.5).drifted


@pytest.mark.seconds
@pytest.mark.parametrize("constant", [0.0, 1.0])
def test_identical_embeddings_are_compared_without_division_by_zero(constant: float) -> None:
    """Of an encoder that has collapsed: nothing divides by what is not there."""
    same = np.full((200, DIM), constant, np.float32)
    found = compare(same, same[:60], **LIMITS)
    assert found.drifted == ()
    assert effects(found) == {CLASSIFIER: 0.5, MMD: 0.0, NOVEL: 0.0}


def test_wide_embeddings_are_projected_to_the_directions_that_vary() -> None:
    vectors = np.random.default_rng(0).normal(size=(200, 90)) * np.linspace(5, 0.1, 90)
    found, oracle = principal_components(vectors, 12), PCA(12).fit_transform(vectors)
    assert found.shape == (200, 12)
    assert np.abs(found[:, ::-1]) == pytest.approx(np.abs(oracle), abs=1e-8)
    assert principal_components(vectors, 90) == pytest.approx(vectors - vectors.mean(axis=0))


def test_the_most_novel_images_come_first() -> None:
    reference, batch = embeddings(300, 1), embeddings(50, 2)
    batch[17] = -CENTERS[:3].mean(axis=0) / np.linalg.norm(CENTERS[:3].mean(axis=0))
    distances = np.linalg.norm(batch[:, np.newaxis] - reference, axis=2)
    fifth = np.sort(distances, axis=1)[:, 4]
    found = most_novel(reference, batch, 12)
    assert [row for row, _, _ in found] == list(np.argsort(-fifth)[:12])
    assert found[0][0] == 17
    for row, nearest, distance in found:
        assert nearest == distances[row].argmin()
        assert distance == pytest.approx(distances[row].min(), abs=1e-5)
    assert len(most_novel(reference[:3], batch[:2], 12)) == 2


@pytest.mark.seconds
def test_the_same_embeddings_give_the_same_numbers() -> None:
    reference, batch = embeddings(400, 1), embeddings(150, 2)
    assert compare(reference, batch, **LIMITS) == compare(reference.copy(), batch.copy(), **LIMITS)


@pytest.mark.slow
def test_a_whole_sample_is_compared_in_seconds() -> None:
    random = np.random.default_rng(0)
    reference, batch = (random.normal(size=(count, 256)).astype(np.float32) for count in (2000, 1000))
    started = time.process_time()
    compare(reference, batch, **LIMITS)
    assert time.process_time() - started < 20  # 3 s on an idle core
