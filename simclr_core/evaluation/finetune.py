"""Fine-tuning on few labels (SimCLR, section B.5), compared with the same network trained from random weights.

    python -m simclr_core finetune --fraction 0.01        in a workspace, after pretrain

Every seed draws its own class-balanced labels; the report has the mean over the seeds and its 95 % confidence interval,
next to that of linear probes on the same labels. The baseline has the same labels and steps.
``models/finetuned/<fraction>`` is the network of the first seed, not of the best: the test split chooses nothing.

With ``head_layers`` the first layers of the projection head stay below the classifier (SimCLRv2, Chen et al. 2020b,
section 3). They belong to the encoder from then on, in the model and in what is exported of it.
"""

import copy
import json
import re
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from deploy.artifact import publish
from deploy.plural import counted
from simclr_core import launch, reports
from simclr_core.config import FinetuneConfig
from simclr_core.data.dataset import TrainingImages, require_pixels
from simclr_core.data.shards import read_card
from simclr_core.data.shares import is_shareable
from simclr_core.data.subsets import LabelDraw, subset
from simclr_core.errors import CheckpointError, LabelError
from simclr_core.evaluation.calibration import log_odds
from simclr_core.evaluation.classifier_training import (
    Labels,
    Optimization,
    Start,
    few_label_augmentation,
    from_scratch,
    train_classifier,
)
from simclr_core.evaluation.images import (
    EvaluationImages,
    count_pairs,
    missing_labels,
    outputs,
    percent,
    random_encoder,
    read_facts,
    read_splits,
)
from simclr_core.evaluation.linear_probe import Probe, fit_probe, probe_logits, ranked_classes
from simclr_core.evaluation.multi_label import images as multi_label
from simclr_core.evaluation.multi_label.finetune import Tuned as Likely
from simclr_core.evaluation.multi_label.finetune import describe_precision
from simclr_core.evaluation.multi_label.images import LabelSets
from simclr_core.evaluation.paired_comparison import half_width
from simclr_core.evaluation.scores.classification import BOUND, estimate, score
from simclr_core.evaluation_reports import FinetuneReport, finetune_name
from simclr_core.launch import Member
from simclr_core.machine.devices import resolve_precision
from simclr_core.model.encoder import Encoder
from simclr_core.model.model_directory import Model, load_model, save_model
from simclr_core.model.projection_head import build_projection_head, first_layers
from simclr_core.params import read_block
from simclr_core.reporter import emitter, finish
from simclr_core.schedule import peak_learning_rate

FEW = Fraction("0.01")  # up to here ``epochs_few``: the paper trains 60 epochs on 1 % of ImageNet, 30 on 10 %

PATIENCE = 6  # times the usual wait for another process, ten minutes: it may be fitting a probe
L2_COUNT = 12  # values of the probe's penalty to try, the default of linear_eval


def run(workspace: Path, fraction: str) -> None:
    """Fine-tune ``models/pretrained`` on a fraction of the labels. What cannot be measured without labels is null.

    The processes of a group share each batch if it can be shared equally; else the first one trains alone.

    Raises:
        LabelError: ``fraction`` is not a decimal above 0 and up to 1.
        SimclrError, DeployError: params.yaml, the prepared images or the model cannot be used; CheckpointError when
            its projection head has fewer layers than are to be kept.
    """
    began = time.perf_counter()
    if not re.fullmatch(r"[01]\.\d+", fraction) or not 0 < Fraction(fraction) <= 1:
        raise LabelError(f"fraction {fraction!r}: give a decimal above 0 and up to 1, such as 0.01")
    stage = finetune_name(fraction)
    with launch.member(stage, lambda _: read_inputs(workspace, fraction), PATIENCE) as (member, inputs):
        is_shared = is_shareable(inputs.optimization.batch_size, member.size)
        tuned = tune(inputs, member) if is_shared else None
    if member.rank == 0:
        shown = publish_tuned(workspace, inputs, tuned or tune(inputs, Member(0, 1, member.device)))
        finish(stage, workspace, began, f"{counted(inputs.labels, 'label')}: {shown}")


@dataclass(frozen=True)
class Inputs:
    """What is fine-tuned and on what: by seed the positions of the labels among those of ``train``, and all labels that
    are ``known``. ``sets`` are the labels of both splits where an image may have several."""

    config: FinetuneConfig
    fraction: str
    classes: Sequence[str]
    model: Model
    train: EvaluationImages
    test: EvaluationImages
    sets: tuple[LabelSets, LabelSets] | None
    budgets: Mapping[int, NDArray[np.int64]]
    optimization: Optimization
    reason: str | None
    facts: Mapping[str, object]  # what every process of a group has to have alike

    @property
    def known(self) -> NDArray[np.int64] | NDArray[np.bool_]:
        return self.train.labels if self.sets is None else self.sets[0].targets

    @property
    def labels(self) -> int:
        """The same number for every seed."""
        return len(self.budgets[self.config.seeds[0]])

    @property
    def teaches(self) -> bool:
        """Of one class there is nothing to learn."""
        return self.labels >= 2 and len(np.unique(self.train.labels)) > 1


@dataclass(frozen=True)
class Tuned:
    """By start and seed the networks, and what they say of the test images [n, classes]; by seed the probes, and what
    the encoder makes of the test images [n, d]."""

    networks: Mapping[str, Sequence[nn.Sequential]]
    logits: Mapping[str, Sequence[NDArray[np.float32]]]
    probes: Sequence[Probe]
    queries: NDArray[np.float32]


def read_inputs(workspace: Path, fraction: str) -> Inputs:
    config = read_block(workspace / "params.yaml", "finetune", FinetuneConfig)
    prepared = workspace / "data" / "prepared"
    card = read_card(prepared)
    model = with_head_layers(load_model(workspace / "models" / "pretrained"), config.head_layers)
    require_pixels(card, model.preprocessing, "the encoder")
    sets = multi_label.read_splits(prepared) if card.multi_label else None
    train, test = read_splits(prepared) if sets is None else (sets[0].images, sets[1].images)
    model = model if sets is None else replace(model, card={**model.card, "multi_label": True})
    budgets = {seed: subset(train.labels, train.keys, fraction, seed) for seed in config.seeds}
    labels = len(budgets[config.seeds[0]])
    missing = missing_labels(train, test) if sets is None else multi_label.missing_labels(*sets)
    reason = missing or ("only one labeled training image; label more" if labels < 2 else None)
    nothing = Optimization(0, labels, 0.0)
    facts = read_facts(workspace, "finetune", config)
    inputs = Inputs(config, fraction, card.classes, model, train, test, sets, budgets, nothing, reason, facts)
    return replace(inputs, optimization=plan(config, fraction, labels)) if inputs.teaches else inputs


def tune(inputs: Inputs, member: Member) -> Tuned:
    """Train from the encoder and from scratch, for each seed; all processes of the group call this at once."""
    stage, config, known = finetune_name(inputs.fraction), inputs.config, inputs.known
    train, test, model, classes = inputs.train, inputs.test, inputs.model, len(inputs.classes)
    say = emitter(stage, member.rank)
    if inputs.reason and member.rank == 0:
        print(f"{stage}: no accuracies: {inputs.reason}", file=sys.stderr)
    usual = inputs.optimization
    said = ", ".join(
        (counted(inputs.labels, "label"), counted(len(inputs.budgets), "seed"), counted(usual.steps, "step"))
    )
    say("start", message=f"{said} of {counted(usual.batch_size, 'image')}")
    networks: dict[str, list[nn.Sequential]] = {"pretrained": [], "scratch": []}
    images = TrainingImages(train.images)
    augmentation = few_label_augmentation(model.card, config.crop_scale)
    if not inputs.teaches:
        return Tuned(networks, {}, [], np.empty((0, 0), np.float32))
    bank, queries = (outputs([model.encoder], split, model, member)[0] for split in (train, test))

    def fit(seed: int) -> Probe:
        draw = LabelDraw(inputs.fraction, inputs.budgets[seed])
        return fit_probe(bank, known, train.group_keys, classes, draw, L2_COUNT, seed)

    probes = member.shared(config.seeds, fit)
    usual = replace(usual, member=member, precision=resolve_precision(config.precision, member.device))
    for seed, probe in zip(config.seeds, probes, strict=True):
        budget = inputs.budgets[seed]
        learned = Labels(train.positions[budget], known[budget], classes)
        encoder = copy.deepcopy(model.encoder)
        begin = Start(encoder, probe.head if config.start == "probe" else None)
        starts = {"pretrained": begin, "scratch": Start(random_encoder(model, seed))}
        for name, start in starts.items():
            how = usual if name == "pretrained" else from_scratch(usual)
            network, loss = train_classifier(start, model.card, images, learned, augmentation, how, seed)
            networks[name].append(network)
            say("progress", message=f"seed {seed}, {name}: training loss {loss:.3f}")
    logits = {} if inputs.reason else {name: outputs(own, test, model, member) for name, own in networks.items()}
    return Tuned(networks, logits, probes, queries)


def publish_tuned(workspace: Path, inputs: Inputs, tuned: Tuned) -> str:
    """Write the model and the report; returns a line for a person."""
    config, test, sets, labels, classes = inputs.config, inputs.test, inputs.sets, inputs.labels, inputs.classes
    answers = {} if sets else tuned.logits
    pretrained, scratch = (
        [one.argmax(axis=1) == test.labels for one in answers.get(start, [])] for start in tuned.networks
    )
    report = describe(inputs.fraction, labels, config.seeds, pretrained, scratch, inputs.reason)
    first_budget = inputs.budgets[config.seeds[0]]
    if sets and tuned.logits:
        ours, theirs = ([one.astype(np.float64) for one in tuned.logits[start]] for start in ("pretrained", "scratch"))
        learned_sets = sets[0].targets[first_budget]
        sure = Likely(ours, theirs, [probe_logits(one, tuned.queries) for one in tuned.probes], learned_sets)
        precision = describe_precision(sure, sets[1], classes)
        report = replace(report, test_images=test.labeled, multi_label=precision)
    if pretrained:
        probe_top1 = [
            float(np.mean(ranked_classes(probe, tuned.queries)[:, 0] == test.labels)) for probe in tuned.probes
        ]
        first, learned = tuned.logits["pretrained"][0], inputs.train.labels[first_budget]
        report = replace(
            report,
            scores=score(log_odds(first), test.labels, first.argmax(axis=1), learned, classes),
            probe=estimate(probe_top1, test.labeled, labels),
        )
    with publish(workspace / "models" / "finetuned" / inputs.fraction, replace=True) as work:
        steps = inputs.optimization.steps
        settings = {**config.model_dump(), "fraction": inputs.fraction, "seed": config.seeds[0], "steps": steps}
        save_first(work, tuned.networks["pretrained"], inputs.model, classes, settings, report)
    reports.write(workspace, report)
    if several := report.multi_label:
        return f"mean average precision {several.simclr.value} %, from scratch {several.scratch.value} %"
    return f"top-1 {report.top1} %, from scratch {report.scratch_top1} %" if pretrained else "no accuracies"


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


def plan(config: FinetuneConfig, fraction: str, labels: int) -> Optimization:
    """The steps from the pretrained encoder on this number of labels, at least one."""
    batch_size = min(config.batch_size, labels)
    epochs = config.epochs_few if Fraction(fraction) <= FEW else config.epochs
    rate = peak_learning_rate(config.learning_rate, config.batch_size, config.learning_rate_scaling)
    steps = max(config.min_steps, epochs * (labels // batch_size))
    return Optimization(steps, batch_size, rate, config.optimizer)


def describe(
    fraction: str,
    labels: int,
    seeds: Sequence[int],
    pretrained: Sequence[NDArray[np.bool_]],
    scratch: Sequence[NDArray[np.bool_]],
    reason: str | None,
) -> FinetuneReport:
    """The two ways to start, by their answers for each seed, right or not [n]."""
    ours, theirs = ([percent(one) for one in answers] for answers in (pretrained, scratch))
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
    return round(half_width(values, BOUND), 3) if len(values) > 1 else None


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
    if several := report.multi_label:
        reached = {"mean_average_precision": several.simclr.value, "from_scratch": several.scratch.value}
        card["metrics"] = {"labels": report.labels} | reached
    save_model(directory, encoder, head.state_dict(), card)
