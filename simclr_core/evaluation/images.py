"""What linear evaluation and fine-tuning share: the labeled images of a split, what networks make of them, and the
untrained network to compare with."""

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from mmap import mmap
from pathlib import Path
from tempfile import TemporaryFile
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deploy.artifact import identity
from deploy.images.full_depth import Samples
from deploy.images.preprocess import Preprocessing
from simclr_core.data.dataset import evaluation_images
from simclr_core.data.groups import Groups, number_near, representatives
from simclr_core.data.shards import UNLABELED, ShardedImages, content_digest
from simclr_core.errors import CheckpointError
from simclr_core.evaluation.features import encode, gather_rows
from simclr_core.evaluation_reports import PairedCounts
from simclr_core.launch import Member
from simclr_core.machine.devices import own_device
from simclr_core.model.encoder import Encoder
from simclr_core.model.model_directory import Model, fresh_encoder, load_model, with_channels
from simclr_core.params import Block, flatten

CHUNK = 2048  # images in memory at a time
UNLABELED_SAMPLE = 5000  # of a split without labels, to look at
IN_MEMORY = 2**30  # bytes of features; more are in a file, of which the system keeps in memory what there is room for


@dataclass(frozen=True)
class EvaluationImages:
    """The labeled images of a split; of a split without any label, a sample, so that there is something to look at."""

    images: ShardedImages
    positions: NDArray[np.int64]
    labels: NDArray[np.int64]  # all UNLABELED in a sample
    keys: NDArray[np.uint8]
    groups: NDArray[np.int64] | None = None  # equal where images show one thing; None: nothing is said of it
    near: NDArray[np.int64] | None = None  # equal where images are near copies of each other; None: there are none

    @classmethod
    def of(cls, images: ShardedImages) -> Self:
        labeled = np.flatnonzero(images.labels != UNLABELED)
        positions = labeled if len(labeled) else np.arange(min(len(images), UNLABELED_SAMPLE))
        groups = None if images.groups is None else Groups(images.groups).identities(positions)
        return cls(images, positions, images.labels[positions].astype(np.int64), images.keys[positions], groups)

    def with_near(self, near: Mapping[str, str]) -> Self:
        """The same images, of which some are near copies: by SHA-256, the name of the group that one is in."""
        return replace(self, near=number_near(self.keys, near)) if near else self

    @property
    def groupings(self) -> list[NDArray[np.int64]]:
        """By what images count as one: equal numbers are joined."""
        return [one for one in (self.groups, self.near) if one is not None]

    @property
    def group_keys(self) -> NDArray[np.uint8]:
        """``keys`` [n, 32], the same for near copies and all images of a group: what folds keep together."""
        return self.keys[representatives(self.keys, self.groupings)] if self.groupings else self.keys

    @property
    def labeled(self) -> int:
        return int(np.sum(self.labels != UNLABELED))

    def chunks(self, preprocessing: Preprocessing, member: Member | None = None) -> Iterator[Samples]:
        """The images as the served encoder sees them, [up to 2048, s, s, channels]; of no images one empty chunk.

        Several processes take them in turn, each equally many, of which the last may be empty.
        """
        first, size = (member.rank, member.size) if member else (0, 1)
        for turn in range(0, max(len(self.positions), 1), size * CHUNK):
            start = turn + first * CHUNK
            yield evaluation_images(self.images, self.positions[start : start + CHUNK], preprocessing)


def read_facts(workspace: Path, block: str, config: Block) -> dict[str, object]:
    """What the processes of a group have to have alike: the ``config`` of a block, the images, labels and the model."""
    return {
        "data/prepared": content_digest(workspace / "data" / "prepared", ("train", "test")),
        "models/pretrained": identity(workspace / "models" / "pretrained"),
        **dict(flatten({block: config.model_dump()})),
    }


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


def outputs(
    networks: Sequence[nn.Module], split: EvaluationImages, model: Model, member: Member | None = None
) -> list[NDArray[np.float32]]:
    """What each network gives for the images of a split, [n, d]; ``model`` has the preprocessing of all of them.

    The processes of a group share the images, and each gets all that comes of them.
    """
    member = member or Member(0, 1, own_device())
    makers = {str(place): encoding(network, model, member) for place, network in enumerate(networks)}
    found = made_of(split, model.preprocessing, makers, member)
    return [found[name] for name in makers]


def encoding(network: nn.Module, model: Model, member: Member) -> Callable[[Samples], Tensor]:
    """From images to what a network, which is moved to this process's device, gives for them."""
    mean, std = model.card["mean"], model.card["std"]
    network.to(member.device)
    return lambda images: encode(network, images, mean, std)


def made_of(
    split: EvaluationImages,
    preprocessing: Preprocessing,
    makers: Mapping[str, Callable[[Samples], Tensor]],
    member: Member,
    kept: Collection[str] | None = None,
    progress: Callable[[int], object] | None = None,
    scratch: Path | None = None,
) -> dict[str, NDArray[np.float32]]:
    """By name, what is made of the images of a split, [n, d], from one decoding of them, shared by the processes of the
    group. Each keeps the names of ``kept``, by default all, and tells ``progress`` how many images are done; they call
    this at once. What is large is in a file without a name, in the folder ``scratch``."""
    total, found, done = len(split.positions), dict[str, NDArray[np.float32]](), 0
    for images in split.chunks(preprocessing, member):
        count = min(member.size * CHUNK, total - done)
        for name, make in makers.items():
            rows = gather_rows(make(images).to(member.device), count, member, CHUNK)
            if kept is None or name in kept:
                if name not in found:
                    found[name] = reserve(total, rows.shape[1], scratch)
                found[name][done : done + count] = rows.cpu().numpy()
        done += count
        if progress is not None:
            progress(done)
    return found


def reserve(rows: int, width: int, scratch: Path | None) -> NDArray[np.float32]:
    """Room for features float32 [rows, width]: in memory, or, if they are many, in a file in ``scratch`` that is gone
    with them. Without room on the disk in memory after all."""
    size = 4 * rows * width
    if scratch is None or size <= IN_MEMORY:
        return np.empty((rows, width), np.float32)
    scratch.mkdir(parents=True, exist_ok=True)
    with TemporaryFile(dir=scratch) as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)  # a mapped file that finds no room later is a SIGBUS
        except OSError:
            return np.empty((rows, width), np.float32)
        return np.frombuffer(mmap(file.fileno(), size), np.float32).reshape(rows, width)


def percent(right: NDArray[np.bool_]) -> float:
    return round(100 * float(right.mean()), 3)


def count_pairs(pairs: Iterable[tuple[NDArray[np.bool_], NDArray[np.bool_]]]) -> PairedCounts:
    """For each pair (trained, baseline) of answers, right or not [n], how many images one of them alone has right."""
    counts = [(int(np.sum(trained & ~other)), int(np.sum(other & ~trained))) for trained, other in pairs]
    return PairedCounts(tuple(won for won, _ in counts), tuple(lost for _, lost in counts))
