"""Temperature scaling and the calibration error, against slow oracles and samples whose answer is known."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import logit
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss

from simclr_core.evaluation.calibration import (
    COLDEST,
    expected_calibration_error,
    fit_temperature,
    held_out_logits,
    log_odds,
    sigmoid,
    softmax,
)
from simclr_core.evaluation.fewest import CALIBRATION_LABELS
from simclr_core.evaluation.scores.classification import average_precision


def drawn(temperature: float, count: int = 4000, classes: int = 5) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Logits that are ``temperature`` times too large, and labels drawn by the right ones."""
    random = np.random.default_rng(3)
    logits = random.normal(size=(count, classes)) * 2
    labels = np.array([random.choice(classes, p=row) for row in softmax(logits)])
    return logits * temperature, labels


def cross_entropy(logits: NDArray[np.float64], labels: NDArray[np.int64], temperature: float) -> float:
    return float(-np.log(softmax(logits / temperature)[np.arange(len(labels)), labels]).mean())


@pytest.mark.parametrize("temperature", [0.4, 1.6, 5.0])
def test_the_temperature_of_the_sample_is_found(temperature: float) -> None:
    logits, labels = drawn(temperature)
    found = fit_temperature(logits, labels)
    assert abs(found / temperature - 1) < 0.05
    losses = {one: cross_entropy(logits, labels, one) for one in np.geomspace(found / 2, found * 2, 41)}
    assert abs(min(losses, key=lambda one: losses[one]) / found - 1) < 1e-6  # the middle of the grid
    before, after = (expected_calibration_error(softmax(logits / one), labels) for one in (1.0, found))
    assert after < before


def test_calibrated_logits_keep_a_temperature_of_one() -> None:
    logits, labels = drawn(1.0)
    assert abs(fit_temperature(logits, labels) - 1) < 0.05


def test_few_labels_give_no_information() -> None:
    logits, labels = drawn(3.0, count=CALIBRATION_LABELS - 1)
    assert fit_temperature(logits, labels) == 1.0
    empty = held_out_logits(np.zeros((5, 4), np.float32), np.zeros(5, np.int64), np.zeros((5, 32), np.uint8), 3, 0.1)
    assert [len(part) for part in empty] == [0, 0]
    assert fit_temperature(*empty) == 1.0


def test_correct_answers_do_not_become_infinitely_confident() -> None:
    logits = np.eye(4)[np.arange(100) % 4] * 0.5
    assert fit_temperature(logits, np.arange(100) % 4) == pytest.approx(COLDEST)


def test_the_calibration_error_is_the_gap_by_bin() -> None:
    # 0.9 sure and half right, 0.6 sure and all right: the gaps 0.4 and 0.4, four images each
    sure = np.array([[0.9, 0.1]] * 4 + [[0.6, 0.4]] * 4)
    assert expected_calibration_error(sure, np.array([0, 0, 1, 1, 0, 0, 0, 0])) == pytest.approx(40.0)
    assert expected_calibration_error(np.array([[1.0, 0.0]] * 3), np.zeros(3, int)) == 0


def test_held_out_labels_are_not_fitted() -> None:
    """Labels without any relation to the features: a probe answers those it was fitted on, and no others."""
    random = np.random.default_rng(0)
    features, labels = random.normal(size=(60, 80)).astype(np.float32), np.arange(60) % 3
    keys = random.integers(0, 256, (60, 32)).astype(np.uint8)
    logits, known = held_out_logits(features, labels, keys, 3, 1e-4)
    assert logits.shape == (60, 3)
    assert sorted(known) == sorted(labels)
    assert (logits.argmax(axis=1) == known).mean() < 0.6


def drawn_sets(temperature: float, count: int = 4000) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The same where an image may have several of five classes, one of them rare."""
    random = np.random.default_rng(4)
    logits = random.normal(size=(count, 5)) * 2 - np.array([0, 0, 0, 0, 3])
    return logits * temperature, random.random(logits.shape) < sigmoid(logits)


@pytest.mark.seconds
@pytest.mark.parametrize("temperature", [0.4, 1.6, 5.0])
def test_one_temperature_is_found_for_the_questions_of_all_classes(temperature: float) -> None:
    logits, sets = drawn_sets(temperature)
    found = fit_temperature(logits, sets)
    assert abs(found / temperature - 1) < 0.05

    def loss(one: float) -> float:
        return float(np.mean([log_loss(sets[:, k], sigmoid(logits[:, k] / one)) for k in range(5)]))

    losses = {one: loss(one) for one in np.geomspace(found / 2, found * 2, 41)}
    assert abs(min(losses, key=lambda one: losses[one]) / found - 1) < 1e-6  # the middle of the grid
    before, after = (expected_calibration_error(sigmoid(logits / one), sets) for one in (1.0, found))
    assert after < before


def test_few_sets_and_calibrated_ones_keep_a_temperature_of_one() -> None:
    logits, sets = drawn_sets(3.0, count=CALIBRATION_LABELS - 1)
    assert fit_temperature(logits, sets) == 1.0
    logits, sets = drawn_sets(1.0)
    assert abs(fit_temperature(logits, sets) - 1) < 0.05


def test_the_calibration_error_of_sets_is_the_mean_gap_of_a_class() -> None:
    """Bin by bin, as scikit-learn draws a reliability diagram, and by hand."""
    likely = np.array([[0.9, 0.1]] * 4 + [[0.6, 0.1]] * 4)
    sets = np.array([[True, False]] * 2 + [[False, False]] * 2 + [[True, True]] * 4)
    # the first class: 0.9 against 0.5 and 0.6 against 1, four images each; the second: 0.1 against 0.5 of all eight
    assert expected_calibration_error(likely, sets) == pytest.approx((40 + 40) / 2)
    random = np.random.default_rng(5)
    likely = random.random((500, 3))
    sets = random.random((500, 3)) < likely**2
    gaps = []
    for one in range(3):
        bins = np.minimum(np.floor(likely[:, one] * 15), 14)
        shares, means = calibration_curve(sets[:, one], likely[:, one], n_bins=15)
        weights = np.array([np.mean(bins == number) for number in np.unique(bins)])
        gaps.append(100 * float((weights * np.abs(shares - means)).sum()))
    assert expected_calibration_error(likely, sets) == pytest.approx(np.mean(gaps))


def test_held_out_sets_are_not_fitted() -> None:
    random = np.random.default_rng(0)
    features, sets = random.normal(size=(60, 80)).astype(np.float32), random.random((60, 3)) < 0.4
    keys = random.integers(0, 256, (60, 32)).astype(np.uint8)
    logits, known = held_out_logits(features, sets, keys, 3, 1e-4)
    assert (logits.shape, known.shape) == ((60, 3), (60, 3))
    assert np.array_equal(known.sum(axis=0), sets.sum(axis=0))
    assert ((logits > 0) == known).mean() < 0.75


def test_log_odds_are_the_logit_of_the_softmax() -> None:
    logits, _ = drawn(1.0, count=200)
    np.testing.assert_allclose(log_odds(logits), logit(softmax(logits)), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(sigmoid(log_odds(logits)), softmax(logits), rtol=1e-12)
    two = np.array([[3.0, 1.0], [0.0, 0.0]])
    np.testing.assert_allclose(log_odds(two), [[2.0, -2.0], [0.0, 0.0]], atol=1e-15)


def test_log_odds_tell_images_apart_of_which_a_classifier_is_sure() -> None:
    """Their probabilities are rounded to 1, and equal ones are ranked together."""
    logits = np.array([[70.0, 0.0, -5.0], [60.0, 0.0, 9.0], [50.0, 0.0, -5.0], [-9.0, 900.0, -9.0]], np.float32)
    first, positive = log_odds(logits)[:, 0], np.array([True, True, False, False])
    assert (softmax(logits)[:3, 0] == 1.0).all()
    assert average_precision(softmax(logits)[:, 0], positive) == pytest.approx(2 / 3)
    assert average_precision(first, positive) == 1.0
    np.testing.assert_allclose(first[[0, 1, 2]], [70.0, 51.0, 50.0], rtol=1e-3)
    assert np.isfinite(log_odds(logits)).all()
