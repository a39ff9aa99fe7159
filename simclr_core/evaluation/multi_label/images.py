"""The labeled images of a split where an image may have several labels."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from simclr_core.data.groups import Groups
from simclr_core.data.label_sets import rarest
from simclr_core.data.shards import UNLABELED, ShardedImages
from simclr_core.evaluation.images import EvaluationImages

Targets = NDArray[np.bool_]
"""Which of the classes each image has: [n, classes]."""


@dataclass(frozen=True)
class LabelSets:
    """``targets`` [n, classes] of the labeled images; without any, ``images`` are a sample to look at, and n is 0.

    ``images.labels`` is not what is learned: it is the rarest class of each image, by which images are drawn and
    divided (``label_sets.rarest``).
    """

    images: EvaluationImages
    targets: Targets

    @classmethod
    def of(cls, images: ShardedImages) -> Self:
        assert images.label_sets is not None, "the images have one label each"
        known = np.asarray(images.label_sets)
        positions = np.flatnonzero((known != UNLABELED).all(axis=1))
        targets = known[positions] == 1
        if not len(positions):
            return cls(EvaluationImages.of(images), targets)
        groups = None if images.groups is None else Groups(images.groups).identities(positions)
        return cls(EvaluationImages(images, positions, rarest(targets), images.keys[positions], groups), targets)


def read_splits(prepared: Path) -> tuple[LabelSets, LabelSets]:
    """The training and the test images of ``data/prepared``."""
    train, test = (LabelSets.of(ShardedImages(prepared / split)) for split in ("train", "test"))
    return train, test


def missing_labels(train: LabelSets, test: LabelSets) -> str | None:
    """Why nothing can be measured, and what to do; None if it can."""
    if not train.images.labeled:
        return "no labeled training images; name their labels in inbox/labels.csv"
    if not test.images.labeled:
        return "no labeled test images; name them in inbox/labels.csv with the split test"
    learned = train.targets.any(axis=0) & ~train.targets.all(axis=0)
    if not learned.any():
        return "all labeled training images have the same labels; label images with others"
    if not test.targets[:, learned].any():
        return "no test image has a class that some training images have and others not; label test images with one"
    return None
