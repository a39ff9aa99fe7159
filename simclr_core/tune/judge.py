"""How good an encoder is, for the search: by the labels of training images, or without any by the views of images.

With labels: the accuracy of a linear probe on labels that it has not seen, fold by fold (``evaluation.scores.folds``),
of up to 2,000 labeled training images. Without: how many of its neighbors an image keeps when it is augmented
(``evaluation.label_free``). Nothing of the test split is opened.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from simclr_core.augmentation.augmentations import Augmentation
from simclr_core.config import LinearEvalConfig
from simclr_core.data.order import permuted
from simclr_core.data.shards import ShardedImages, read_card
from simclr_core.data.subsets import per_class_subset
from simclr_core.errors import LabelError, NonFiniteFeaturesError
from simclr_core.evaluation.features import encode
from simclr_core.evaluation.images import EvaluationImages
from simclr_core.evaluation.label_free import FEWEST_IMAGES, MILD, MOST_IMAGES, NEIGHBORS, draw_views, kept_neighbors
from simclr_core.evaluation.scores.folds import divide, read_near_groups
from simclr_core.machine.devices import own_device
from simclr_core.model.model_directory import Model
from simclr_core.suggest.choose import draw_all, out_of_fold

MOST_LABELS = 2000
L2_COUNT = 5
LABELS, VIEWS = "labels", "views"
TRUST: Mapping[str, str] = {
    LABELS: "the accuracy of a linear probe on labels of training images that it has not seen; no test image is opened",
    VIEWS: "no single labels: the share of neighbors that an image keeps when augmented. Of nine trained encoders of "
    "one recipe it followed the accuracy of a probe with a rank correlation of 0.85, of kNN of 0.82, and put 87 and 86 "
    "of 100 pairs in the right order (benchmarks/README.md, Judging without labels); between settings that change what "
    "views look like it is less sure, so label some images to confirm it",
}


@dataclass(frozen=True)
class Score:
    """In percent; ``interval`` is half the width of 95 % over the judged images."""

    value: float
    interval: float


@dataclass(frozen=True)
class Judge:
    """``name`` is LABELS or VIEWS, ``images`` are those that it looks at."""

    name: str
    images: int
    score: Callable[[Model], Score]


def choose_judge(workspace: Path, seed: int) -> Judge:
    """By labels where two classes have two labeled training images each, else by views, as where an image may have
    several labels.

    Raises:
        LabelError: neither is possible, with fewer than 50 images.
    """
    prepared = workspace / "data" / "prepared"
    card, train = read_card(prepared), ShardedImages(prepared / "train")
    images = few(EvaluationImages.of(train), seed).with_near(read_near_groups(workspace))
    folds = () if card.multi_label else divide(images, seed, draw_all)
    if folds:
        config = LinearEvalConfig(l2_count=L2_COUNT, seed=seed)

        def by_labels(model: Model) -> Score:
            likely = out_of_fold(_features(model, images), images, folds, len(card.classes), config)
            return score_of(100.0 * (likely.argmax(axis=1) == images.labels))

        return Judge(LABELS, len(images.positions), by_labels)
    if len(train) < FEWEST_IMAGES:
        raise LabelError(
            f"{len(train)} training images without two classes of two labels each: nothing can be judged; a search "
            f"needs such labels, or {FEWEST_IMAGES} images"
        )
    positions = np.sort(permuted(seed, 0, range(min(len(train), MOST_IMAGES)), len(train)))
    return Judge(VIEWS, len(positions), lambda model: _by_views(model, train, positions))


def few(images: EvaluationImages, seed: int) -> EvaluationImages:
    """Up to 2,000 labeled images, the same number of each class."""
    if images.labeled <= MOST_LABELS:
        return images
    classes = len(np.unique(images.labels))
    kept = per_class_subset(images.labels, images.keys, max(2, MOST_LABELS // classes), seed)
    groups = None if images.groups is None else images.groups[kept]
    return replace(
        images, positions=images.positions[kept], labels=images.labels[kept], keys=images.keys[kept], groups=groups
    )


def score_of(percent: NDArray[np.float64]) -> Score:
    """The mean over images [n], and its interval."""
    error = float(percent.std(ddof=1)) / math.sqrt(len(percent))
    return Score(round(float(percent.mean()), 3), round(1.96 * error, 3))


def _features(model: Model, images: EvaluationImages) -> NDArray[np.float32]:
    encoder, card = model.encoder.to(own_device()), model.card
    found = [encode(encoder, chunk, card["mean"], card["std"]) for chunk in images.chunks(model.preprocessing)]
    return _finite(np.concatenate([one.cpu().numpy() for one in found]))


def _by_views(model: Model, train: ShardedImages, positions: NDArray[np.int64]) -> Score:
    side, encoder = model.preprocessing.resize, model.encoder.to(own_device())
    parts: tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]] = ([], [])
    for views in draw_views(train, positions, Augmentation(side, **MILD), seed=0):
        for view, kept in zip(views, parts, strict=True):
            kept.append(encode(encoder, view, model.card["mean"], model.card["std"]).cpu().numpy())
    first, second = (_finite(np.concatenate(one)) for one in parts)
    return score_of(100 * kept_neighbors(first, second, NEIGHBORS))


def _finite(features: NDArray[np.float32]) -> NDArray[np.float32]:
    if not np.isfinite(features.sum(dtype=np.float64)):
        raise NonFiniteFeaturesError("the encoder's features are infinite or not a number")
    return features
