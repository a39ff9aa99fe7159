"""Accuracy, calibration and the results of each class, against counts made by hand."""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, multilabel_confusion_matrix

from deploy.bundle import Head
from simclr_core.data.label_sets import rarest
from simclr_core.evaluation.served_accuracy import (
    Features,
    LabeledImages,
    accuracies,
    ask,
    classifier_results,
    spread,
)
from simclr_core.reports import ClassifierResults, NoResults, ServedAccuracy
from tests.conftest import CLASSES, write_prepared
from tests.simclr_core.conftest import put_label_sets, relabel


@pytest.fixture
def images(prepared: Path) -> LabeledImages:
    return LabeledImages.of(prepared / "data" / "prepared")


def one_hot(labels: NDArray[np.integer]) -> NDArray[np.float32]:
    return np.eye(len(CLASSES), dtype=np.float32)[labels]


HEAD = Head(np.eye(len(CLASSES), dtype=np.float32) * 9, np.zeros(len(CLASSES), np.float32), CLASSES)


SEVERAL = Head(HEAD.weight, np.full(len(CLASSES), -4.5, np.float32), CLASSES, multi_label=True)


def test_labeled_images_of_both_splits(images: LabeledImages) -> None:
    assert images.classes == CLASSES
    assert (len(images.train.labels), len(images.test.labels)) == (48, 40)
    assert images.train.labels.min() >= 0
    assert images.train.keys.shape == (48, 32)


def test_features_that_equal_the_class_are_always_right(images: LabeledImages) -> None:
    features = Features(one_hot(images.train.labels), one_hot(images.test.labels))
    assert accuracies(ask(features, images, HEAD)) == ServedAccuracy(100.0, 100.0)


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
    assert accuracies(ask(features, images, HEAD)) == ServedAccuracy(None, None)
    assert classifier_results(features, images, HEAD) == NoResults()


@pytest.fixture
def several(tmp_path: Path) -> LabeledImages:
    workspace = write_prepared(tmp_path)
    put_label_sets(workspace)
    return LabeledImages.of(workspace / "data" / "prepared")


def test_labels_of_which_an_image_may_have_several(several: LabeledImages) -> None:
    images, sets = several, several.sets
    assert sets is not None
    assert (images.known.shape, sets.shape) == ((48, 4), (40, 4))
    assert np.array_equal(images.train.labels, rarest(images.known.astype(bool)))


def test_of_several_labels_precision_is_measured(several: LabeledImages) -> None:
    """scikit-learn is the oracle."""
    random, sets = np.random.default_rng(0), several.sets
    assert sets is not None
    features = Features(several.known.astype(np.float32), (sets + random.normal(size=sets.shape)).astype(np.float32))
    found = accuracies(ask(features, several, SEVERAL), sets)
    # Probabilities of a sure classifier are rounded to 1, and would rank equally.
    expected = 100 * average_precision_score(sets, SEVERAL.logits(features.test), average="macro")
    assert (found.knn_top1, found.classifier_top1) == (None, None)
    assert found.classifier_precision == pytest.approx(expected, abs=1e-3)
    assert found.knn_precision is not None
    perfect = Features(features.train, sets.astype(np.float32))
    assert accuracies(ask(perfect, several, SEVERAL), sets).classifier_precision == 100.0
    without = replace(several, truth=np.zeros_like(sets))
    assert ask(features, without, SEVERAL) == {}, "no test image has a class"


def test_of_several_labels_each_class_has_its_counts(several: LabeledImages) -> None:
    sets = several.sets
    assert sets is not None
    random = np.random.default_rng(1)
    features = Features(np.zeros((48, 4), np.float32), (sets ^ (random.random(sets.shape) < 0.2)).astype(np.float32))
    results = classifier_results(features, several, replace(SEVERAL, temperature=2.0))
    said = features.test >= 0.5
    matrices = multilabel_confusion_matrix(sets, said)
    assert isinstance(results, ClassifierResults)
    for (_, wrong, missed, right), name in zip(matrices.reshape(4, 4), CLASSES, strict=True):
        one = results.per_class[name]
        assert one.images == right + missed
        assert one.recall == pytest.approx(100 * right / (right + missed), abs=0.01)
        assert one.precision == pytest.approx(100 * right / (right + wrong), abs=0.01)
    assert results.calibration_error_before != results.calibration_error


def test_positions_are_spread_evenly() -> None:
    assert spread(3, 10).tolist() == [0, 1, 2]
    assert spread(9, 3).tolist() == [0, 4, 8]
    assert spread(0, 3).tolist() == []
