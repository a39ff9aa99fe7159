"""The linear evaluation by which ImageNet's numbers are published: SGD on augmented images (SimCLR, section B.6).

A linear classifier on a frozen encoder: Nesterov SGD for 90 epochs, with batches of 4096 and a rate of 0.1 batch / 256,
a cosine without warm-up, no penalty; crops and flips. Test images are cropped at the center. Where fewer images are
labeled, all of them are a batch, and the rate is that of such a batch. The number goes next to that of logistic
regression on features of center crops, and nothing else depends on it: what goes wrong here is its ``reason``.
"""

from copy import deepcopy
from dataclasses import replace
from typing import cast

import numpy as np
import torch

from deploy.plural import counted
from simclr_core.config import SgdConfig
from simclr_core.data.dataset import TrainingImages
from simclr_core.data.shares import is_shareable
from simclr_core.errors import NonFiniteFeaturesError
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
KEY = "linear_eval.sgd"
RATE_KEY = f"{KEY}.learning_rate"


def probe_augmented(
    config: SgdConfig, model: Model, train: EvaluationImages, test: EvaluationImages, classes: int, member: Member
) -> AugmentedProbe:
    """Of the encoder of ``model``, which stays as it is; all processes call this at once. Where they cannot share a
    batch equally, the first one trains alone."""
    known = np.flatnonzero(train.labels >= 0)
    batch_size = steps_over(len(known), config).batch_size
    alone = Member(0, 1, member.device)
    if not is_shareable(batch_size, member.size):
        found = probe_augmented(config, model, train, test, classes, alone) if member.rank == 0 else None
        return cast("AugmentedProbe", member.from_first(found))
    how = replace(steps_over(len(known), config), precision=resolve_precision("auto", member.device), member=member)
    images, labels = TrainingImages(train.images), Labels(train.positions[known], train.labels[known], classes)
    crops = few_label_augmentation(model.card, config.crop_scale)
    start = Start(deepcopy(model.encoder), frozen=True)
    try:
        network, _ = train_classifier(start, model.card, images, labels, crops, how, SEED)
    except NonFiniteFeaturesError as error:  # on every process
        return AugmentedProbe(config.epochs, how.steps, None, None, str(error))
    (logits,) = outputs([network], test, model, member)
    first = torch.from_numpy(logits).sort(dim=1, descending=True, stable=True).indices[:, :5].numpy()
    hits = first == test.labels[:, None]
    return AugmentedProbe(config.epochs, how.steps, percent(hits[:, 0]), percent(hits.any(axis=1)))


def steps_over(images: int, config: SgdConfig) -> Optimization:
    """The steps over this number of labeled images; of fewer than a batch, all of them in each."""
    batch_size = min(config.batch_size, images)
    peak = peak_learning_rate(config.learning_rate, batch_size, "linear")
    return Optimization(config.epochs * (images // batch_size), batch_size, peak, rate_key=RATE_KEY)


def describe_steps(images: int, config: SgdConfig) -> str:
    """For a person, before they are taken."""
    how = steps_over(images, config)
    said = (
        f"{KEY}: {counted(how.steps, 'step')} of {counted(how.batch_size, 'image')}, learning rate {how.peak_rate:.3g}"
    )
    if config.batch_size <= images:
        return said
    return f"{said}; {KEY}.batch_size is {config.batch_size:,}, and a smaller one than {images:,} takes more steps"
