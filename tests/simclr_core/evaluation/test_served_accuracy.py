"""Accuracy, calibration and the results of each class, against counts made by hand."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from deploy.bundle import Head
from simclr_core.evaluation.served_accuracy import (
    Features,
    LabeledImages,
    accuracies,
    classifier_results,
    right_answers,
    spread,
)
from simclr_core.reports import NoResults, ServedAccuracy
from tests.conftest import CLASSES, write_prepared
from tests.simclr_core.conftest import relabel


@pytest.fixture
def images(prepared: Path) -> LabeledImages:
    return LabeledImages.of(prepared / "data" / "prepared")


def one_hot(labels: NDArray[np.integer]) -> NDArray[np.float32]:
    return np.eye(len(CLASSES), dtype=np.float32)[labels]


HEAD = Head(np.eye(len(CLASSES), dtype=np.float32) * 9, np.zeros(len(CLASSES), np.float32), CLASSES)


def test_labeled_images_of_both_splits(images: LabeledImages) -> None:
    assert images.classes == CLASSES
    assert (len(images.train.labels), len(images.test.labels)) == (48, 40)
    assert images.train.labels.min() >= 0
    assert images.train.keys.shape == (48, 32)


def test_features_that_equal_the_class_are_always_right(images: LabeledImages) -> None:
    features = Features(one_hot(images.train.labels), one_hot(images.test.labels))
    assert accuracies(right_answers(features, images, HEAD)) == ServedAccuracy(100.0, 100.0)


def test_each_class_on_its_own(images: LabeledImages) -> None:
    said = images.test.labels.copy()
    said[np.flatnonzero(said == 1)[:4]] = 0  # four of ten crosses are called circles
    said[said == 3] = 2  # and all stripes squares
    results = classifier_results(Features(one_hot(images.train.labels), one_hot(said)), images, HEAD)
    assert results.test_images == 40
    assert asdict(results)["per_class"] == {
        "circle": {"images": 10, "recall": 100.0, "precision": round(100 * 10 / 14, 2)},
        "cross": {"images": 10, "recall": 60.0, "precision": 100.0},
        "square": {"images": 10, "recall": 100.0, "precision": 50.0},
        "stripes": {"images": 10, "recall": 0.0, "precision": None},
    }
    # always sure, right in 26 of 40
    assert results.calibration_error == pytest.approx(100 * (1 - 26 / 40), abs=0.1)


def test_the_temperature_shows_in_the_calibration_error(images: LabeledImages) -> None:
    random = np.random.default_rng(0)
    said = np.where(random.random(40) < 0.6, images.test.labels, (images.test.labels + 1) % 4)
    features = Features(one_hot(images.train.labels), one_hot(said))
    cool = Head(HEAD.weight, HEAD.bias, CLASSES, temperature=5.0)
    results = classifier_results(features, images, cool)
    assert results.temperature == 5.0
    assert results.calibration_error < results.calibration_error_before


def test_without_labels_or_without_a_classifier(tmp_path: Path) -> None:
    workspace = write_prepared(tmp_path, labeled=0)
    relabel(workspace, "test", np.full(40, -1))
    images = LabeledImages.of(workspace / "data" / "prepared")
    features = Features(np.zeros((0, 4), np.float32), np.zeros((0, 4), np.float32))
    assert accuracies(right_answers(features, images, HEAD)) == ServedAccuracy(None, None)
    assert classifier_results(features, images, HEAD) == NoResults()


def test_positions_are_spread_evenly() -> None:
    assert spread(3, 10).tolist() == [0, 1, 2]
    assert spread(9, 3).tolist() == [0, 4, 8]
    assert spread(0, 3).tolist() == []
