"""What a served encoder is worth on the labeled images: by file, through onnxruntime, with the bundle's classifier."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from deploy.bundle import ASSIGNED, Head
from deploy.encoder import Encoder
from simclr_core.data.label_sets import as_targets
from simclr_core.data.shards import UNLABELED, ShardedImages, read_card
from simclr_core.evaluation.calibration import Labels, expected_calibration_error
from simclr_core.evaluation.embeddings import raw_features
from simclr_core.evaluation.images import EvaluationImages, count_pairs
from simclr_core.evaluation.knn import knn_predict
from simclr_core.evaluation.multi_label.classifiers import vote
from simclr_core.evaluation.multi_label.images import LabelSets, Targets
from simclr_core.evaluation.multi_label.precision import difference, exact_precision, mean_precision
from simclr_core.evaluation.paired_comparison import Interval, interval
from simclr_core.reports import ClassifierResults, ClassResults, NoResults, ServedAccuracy

MOST_TRAIN, MOST_TEST = 10_000, 5000  # a bound on the time; half a point is 25 test images
NEIGHBORS, TEMPERATURE = 20, 0.1  # of the kNN classifier, the defaults of linear_eval
SEED = 0  # of the resamples
UNKNOWN: dict[str, float | None] = {"knn_top1": None, "classifier_top1": None}

Answers = Mapping[str, NDArray[Any]]
"""By the names of ``ServedAccuracy``: which test images are answered rightly, bool [n]; where an image may have several
labels, how likely each class is, [n, classes]: shares of the votes, or logits, since probabilities are rounded to 1."""


@dataclass(frozen=True)
class LabeledImages:
    """The labeled images of both splits, at most 10,000 and 5,000, spread evenly; either may be empty.

    ``known`` are the labels of the training images, and ``truth`` those of the test images.
    """

    classes: tuple[str, ...]
    train: EvaluationImages
    test: EvaluationImages
    known: Labels
    truth: Labels

    @classmethod
    def of(cls, prepared: Path) -> Self:
        train, known = labeled_images(ShardedImages(prepared / "train"), MOST_TRAIN)
        test, truth = labeled_images(ShardedImages(prepared / "test"), MOST_TEST)
        return cls(read_card(prepared).classes, train, test, known, truth)

    @property
    def sets(self) -> Targets | None:
        """The labels of the test images where an image may have several."""
        return self.truth.astype(bool) if self.truth.ndim == 2 else None


@dataclass(frozen=True)
class Features:
    """The encoder's raw output for both splits: float32 [n, dim]."""

    train: NDArray[np.float32]
    test: NDArray[np.float32]


def served_features(encoder: Encoder, images: LabeledImages) -> Features:
    """Raises DatasetError: a prepared image cannot be decoded."""
    train, test = (raw_features(encoder, split.images, split.positions) for split in (images.train, images.test))
    return Features(train, test)


def ask(features: Features, images: LabeledImages, head: Head | None) -> dict[str, NDArray[Any]]:
    """What kNN and the bundle's classifier say of the test images (``Answers``); without the labels for it nothing."""
    known, sets, found = images.known, images.sets, dict[str, NDArray[Any]]()
    if not len(images.truth) or (sets is not None and not sets.any()):
        return found
    if sets is not None:
        if len(known):
            found["knn_precision"] = vote(features.train, known.astype(bool), features.test, NEIGHBORS, TEMPERATURE)
        return found | ({"classifier_precision": head.logits(features.test)} if head else {})
    labels, truth = images.train.labels, images.test.labels
    if len(labels):
        predicted = knn_predict(features.train, labels, features.test, len(images.classes), NEIGHBORS, TEMPERATURE)
        found["knn_top1"] = predicted == truth
    if head:
        found["classifier_top1"] = head.probabilities(features.test).argmax(axis=1) == truth
    return found


def accuracies(answers: Answers, sets: Targets | None = None) -> ServedAccuracy:
    """Percent of the test images, or mean average precision in percent; None where nothing is known.

    Args:
        sets: as ``LabeledImages.sets``.
    """
    return ServedAccuracy(**UNKNOWN | {name: round(100 * measure(one, sets), 3) for name, one in answers.items()})


def measure(answers: NDArray[Any], sets: Targets | None) -> float:
    """What answers are worth, 0 to 1."""
    return float(answers.mean()) if sets is None else exact_precision(answers, sets)


def compare_answers(answers: NDArray[Any], exact: NDArray[Any], sets: Targets | None, confidence: float) -> Interval:
    """What answers gain on others to the same images, paired by image, -1 to 1."""
    if sets is None:
        return interval(len(answers), count_pairs([(answers, exact)]).pairs(), confidence)
    found = mean_precision({"answers": answers, "exact": exact}, sets, SEED)
    return difference(found["answers"], found["exact"], len(sets), confidence)


def classifier_results(features: Features, images: LabeledImages, head: Head | None) -> ClassifierResults | NoResults:
    """Of the classifier on the test images: how sure against how right, and each class on its own, in percent.

    ``recall`` is the share of the class's images that are found, ``precision`` the share of the answers with this class
    that are right; None where there is none.
    """
    labels = images.truth
    if not len(labels) or head is None:
        return NoResults()
    before, after = (one.probabilities(features.test) for one in (replace(head, temperature=1.0), head))
    several = labels.ndim == 2
    truth, said = (
        as_targets(one, len(images.classes)) for one in (labels, after >= ASSIGNED if several else after.argmax(axis=1))
    )
    per_class = {
        name: ClassResults(
            images=int(truth[:, number].sum()),
            recall=_percent(said[truth[:, number], number]),
            precision=_percent(truth[said[:, number], number]),
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


def labeled_images(images: ShardedImages, most: int | None = None) -> tuple[EvaluationImages, Labels]:
    """The labeled images of a split, at most this number, spread evenly, and their labels.

    The ``labels`` of the images themselves are those by which they are drawn (``label_sets.strata``).
    """
    sets = None if images.label_sets is None else LabelSets.of(images)
    split = EvaluationImages.of(images) if sets is None else sets.images
    labeled = np.flatnonzero(split.labels != UNLABELED)
    chosen = labeled if most is None else labeled[spread(len(labeled), most)]
    found = replace(split, positions=split.positions[chosen], labels=split.labels[chosen], keys=split.keys[chosen])
    return found, found.labels if sets is None else sets.targets[chosen]


def spread(count: int, most: int) -> NDArray[np.int64]:
    """At most ``most`` positions, spread evenly over ``count``."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(np.int64)


def _percent(right: NDArray[np.bool_]) -> float | None:
    return round(100 * float(right.mean()), 2) if len(right) else None
