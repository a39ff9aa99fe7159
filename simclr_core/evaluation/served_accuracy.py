"""What a served encoder is worth on the labeled images: by file, through onnxruntime, with the bundle's classifier."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from deploy.bundle import Head
from deploy.encoder import Encoder
from simclr_core.data.shards import UNLABELED, ShardedImages, read_card
from simclr_core.evaluation.calibration import expected_calibration_error
from simclr_core.evaluation.embeddings import raw_features
from simclr_core.evaluation.images import EvaluationImages
from simclr_core.evaluation.knn import knn_predict
from simclr_core.reports import ClassifierResults, ClassResults, NoResults, ServedAccuracy

MOST_TRAIN, MOST_TEST = 10_000, 5000  # a bound on the time; half a point is 25 test images
NEIGHBORS, TEMPERATURE = 20, 0.1  # of the kNN classifier, the defaults of linear_eval


@dataclass(frozen=True)
class LabeledImages:
    """The labeled images of both splits, at most 10,000 and 5,000, spread evenly; either may be empty.

    Where an image may have several labels (``several``) both are: what is served is compared by its vectors alone.
    """

    classes: tuple[str, ...]
    train: EvaluationImages
    test: EvaluationImages
    several: bool = False

    @classmethod
    def of(cls, prepared: Path) -> Self:
        train = _labeled(ShardedImages(prepared / "train"), MOST_TRAIN)
        test = _labeled(ShardedImages(prepared / "test"), MOST_TEST)
        card = read_card(prepared)
        return cls(card.classes, train, test, card.multi_label)


@dataclass(frozen=True)
class Features:
    """The encoder's raw output for both splits: float32 [n, dim]."""

    train: NDArray[np.float32]
    test: NDArray[np.float32]


def served_features(encoder: Encoder, images: LabeledImages) -> Features:
    """Raises DatasetError: a prepared image cannot be decoded."""
    train, test = (raw_features(encoder, split.images, split.positions) for split in (images.train, images.test))
    return Features(train, test)


def right_answers(features: Features, images: LabeledImages, head: Head | None) -> dict[str, NDArray[np.bool_]]:
    """Which test images [n] kNN and the bundle's classifier get right, by the names of ``ServedAccuracy``; without the
    labels for it nothing."""
    right: dict[str, NDArray[np.bool_]] = {}
    if images.test.labeled and images.train.labeled:
        predicted = knn_predict(
            features.train, images.train.labels, features.test, len(images.classes), NEIGHBORS, TEMPERATURE
        )
        right["knn_top1"] = predicted == images.test.labels
    if images.test.labeled and head:
        right["classifier_top1"] = head.probabilities(features.test).argmax(axis=1) == images.test.labels
    return right


def accuracies(right: Mapping[str, NDArray[np.bool_]]) -> ServedAccuracy:
    """Percent of the test images; None where nothing is known."""
    known = {name: round(100 * float(one.mean()), 3) for name, one in right.items()}
    return ServedAccuracy(known.get("knn_top1"), known.get("classifier_top1"))


def classifier_results(features: Features, images: LabeledImages, head: Head | None) -> ClassifierResults | NoResults:
    """Of the classifier on the test images: how sure against how right, and each class on its own, in percent.

    ``recall`` is the share of the class's images that are found, ``precision`` the share of the answers with this class
    that are right; None where there is none.
    """
    labels = images.test.labels
    if not len(labels) or head is None:
        return NoResults()
    before, after = (one.probabilities(features.test) for one in (replace(head, temperature=1.0), head))
    predicted = after.argmax(axis=1)
    per_class = {
        name: ClassResults(
            images=int(np.sum(labels == number)),
            recall=_percent(predicted[labels == number] == number),
            precision=_percent(labels[predicted == number] == number),
        )
        for number, name in enumerate(images.classes)
    }
    return ClassifierResults(
        test_images=len(labels),
        temperature=round(head.temperature, 4),
        calibration_error_before=round(expected_calibration_error(before, labels), 3),
        calibration_error=round(expected_calibration_error(after, labels), 3),
        per_class=per_class,
    )


def _labeled(images: ShardedImages, most: int) -> EvaluationImages:
    split = EvaluationImages.of(images)
    labeled = np.flatnonzero(split.labels != UNLABELED)
    chosen = labeled[spread(len(labeled), most)]
    return replace(split, positions=split.positions[chosen], labels=split.labels[chosen], keys=split.keys[chosen])


def spread(count: int, most: int) -> NDArray[np.int64]:
    """At most ``most`` positions, spread evenly over ``count``."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(np.int64)


def _percent(right: NDArray[np.bool_]) -> float | None:
    return round(100 * float(right.mean()), 2) if len(right) else None
