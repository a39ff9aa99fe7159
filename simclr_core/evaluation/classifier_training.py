"""Train a network to classify, on few labels: from an encoder, with a head that begins at a probe or at zero.

The recipe is SimCLR's (section B.5): the whole network, Nesterov SGD, a cosine without warm-up, no weight decay of the
encoder, crops and flips as the only augmentation. A head that begins as that of a probe keeps the penalty that was
chosen for the probe (after Kumar et al. 2022, "Fine-tuning can distort pretrained features").
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from simclr_core.augmentation.augmentations import Augmentation
from simclr_core.augmentation.draws import ViewDraws
from simclr_core.data.dataset import TrainingImages
from simclr_core.data.order import permuted
from simclr_core.errors import NonFiniteFeaturesError
from simclr_core.evaluation.linear_probe import Probe
from simclr_core.evaluation.logistic_regression import STRONGEST_L2, LinearHead, standardization
from simclr_core.machine.devices import choose_device
from simclr_core.model.encoder import Encoder
from simclr_core.schedule import learning_rate


@dataclass(frozen=True)
class Labels:
    """What is known of the images to train on: ``positions`` [n] among the training images, ``labels`` [n] below
    ``classes``, or bool [n, classes] where an image may have several."""

    positions: NDArray[np.int64]
    labels: NDArray[np.int64] | NDArray[np.bool_]
    classes: int


@dataclass(frozen=True)
class Start:
    """What training begins with: an encoder, and a head, zero if there is None. ``decay`` [d] is the L2 penalty on the
    head's weights of each feature."""

    encoder: Encoder
    head: LinearHead | None = None
    decay: Tensor | None = None


@dataclass(frozen=True)
class Optimization:
    """``steps`` of SGD, each over ``batch_size`` images; the learning rate falls from ``peak_rate`` to 0."""

    steps: int
    batch_size: int
    peak_rate: float


def at_probe(encoder: Encoder, probe: Probe, features: NDArray[np.float32]) -> Start:
    """The encoder with the probe's head and its penalty, which is on standardized ``features`` [n, d].

    With one label of each class no fold could choose a penalty, and the strongest is taken; that is not kept.
    """
    assert probe.l2 is not None
    chosen = probe.l2 if probe.l2 < STRONGEST_L2 else 0.0
    _, std = standardization(torch.from_numpy(features))
    return Start(encoder, probe.head, (chosen * std.square()).float())


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
    batch is dropped: BatchNorm would have too few images for its statistics.

    Raises:
        NonFiniteFeaturesError: the weights have run away.
    """
    device = choose_device()
    torch.manual_seed(seed)  # for networks that draw: dropout, stochastic depth
    head = nn.Linear(start.encoder.feature_dim, known.classes)
    with torch.no_grad():
        head.weight.copy_(start.head.weight.T if start.head else torch.zeros(()))
        head.bias.copy_(start.head.bias if start.head else torch.zeros(()))
    network = nn.Sequential(start.encoder, head).to(device).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=optimization.peak_rate, momentum=0.9, nesterov=True)
    mean, std = (torch.tensor(card[name], device=device).view(-1, 1, 1) for name in ("mean", "std"))
    decay = None if start.decay is None else start.decay.to(device)
    loss = torch.zeros(())
    positions, batch_size = known.positions, optimization.batch_size
    for step in range(optimization.steps):
        epoch, turn = divmod(step, len(positions) // batch_size)
        rows = permuted(seed, epoch, np.arange(turn * batch_size, (turn + 1) * batch_size), len(positions))
        batch = images.batch(positions[rows], pinned=device.type == "cuda")
        draws = augmentation.draws(batch.sizes, seed, epoch, positions[rows], view=0)
        views = augmentation.ragged_view(batch.to(device), ViewDraws(0, draws))
        views = ((views - mean) / std).contiguous(memory_format=torch.channels_last)
        loss = _loss(network(views), torch.from_numpy(known.labels[rows]).to(device))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, optimization.steps, 0, optimization.peak_rate)
        optimizer.step()
        if decay is not None:
            with torch.no_grad():  # an implicit step, which no penalty is too strong for
                head.weight.div_(1 + optimizer.param_groups[0]["lr"] * decay)
    if not math.isfinite(loss.item()):
        raise NonFiniteFeaturesError(f"the loss of seed {seed} became {loss.item()}; lower finetune.learning_rate")
    return network.eval(), loss.item()


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean over the images; of several labels, of the sum over the classes, as the probe's."""
    if labels.dim() == 1:
        return cross_entropy(logits, labels)
    return binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="sum") / len(labels)


def few_label_augmentation(card: dict[str, Any], crop_scale: tuple[float, float]) -> Augmentation:
    """Crops, and flips where pretraining took them to leave the class alone."""
    flip = card["config"]["augmentation"]["flip"]
    return Augmentation(card["preprocessing"]["size"], crop_scale, flip=flip, jitter_probability=0, grayscale=0, blur=0)
