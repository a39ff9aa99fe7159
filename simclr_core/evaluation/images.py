"""What linear evaluation and fine-tuning share: the labeled images of a split, what networks make of them, and the
untrained network to compare with."""

from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from deploy.images.full_depth import Samples
from deploy.images.preprocess import Preprocessing
from simclr_core.data.dataset import evaluation_images
from simclr_core.data.groups import Groups
from simclr_core.data.shards import UNLABELED, ShardedImages
from simclr_core.errors import CheckpointError
from simclr_core.evaluation.features import extract
from simclr_core.evaluation_reports import PairedCounts
from simclr_core.model.encoder import Encoder
from simclr_core.model.model_directory import Model, fresh_encoder, load_model, with_channels

CHUNK = 2048  # images in memory at a time
UNLABELED_SAMPLE = 5000  # of a split without labels, to look at


@dataclass(frozen=True)
class EvaluationImages:
    """The labeled images of a split; of a split without any label, a sample, so that there is something to look at."""

    images: ShardedImages
    positions: NDArray[np.int64]
    labels: NDArray[np.int64]  # all UNLABELED in a sample
    keys: NDArray[np.uint8]
    groups: NDArray[np.int64] | None = None  # equal where images show one thing; None: nothing is said of it

    @classmethod
    def of(cls, images: ShardedImages) -> Self:
        labeled = np.flatnonzero(images.labels != UNLABELED)
        positions = labeled if len(labeled) else np.arange(min(len(images), UNLABELED_SAMPLE))
        groups = None if images.groups is None else Groups(images.groups).identities(positions)
        return cls(images, positions, images.labels[positions].astype(np.int64), images.keys[positions], groups)

    @property
    def labeled(self) -> int:
        return int(np.sum(self.labels != UNLABELED))

    def chunks(self, preprocessing: Preprocessing) -> Iterator[Samples]:
        """The images as the served encoder sees them, [up to 2048, s, s, channels]; of no images one empty chunk."""
        for start in range(0, max(len(self.positions), 1), CHUNK):
            yield evaluation_images(self.images, self.positions[start : start + CHUNK], preprocessing)


def read_splits(prepared: Path) -> tuple[EvaluationImages, EvaluationImages]:
    """The training and the test images of ``data/prepared``."""
    train, test = (EvaluationImages.of(ShardedImages(prepared / split)) for split in ("train", "test"))
    return train, test


@dataclass(frozen=True)
class Answers:
    """Which of the test images each classifier on one encoder's features gets right: bool [n]."""

    knn: NDArray[np.bool_]
    probe: NDArray[np.bool_]


def missing_labels(train: EvaluationImages, test: EvaluationImages) -> str | None:
    """Why there can be no accuracies, and what to do; None if there can."""
    if train.images.label_sets is not None:
        return "an image may have several labels, and this takes one label for each"
    if not train.labeled:
        return "no labeled training images; put some into inbox/labeled/<class>/ or name them in inbox/labels.csv"
    if not test.labeled:
        return "no labeled test images; put some into inbox/test/<class>/ or name them in inbox/labels.csv"
    classes = np.setdiff1d(train.labels, [UNLABELED])
    if len(classes) == 1:
        return "all labeled training images are of one class; label images of a second class"
    if not np.isin(test.labels, classes).any():
        return "no test image is of a class that a training image is labeled with; use the same class names in both"
    return None


def random_encoder(model: Model, seed: int) -> Encoder:
    """The architecture of ``model`` with fresh weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return fresh_encoder(model.card)


def unadapted_encoder(workspace: Path, model: Model) -> Encoder | None:
    """The encoder as the weights gave it that ``model`` began with; None if it began with none.

    Raises:
        ArtifactError: it is damaged; nothing was parsed.
        CheckpointError: ``models/initial`` has others now.
    """
    init = str(model.card.get("init", ""))
    if not init.startswith("weights "):
        return None
    start = load_model(workspace / "models" / "initial" / "pretrained")
    if start.card["init"] != init:
        raise CheckpointError(
            f"models/initial is {start.card['init']}, and models/pretrained began from {init}; run `simclr run` again"
        )
    if start.preprocessing.bands != model.preprocessing.bands:
        return with_channels(start.encoder, deepcopy(model.encoder))
    return start.encoder


def outputs(networks: Sequence[nn.Module], split: EvaluationImages, model: Model) -> list[NDArray[np.float32]]:
    """What each network gives for the images of a split, [n, d]; ``model`` has the preprocessing of all of them."""
    found: list[list[NDArray[np.float32]]] = [[] for _ in networks]
    for images in split.chunks(model.preprocessing):
        for network, chunks in zip(networks, found, strict=True):
            chunks.append(extract(network, images, model.card["mean"], model.card["std"]))
    return [np.concatenate(chunks) for chunks in found]


def percent(right: NDArray[np.bool_]) -> float:
    return round(100 * float(right.mean()), 3)


def count_pairs(pairs: Iterable[tuple[NDArray[np.bool_], NDArray[np.bool_]]]) -> PairedCounts:
    """For each pair (trained, baseline) of answers, right or not [n], how many images one of them alone has right."""
    counts = [(int(np.sum(trained & ~other)), int(np.sum(other & ~trained))) for trained, other in pairs]
    return PairedCounts(tuple(won for won, _ in counts), tuple(lost for _, lost in counts))
