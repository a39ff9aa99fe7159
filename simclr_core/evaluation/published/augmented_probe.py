"""The linear evaluation by which ImageNet's numbers are published: SGD on augmented images (SimCLR, section B.6).

A linear classifier on a frozen encoder: Nesterov SGD for 90 epochs, with batches of 4096 and a rate of 0.1 batch / 256,
a cosine without warm-up, no penalty; crops and flips. Test images are cropped at the center. The number goes next to
that of logistic regression on features of center crops.
"""

from copy import deepcopy
from typing import cast

import numpy as np
import torch

from simclr_core.config import SgdConfig
from simclr_core.data.dataset import TrainingImages
from simclr_core.data.shares import is_shareable
from simclr_core.evaluation.classifier_training import (
    Labels,
    Optimization,
    Start,
    few_label_augmentation,
    train_classifier,
)
from simclr_core.evaluation.images import EvaluationImages, outputs, percent
from simclr_core.evaluation_reports import AugmentedProbe
from simclr_core.launch import Member
from simclr_core.machine.devices import resolve_precision
from simclr_core.model.model_directory import Model
from simclr_core.schedule import peak_learning_rate

SEED = 0  # of the order of the images, and of their crops


def probe_augmented(
    config: SgdConfig, model: Model, train: EvaluationImages, test: EvaluationImages, classes: int, member: Member
) -> AugmentedProbe:
    """Of the encoder of ``model``, which stays as it is; all processes call this at once. Where they cannot share a
    batch equally, the first one trains alone."""
    known = np.flatnonzero(train.labels >= 0)
    batch_size = min(config.batch_size, len(known))
    alone = Member(0, 1, member.device)
    if not is_shareable(batch_size, member.size):
        found = probe_augmented(config, model, train, test, classes, alone) if member.rank == 0 else None
        return cast("AugmentedProbe", member.from_first(found))
    steps = config.epochs * (len(known) // batch_size)
    peak = peak_learning_rate(config.learning_rate, config.batch_size, "linear")
    how = Optimization(steps, batch_size, peak, resolve_precision("auto", member.device), member)
    images, labels = TrainingImages(train.images), Labels(train.positions[known], train.labels[known], classes)
    crops = few_label_augmentation(model.card, config.crop_scale)
    start = Start(deepcopy(model.encoder), frozen=True)
    network, _ = train_classifier(start, model.card, images, labels, crops, how, SEED)
    (logits,) = outputs([network], test, model, member)
    first = torch.from_numpy(logits).sort(dim=1, descending=True, stable=True).indices[:, :5].numpy()
    hits = first == test.labels[:, None]
    return AugmentedProbe(config.epochs, steps, percent(hits[:, 0]), percent(hits.any(axis=1)))
