"""Who answers which labeled image: classifiers on all labels the test images, or, without any, each fold the others'.

Out of fold (k-fold cross-validation, Stone 1974, "Cross-Validatory Choice and Assessment of Statistical Predictions"),
the labeled training images are divided into folds, and each image is answered once, by classifiers that have seen
neither its fold's labels nor chosen anything by them. The encoder has seen the images, without labels. Which fold an
image is in follows from its content and a seed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from simclr_core.data import subsets
from simclr_core.data.groups import representatives
from simclr_core.data.shards import UNLABELED
from simclr_core.data.subsets import LabelDraw
from simclr_core.evaluation.fewest import fold_count
from simclr_core.evaluation.images import EvaluationImages

Scalar = TypeVar("Scalar", bound=np.generic)
Draw = Callable[[NDArray[np.int64]], dict[str, list[LabelDraw]]]


@dataclass(frozen=True)
class Fold:
    """``known`` [n] are the labels of the training images, UNLABELED where they may not be seen; ``drawn`` are draws of
    them by label budget. ``asked`` are the positions of the images that classifiers on these labels answer."""

    known: NDArray[np.int64]
    drawn: Mapping[str, Sequence[LabelDraw]]
    asked: NDArray[np.int64]

    def rows(self, features: NDArray[Scalar]) -> NDArray[Scalar]:
        """Those [m, ...] of ``features`` [n, ...] that are of the asked images; if these are all, without a copy."""
        return features if len(self.asked) == len(features) else features[self.asked]


def ask_test_images(train: EvaluationImages, test: EvaluationImages, draw: Draw) -> list[Fold]:
    """All labels are known, and the test images asked about."""
    return [Fold(train.labels, draw(train.labels), np.arange(len(test.labels)))]


def divide(train: EvaluationImages, seed: int, draw: Draw) -> list[Fold]:
    """Folds of the labeled training images, each class spread evenly over them; none where the labels are too few.

    Near copies, and images of one group of labels.csv, count as one image, the one with the smallest SHA-256, and stay
    in one fold.

    Args:
        draw: the draws of these labels by label budget.
    """
    if not train.labeled:
        return []
    first = representatives(train.keys, train.groupings)
    members = np.unique(first)
    count = fold_count(np.unique(train.labels[members], return_counts=True)[1].tolist())
    if not count:
        return []
    fold = np.empty(len(first), np.int64)
    fold[members] = subsets.folds(train.labels[members], train.keys[members], count, seed)
    fold = fold[first]
    known = [np.where(fold == number, UNLABELED, train.labels) for number in range(count)]
    return [Fold(one, draw(one), np.flatnonzero(fold == number)) for number, one in enumerate(known)]


def gather(folds: Sequence[Fold], answers: Sequence[NDArray[Scalar]]) -> NDArray[Scalar]:
    """What was answered fold by fold, in the order of the images."""
    order = np.argsort(np.concatenate([fold.asked for fold in folds]))
    return np.concatenate(answers)[order]


def read_near_groups(workspace: Path) -> dict[str, str]:
    """By SHA-256, the group of each content with near copies; nothing where the manifest is missing or does not say."""
    found: dict[str, str] = {}
    for part in sorted((workspace / "data" / "manifest" / "manifest").glob("*.parquet")):
        if {"sha256", "near_group"} <= set(pq.read_schema(part).names):
            rows: pa.Table = pq.read_table(part, columns=["sha256", "near_group"])
            pairs = zip(rows["sha256"].to_pylist(), rows["near_group"].to_pylist(), strict=True)
            found |= {sha256: group for sha256, group in pairs if group is not None}
    return found
