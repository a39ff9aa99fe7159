"""Train a network to classify: from an encoder, with a head that begins at a probe or at zero.

The recipe is SimCLR's (section B.5): the whole network, Nesterov SGD, a cosine without warm-up, no weight decay, crops
and flips as the only augmentation. SimCLRv2's (Chen et al. 2020b, section 3) has LARS instead. With a frozen encoder it
is that of linear evaluation on ImageNet (section B.6). A head that begins as that of a probe leaves the encoder less to
forget (Kumar et al. 2022, "Fine-tuning can distort pretrained features").

Images are decoded ahead of their step; on a GPU their views are made ahead too, and no step waits for another.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from simclr_core.augmentation.augmentations import Augmentation
from simclr_core.augmentation.draws import ViewDraws
from simclr_core.data.dataset import TrainingImages, prefetch
from simclr_core.data.order import permuted
from simclr_core.data.ragged import RaggedImages
from simclr_core.data.side_stream import made_ahead
from simclr_core.data.transfer import choose, send
from simclr_core.errors import NonFiniteFeaturesError
from simclr_core.evaluation.logistic_regression import LinearHead
from simclr_core.lars import LARS, parameter_groups
from simclr_core.launch import Member
from simclr_core.machine.devices import own_device
from simclr_core.model.batch_norm import synchronize
from simclr_core.model.encoder import Encoder
from simclr_core.progress import Bar
from simclr_core.schedule import learning_rate
from simclr_core.torch_calls import data_parallel

PREFETCHED = 2  # batches decoded ahead of their step
SCRATCH_RATE = 0.05  # of sgd from random weights, where the encoder is fine-tuned by LARS


@dataclass(frozen=True)
class Labels:
    """What is known of the images to train on: ``positions`` [n] among the training images, ``labels`` [n] below
    ``classes``, or bool [n, classes] where an image may have several."""

    positions: NDArray[np.int64]
    labels: NDArray[np.int64] | NDArray[np.bool_]
    classes: int


@dataclass(frozen=True)
class Start:
    """What training begins with: an encoder, and a head, zero if there is None. A frozen encoder stays as it is, in
    evaluation mode."""

    encoder: Encoder
    head: LinearHead | None = None
    frozen: bool = False


@dataclass(frozen=True)
class Optimization:
    """``steps`` of ``optimizer``, each over ``batch_size`` images; the learning rate falls from ``peak_rate`` to 0.

    ``precision`` is the type to compute in. The processes of ``member``'s group share each batch equally; None: one
    process alone. ``rate_key`` is the parameter that the rate comes from, for messages.
    """

    steps: int
    batch_size: int
    peak_rate: float
    optimizer: Literal["sgd", "lars"] = "sgd"
    precision: torch.dtype = torch.float32
    member: Member | None = None
    rate_key: str = "finetune.learning_rate"


def from_scratch(usual: Optimization) -> Optimization:
    """The same steps for random weights, by SGD: LARS at a rate for fine-tuning moves them by some percent of their
    norm in a hundred steps, which would make a weak baseline."""
    return usual if usual.optimizer == "sgd" else replace(usual, optimizer="sgd", peak_rate=SCRATCH_RATE)


class _Drawn(NamedTuple):
    """This process's part of a batch, and what happens to each image of it."""

    images: RaggedImages
    view: ViewDraws


def train_classifier(
    start: Start,
    card: dict[str, Any],
    images: TrainingImages,
    known: Labels,
    augmentation: Augmentation,
    optimization: Optimization,
    seed: int,
) -> tuple[nn.Sequential, float]:
    """Train the encoder of ``start``, in place, and a linear head. Returns both as a network, and the last loss.

    ``card`` is the model's, for preprocessing, mean and std. Each epoch has its own order, and its last incomplete
    batch is dropped: BatchNorm would have too few images for its statistics. These are of the whole batch, as the
    gradients are, however many processes share it; all of them call this at once.

    Raises:
        NonFiniteFeaturesError: the weights have run away; on every process.
    """
    member = optimization.member or Member(0, 1, own_device())
    device, precision = member.device, optimization.precision
    torch.manual_seed(seed + (member.rank << 32))  # for networks that draw: dropout, stochastic depth
    head = nn.Linear(start.encoder.feature_dim, known.classes)
    with torch.no_grad():
        head.weight.copy_(start.head.weight.T if start.head else torch.zeros(()))
        head.bias.copy_(start.head.bias if start.head else torch.zeros(()))
    network = nn.Sequential(start.encoder, head).to(device).to(memory_format=torch.channels_last).train()
    if start.frozen:
        start.encoder.eval().requires_grad_(False)
    model = network if member.size == 1 else data_parallel(synchronize(network))
    optimizer = build_optimizer(network, optimization)
    mean, std = (torch.tensor(card[name], device=device).view(-1, 1, 1) for name in ("mean", "std"))
    loss = torch.zeros(())

    def batches() -> Iterator[tuple[int, NDArray[np.int64]]]:
        count = len(known.positions)
        return (_own_rows(step, count, optimization, member, seed) for step in range(optimization.steps))

    def drawn() -> Iterator[_Drawn]:
        for epoch, rows in batches():
            positions = known.positions[rows]
            batch = images.batch(positions, pinned=device.type == "cuda")
            yield _Drawn(batch, ViewDraws(0, augmentation.draws(batch.sizes, seed, epoch, positions, view=0)))

    def seen(one: _Drawn) -> Tensor:
        views = augmentation.ragged_view(one.images.to(device), one.view)
        return ((views - mean) / std).contiguous(memory_format=torch.channels_last)

    inputs = made_ahead(prefetch(drawn(), PREFETCHED, partial(choose, device)), seen, device)
    with Bar(optimization.steps, "steps", quiet=member.rank > 0, name=f"seed {seed}") as bar:
        for step, ((_, rows), views) in enumerate(zip(batches(), inputs, strict=True)):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, optimization.steps, 0, optimization.peak_rate)
            labels = known.labels[rows] if known.labels.ndim == 1 else known.labels[rows].astype(np.float32)
            loss = take_step(model, optimizer, views, send({"labels": labels}, device)["labels"], precision)
            bar.update()
    mean_loss = fmean(member.gathered(loss.item()))
    if not math.isfinite(mean_loss):
        raise NonFiniteFeaturesError(f"the loss of seed {seed} became {mean_loss}; lower {optimization.rate_key}")
    return network.eval(), mean_loss


def build_optimizer(network: nn.Sequential, optimization: Optimization) -> torch.optim.Optimizer:
    """Of an encoder and a classifier, which LARS takes neither scaling nor decay to, as in the code of SimCLRv2."""
    if optimization.optimizer == "lars":
        encoder, classifier = network
        plain = {"params": list(classifier.parameters()), "adaptive": False}
        return LARS([*parameter_groups([encoder], weight_decay=0.0), plain], optimization.peak_rate, momentum=0.9)
    learned = [one for one in network.parameters() if one.requires_grad]
    return torch.optim.SGD(learned, lr=optimization.peak_rate, momentum=0.9, nesterov=True)


def take_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, views: Tensor, labels: Tensor, precision: torch.dtype
) -> Tensor:
    """Forward and backward pass, and update, by the rate that ``optimizer`` has; returns the loss before it."""
    with torch.autocast(views.device.type, precision, enabled=precision != torch.float32):
        logits = model(views)
    loss = _loss(logits.float(), labels)
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    optimizer.step()
    return loss


def _own_rows(
    step: int, images: int, optimization: Optimization, member: Member, seed: int
) -> tuple[int, NDArray[np.int64]]:
    """The epoch of a step, and which of the ``images`` this process sees in it."""
    batch_size, share = optimization.batch_size, optimization.batch_size // member.size
    epoch, turn = divmod(step, images // batch_size)
    first = turn * batch_size + member.rank * share
    return epoch, permuted(seed, epoch, np.arange(first, first + share), images)


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean over the images; of several labels, of the sum over the classes, as the probe's."""
    if labels.dim() == 1:
        return cross_entropy(logits, labels)
    return binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="sum") / len(labels)


def few_label_augmentation(card: dict[str, Any], crop_scale: tuple[float, float]) -> Augmentation:
    """Crops, and flips where pretraining took them to leave the class alone."""
    flip = card["config"]["augmentation"]["flip"]
    return Augmentation(card["preprocessing"]["size"], crop_scale, flip=flip, jitter_probability=0, grayscale=0, blur=0)
