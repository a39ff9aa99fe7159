"""Fine-tuning on few labels (SimCLR, section B.5), compared with the same network trained from random weights.

    python -m simclr_core finetune --fraction 0.01        in a workspace, after pretrain

The recipe is the paper's: the whole network, Nesterov SGD, a cosine without warm-up, no weight decay of the encoder,
crops and flips as the only augmentation. Every seed draws its own class-balanced labels; the report has the mean over
the seeds and its 95 % confidence interval, next to that of linear probes on the same labels. The baseline has the same
labels and steps. With ``start: probe`` the head begins as that of the probe and keeps the penalty that it has chosen
(after Kumar et al. 2022, "Fine-tuning can distort pretrained features"), otherwise at zero.
``models/finetuned/<fraction>`` is the network of
the first seed, not of the best: the test split chooses nothing.

With ``head_layers`` the first layers of the projection head stay below the classifier (SimCLRv2, Chen et al. 2020b,
section 3). They belong to the encoder from then on, in the model and in what is exported of it.
"""

import copy
import json
import math
import re
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from deploy.artifact import publish
from simclr_core import reports
from simclr_core.augmentation.augmentations import Augmentation
from simclr_core.config import FinetuneConfig
from simclr_core.data.dataset import TrainingImages, require_pixels
from simclr_core.data.order import permuted
from simclr_core.data.shards import ShardedImages, read_card
from simclr_core.data.subsets import subset
from simclr_core.errors import CheckpointError, LabelError, NonFiniteFeaturesError
from simclr_core.evaluation.features import extract
from simclr_core.evaluation.fewest import FINETUNE_STEPS
from simclr_core.evaluation.images import EvaluationImages, count_pairs, missing_labels, random_encoder
from simclr_core.evaluation.linear_probe import Probe, fit_probe, ranked_classes
from simclr_core.evaluation.logistic_regression import STRONGEST_L2, LinearHead, standardization
from simclr_core.evaluation.scores.classification import estimate, score
from simclr_core.evaluation_reports import FinetuneReport
from simclr_core.model.encoder import Encoder
from simclr_core.model.model_directory import Model, load_model, save_model
from simclr_core.model.projection_head import build_projection_head, first_layers
from simclr_core.params import read_block
from simclr_core.reporter import emit, record_timing
from simclr_core.schedule import learning_rate, peak_learning_rate

FEW = Fraction("0.01")  # up to here ``epochs_few``: the paper trains 60 epochs on 1 % of ImageNet, 30 on 10 %

# Random weights move further: on the demo's 1 % and 10 % of the labels, judged on training images outside the budget,
# 4 to 8 times the rate is best from scratch.
SCRATCH_RATE = 4.0
L2_COUNT = 12  # values of the probe's penalty to try, the default of linear_eval

STUDENT_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
"""97.5 % quantiles for 1 to 30 degrees of freedom (NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.2)."""


@dataclass(frozen=True)
class Labels:
    """What is known of the images to train on: ``positions`` [n] among the training images, ``labels`` [n] below
    ``classes``."""

    positions: NDArray[np.int64]
    labels: NDArray[np.int64]
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


def run(workspace: Path, fraction: str) -> None:
    """Fine-tune ``models/pretrained`` on a fraction of the labels. What cannot be measured for want of labels is null.

    Raises:
        LabelError: ``fraction`` is not a decimal above 0 and up to 1.
        SimclrError, DeployError: params.yaml, the prepared images or the model cannot be used; CheckpointError when
            its projection head has fewer layers than are to be kept.
    """
    began = time.perf_counter()
    stage = f"finetune-{fraction}"
    if not re.fullmatch(r"[01]\.\d+", fraction) or not 0 < Fraction(fraction) <= 1:
        raise LabelError(f"fraction {fraction!r}: give a decimal above 0 and up to 1, such as 0.01")
    config = read_block(workspace / "params.yaml", "finetune", FinetuneConfig)
    prepared = workspace / "data" / "prepared"
    card = read_card(prepared)
    classes = card.classes
    model = with_head_layers(load_model(workspace / "models" / "pretrained"), config.head_layers)
    require_pixels(card, model.preprocessing, "the encoder")
    train, test = (EvaluationImages.of(ShardedImages(prepared / split)) for split in ("train", "test"))
    budgets = {seed: subset(train.labels, train.keys, fraction, seed) for seed in config.seeds}
    labels = len(budgets[config.seeds[0]])  # the same number for every seed
    reason = missing_labels(train, test) or ("only one labeled training image; label more" if labels < 2 else None)
    if reason:
        print(f"{stage}: no accuracies: {reason}", file=sys.stderr)

    batch_size = min(config.batch_size, labels)
    epochs = config.epochs_few if Fraction(fraction) <= FEW else config.epochs
    teach = labels >= 2 and len(np.unique(train.labels)) > 1  # of one class there is nothing to learn
    steps = max(FINETUNE_STEPS, epochs * (labels // batch_size)) if teach else 0
    rate = peak_learning_rate(config.learning_rate, config.batch_size, "linear")  # also where there are fewer labels
    emit("start", stage=stage, message=f"{labels} labels, {len(budgets)} seeds, {steps} steps of {batch_size} images")
    networks: dict[str, list[nn.Sequential]] = {"pretrained": [], "scratch": []}
    images = TrainingImages(train.images)
    augmentation = few_label_augmentation(model.card, config.crop_scale)
    bank, queries = (frozen_features(split, model) if steps else None for split in (train, test))
    probe_top1 = []
    for seed, budget in budgets.items() if steps else ():
        known = Labels(train.positions[budget], train.labels[budget], len(classes))
        assert bank is not None
        assert queries is not None
        probe = fit_probe(bank, train.labels, train.keys, len(classes), fraction, L2_COUNT, seed)
        if not reason:
            probe_top1.append(float(np.mean(ranked_classes(probe, queries)[:, 0] == test.labels)))
        for start, trained in networks.items():
            if start == "pretrained":
                begin, peak = at_probe(copy.deepcopy(model.encoder), probe, bank), rate
                begin = begin if config.start == "probe" else Start(begin.encoder)
            else:
                begin, peak = Start(random_encoder(model, seed)), SCRATCH_RATE * rate
            optimization = Optimization(steps, batch_size, peak)
            network, loss = train_classifier(begin, model.card, images, known, augmentation, optimization, seed)
            trained.append(network)
            emit("progress", stage=stage, message=f"seed {seed}, {start}: training loss {loss:.3f}")

    logits = {} if reason else {start: answer(trained, test, model) for start, trained in networks.items()}
    pretrained, scratch = ([one.argmax(axis=1) == test.labels for one in logits.get(start, [])] for start in networks)
    report = describe(fraction, labels, config.seeds, pretrained, scratch, reason)
    if pretrained:
        first, learned = logits["pretrained"][0], train.labels[budgets[config.seeds[0]]]
        report = replace(
            report,
            scores=score(first, test.labels, first.argmax(axis=1), learned, classes),
            probe=estimate(probe_top1, test.labeled, labels),
        )
    with publish(workspace / "models" / "finetuned" / fraction, replace=True) as work:
        settings = {**config.model_dump(), "fraction": fraction, "seed": config.seeds[0], "steps": steps}
        save_first(work, networks["pretrained"], model, classes, settings, report)
    reports.write(workspace, report)
    seconds = time.perf_counter() - began
    record_timing(stage, workspace=workspace, seconds=seconds)
    shown = f"top-1 {report.top1} %, from scratch {report.scratch_top1} %" if pretrained else "no accuracies"
    emit("end", stage=stage, message=f"{labels} labels: {shown}", seconds=round(seconds, 1))


def with_head_layers(model: Model, layers: int) -> Model:
    """``model`` with the first ``layers`` of its projection head at the end of its encoder.

    Raises:
        CheckpointError: the head has fewer.
    """
    if layers == 0:
        return model
    settings = model.card["config"]["projection_head"]
    if layers > settings["layers"]:
        raise CheckpointError(
            f"finetune.head_layers is {layers}, but the projection head of models/pretrained has {settings['layers']}; "
            "give at most this many, or pretrain again with more pretrain.projection_head.layers"
        )
    head = build_projection_head(model.encoder.feature_dim, **settings)
    head.load_state_dict(model.head)
    kept, width = first_layers(head, layers)
    encoder = Encoder(model.encoder.backbone, width, kept).eval()
    card = {**model.card, "feature_dim": width, "head_layers": layers, "projection_head": settings}
    return replace(model, encoder=encoder, card=card)


def frozen_features(split: EvaluationImages, model: Model) -> NDArray[np.float32]:
    """The encoder's output for the images of a split: [n, d]."""
    chunks = split.chunks(model.preprocessing)
    return np.concatenate([extract(model.encoder, one, model.card["mean"], model.card["std"]) for one in chunks])


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
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(seed)  # for networks that draw: dropout, stochastic depth
    head = nn.Linear(start.encoder.feature_dim, known.classes)
    with torch.no_grad():
        head.weight.copy_(start.head.weight.T if start.head else torch.zeros(()))
        head.bias.copy_(start.head.bias if start.head else torch.zeros(()))
    network = nn.Sequential(start.encoder, head).to(device).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=optimization.peak_rate, momentum=0.9, nesterov=True)
    mean, std = (torch.tensor(card[name], device=device).view(3, 1, 1) for name in ("mean", "std"))
    decay = None if start.decay is None else start.decay.to(device)
    loss = torch.zeros(())
    positions, batch_size = known.positions, optimization.batch_size
    for step in range(optimization.steps):
        epoch, turn = divmod(step, len(positions) // batch_size)
        rows = permuted(seed, epoch, np.arange(turn * batch_size, (turn + 1) * batch_size), len(positions))
        pixels, sizes = images.batch(positions[rows])
        views = augmentation.view(pixels.to(device), sizes, seed, epoch, torch.from_numpy(positions[rows]), view=0)
        views = ((views - mean) / std).contiguous(memory_format=torch.channels_last)
        loss = cross_entropy(network(views), torch.from_numpy(known.labels[rows]).to(device))
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


def few_label_augmentation(card: dict[str, Any], crop_scale: tuple[float, float]) -> Augmentation:
    """Crops, and flips where pretraining took them to leave the class alone."""
    flip = card["config"]["augmentation"]["flip"]
    return Augmentation(card["preprocessing"]["size"], crop_scale, flip=flip, jitter_probability=0, grayscale=0, blur=0)


def answer(networks: Sequence[nn.Sequential], test: EvaluationImages, model: Model) -> list[NDArray[np.float32]]:
    """The logits of each network for the test images, [n, classes]; nothing without labeled test images."""
    if not test.labeled or not networks:
        return []
    found: list[list[NDArray[np.float32]]] = [[] for _ in networks]
    for images in test.chunks(model.preprocessing):
        for network, chunks in zip(networks, found, strict=True):
            chunks.append(extract(network, images, model.card["mean"], model.card["std"]))
    return [np.concatenate(chunks) for chunks in found]


def describe(
    fraction: str,
    labels: int,
    seeds: Sequence[int],
    pretrained: Sequence[NDArray[np.bool_]],
    scratch: Sequence[NDArray[np.bool_]],
    reason: str | None,
) -> FinetuneReport:
    """The two ways to start, by their answers for each seed, right or not [n]."""
    ours, theirs = ([round(100 * float(one.mean()), 3) for one in answers] for answers in (pretrained, scratch))
    intervals = [
        estimate([float(one.mean()) for one in answers], len(answers[0]), labels) if answers else None
        for answers in (pretrained, scratch)
    ]
    return FinetuneReport(
        fraction=fraction,
        labels=labels,
        seeds=tuple(seeds),
        top1=round(statistics.fmean(ours), 3) if ours else None,
        ci95=confidence_interval(ours),
        scratch_top1=round(statistics.fmean(theirs), 3) if theirs else None,
        scratch_ci95=confidence_interval(theirs),
        top1_per_seed=tuple(ours),
        scratch_top1_per_seed=tuple(theirs),
        reason=reason,
        test_images=len(pretrained[0]) if pretrained else None,
        paired=count_pairs(zip(pretrained, scratch, strict=True)) if pretrained else None,
        interval=intervals[0],
        scratch_interval=intervals[1],
    )


def confidence_interval(values: Sequence[float]) -> float | None:
    """Half the width of the 95 % interval of the mean, by Student's t; None for fewer than two values."""
    if len(values) < 2:
        return None
    quantile = STUDENT_T[min(len(values) - 1, len(STUDENT_T)) - 1]  # above 30 degrees up to 4 % too wide
    return round(quantile * statistics.stdev(values) / math.sqrt(len(values)), 3)


def save_first(
    directory: Path,
    networks: Sequence[nn.Sequential],
    model: Model,
    classes: Sequence[str],
    settings: Mapping[str, object],
    report: FinetuneReport,
) -> None:
    """Write the network of the first seed as a model; without one, ``reason.json``."""
    if not networks:
        reason = {"reason": report.reason}
        (directory / "reason.json").write_text(json.dumps(reason) + "\n", encoding="utf-8")
        return
    encoder, head = networks[0]
    assert isinstance(encoder, Encoder)
    metrics = {key: getattr(report, key) for key in ("labels", "top1", "ci95", "scratch_top1", "scratch_ci95")}
    card = {**model.card, "kind": "finetuned", "classes": list(classes), "config": settings, "metrics": metrics}
    save_model(directory, encoder, head.state_dict(), card)
