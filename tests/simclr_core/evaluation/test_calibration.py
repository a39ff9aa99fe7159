"""Temperature scaling and the calibration error, against slow oracles and samples whose answer is known."""

import numpy as np
import pytest
from numpy.typing import NDArray

from simclr_core.evaluation.calibration import (
    COLDEST,
    expected_calibration_error,
    fit_temperature,
    held_out_logits,
    softmax,
)
from simclr_core.evaluation.fewest import CALIBRATION_LABELS


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
