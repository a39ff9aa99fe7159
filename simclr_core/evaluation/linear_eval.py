"""Linear evaluation: what the frozen features are worth, compared with a random encoder, raw pixels, and guessing.

Where pretraining began with given weights, these are compared with too, as they came.

    python -m simclr_core linear_eval        in a workspace, after pretrain

For every share of the labels a multinomial logistic regression is fitted on cached features (SimCLR, section B.8) and
tested on the test split; cosine kNN has every labeled training image in its bank. Nothing is chosen by its test
accuracy. Without labeled test images, the labeled training images are answered out of fold instead (``scores.folds``).
How often one encoder alone is right is counted image by image, so that gates can tell a difference from chance. Writes
``models/probe``, the classifier that a bundle ships, and to ``reports/``: linear_eval.json, the confusion matrix of the
probe on the most labels, what it and kNN say of each answered image (``predictions``), a picture of nearest neighbors,
and a map of the embeddings.

The processes of a group share the images first, and then the sets of features: each fits probes on its part of them.
"""

import sys
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from deploy.images.full_depth import Samples
from simclr_core import launch, reports
from simclr_core.config import LinearEvalConfig
from simclr_core.data.dataset import require_pixels
from simclr_core.data.shards import DatasetCard, read_card
from simclr_core.data.subsets import LabelDraw, draw_labels
from simclr_core.evaluation.features import scaled
from simclr_core.evaluation.images import (
    EvaluationImages,
    encoding,
    made_of,
    missing_labels,
    percent,
    random_encoder,
    read_facts,
    read_splits,
    unadapted_encoder,
)
from simclr_core.evaluation.linear_probe import on_most_labels, save_probe
from simclr_core.evaluation.multi_label import images as multi_label
from simclr_core.evaluation.multi_label.evaluate import evaluate
from simclr_core.evaluation.multi_label.results import save
from simclr_core.evaluation.paired_comparison import out_of_fold_worth
from simclr_core.evaluation.pictures import save_confusion, save_pictures
from simclr_core.evaluation.published.augmented_probe import KEY, describe_steps, probe_augmented
from simclr_core.evaluation.scores import predictions
from simclr_core.evaluation.scores.accuracies import (
    RANDOM_INIT,
    majority_right,
    mean_accuracies,
    pair_with_baselines,
)
from simclr_core.evaluation.scores.budgets import PIXELS, SIMCLR, START, FeatureSets, measure_budgets
from simclr_core.evaluation.scores.folds import ask_test_images, divide, read_near_groups
from simclr_core.evaluation.scores.judgment import Judged, fit_probes, judge, unmeasured
from simclr_core.evaluation_reports import (
    Accuracies,
    AugmentedProbe,
    BudgetAccuracies,
    LinearEvalReport,
    OutOfFold,
)
from simclr_core.launch import Member
from simclr_core.model.encoder import Encoder
from simclr_core.model.model_directory import Model, load_model
from simclr_core.params import read_block
from simclr_core.reporter import emitter, finish

PIXEL_SIDE = 32  # raw pixels are averaged down to at most this side
RANDOM_ENCODERS = 3  # the baseline is their mean: kNN on one draw of the demo's encoder swings by four points
PATIENCE = 144  # times the usual wait for another process, ten minutes: it may be fitting for hours


def run(workspace: Path) -> None:
    """Evaluate ``models/pretrained``. Without labeled training or test images the report says so, and has nulls.

    Raises:
        SimclrError, DeployError: params.yaml, the prepared images or the model cannot be used.
    """
    began = time.perf_counter()
    with launch.member("linear_eval", lambda _: read_inputs(workspace), PATIENCE) as (member, inputs):
        if inputs.card.multi_label:
            kept = None if member.rank == 0 else ()
            bank, queries = (
                inputs.features(one.images, member, kept) for one in multi_label.read_splits(inputs.prepared)
            )
        else:
            measured = measure(workspace, inputs, member)
    if member.rank > 0:
        return
    if inputs.card.multi_label:
        found = evaluate(workspace, inputs.config, inputs.card, bank, queries)
        _say(found.report.reason)
        if inputs.config.sgd is not None:
            _say_of_sgd("is left out: it takes one label for each image, and here an image may have several", member)
        save(workspace, found, inputs.card)
        finish("linear_eval", workspace, began, found.report.reason or "an image may have several labels")
        return
    report = publish(workspace, inputs, measured)
    finish("linear_eval", workspace, began, f"random_init, mean of {RANDOM_ENCODERS}: {_summary(report.random_init)}")


@dataclass(frozen=True)
class Inputs:
    """What is evaluated, and compared with it. ``scratch`` is a folder for features that memory is too small for."""

    config: LinearEvalConfig
    prepared: Path
    card: DatasetCard
    model: Model
    encoders: dict[str, Encoder]
    facts: Mapping[str, object]  # what every process of a group has to have alike
    scratch: Path

    @property
    def names(self) -> list[str]:
        """Of the sets of features."""
        return [*self.encoders, PIXELS]

    def features(
        self, split: EvaluationImages, member: Member, kept: Collection[str] | None
    ) -> dict[str, NDArray[np.float32]]:
        """Features [n, d] of each encoder, and of raw pixels, from one decoding of the images; see ``made_of``."""
        makers = {name: encoding(encoder, self.model, member) for name, encoder in self.encoders.items()}
        makers[PIXELS] = lambda images: torch.from_numpy(pixel_features(images))
        say = emitter("linear_eval", member.rank)

        def count(done: int) -> None:
            say("progress", message=f"features of {done} of {len(split.labels)} images")

        return made_of(split, self.model.preprocessing, makers, member, kept, count, self.scratch)


def read_inputs(workspace: Path) -> Inputs:
    config = read_block(workspace / "params.yaml", "linear_eval", LinearEvalConfig)
    prepared = workspace / "data" / "prepared"
    card, model = read_card(prepared), load_model(workspace / "models" / "pretrained")
    require_pixels(card, model.preprocessing, "the encoder")
    encoders, facts = compared_encoders(workspace, model, config.seed), read_facts(workspace, "linear_eval", config)
    return Inputs(config, prepared, card, model, encoders, facts, workspace / ".simclr")


@dataclass(frozen=True)
class Measured:
    """What the sets of features are worth, by name, and each budget of labels. ``sets`` have the features that this
    process keeps, ``asked`` those of the images that are answered; ``reason`` is why there are no accuracies."""

    sets: FeatureSets
    asked: FeatureSets
    judged: Mapping[str, Judged]
    budgets: Mapping[str, BudgetAccuracies]
    reason: str | None
    augmented: AugmentedProbe | None


def measure(workspace: Path, inputs: Inputs, member: Member) -> Measured:
    """Every process of a group calls this at once, and judges the features of some names."""
    config, card, names = inputs.config, inputs.card, inputs.names
    train, test = read_splits(inputs.prepared)
    reason = missing_labels(train, test)
    draw = partial(_draw, train.keys, config)
    once = partial(draw, draws=1)  # each fold is another draw of the labels
    train = train.with_near(member.from_first({} if member.rank else read_near_groups(workspace)))  # by its disk
    folds = [] if test.labeled else divide(train, config.seed, once)
    if folds:
        reason = None
    elif train.labeled and not test.labeled:
        reason = (
            f"{reason}; or label two training images of each of two classes, where near copies, and images of one "
            "group of labels.csv, count as one"
        )
    say = emitter("linear_eval", member.rank)
    if member.rank == 0:
        _say(reason)
    say("start", message=f"features of {len(train.labels) + len(test.labels)} images")
    own = names[member.rank :: member.size]
    bank, queries = (inputs.features(split, member, own) for split in (train, test))
    sets = FeatureSets(bank, queries, train, test, len(card.classes), ask_test_images(train, test, draw))
    asked = sets
    if folds:
        worth = out_of_fold_worth(len(folds))
        asked = replace(sets, queries=bank, test=train, folds=folds, worth=worth)

    def judge_one(name: str) -> Judged:
        found = unmeasured(config) if reason else judge(asked, name, card.classes, config)
        say("progress", message=f"{name}: {_summary(found.accuracies)}")
        return found

    judged = dict(zip(names, member.shared(names, judge_one), strict=True))
    budgets = {}
    if not reason:
        probes = {name: one.probes for name, one in judged.items()}
        for budget, reached in measure_budgets(probes, asked, config.l2_count, config.seed, member):
            budgets[budget] = reached
            say("progress", message=f"{reached.labels} labels: {_compared(reached)}")
    augmented = None if reason else _measure_augmented(inputs, train, test, member)
    return Measured(sets, asked, judged, budgets, reason, augmented)


def _measure_augmented(
    inputs: Inputs, train: EvaluationImages, test: EvaluationImages, member: Member
) -> AugmentedProbe | None:
    """By SGD on augmented images, where that was asked for and there are labeled test images."""
    config, say = inputs.config.sgd, emitter("linear_eval", member.rank)
    if config is None:
        return None
    if not test.labeled:
        _say_of_sgd("is left out: it needs labeled test images, and these answers are out of fold", member)
        return None
    say("progress", message=describe_steps(train.labeled, config))
    found = probe_augmented(config, inputs.model, train, test, len(inputs.card.classes), member)
    if found.reason is not None:
        _say_of_sgd(f"has no accuracies: {found.reason}", member)
    return found


def _say_of_sgd(what: str, member: Member) -> None:
    if member.rank == 0:
        print(f"linear_eval: {KEY} {what}", file=sys.stderr)


def publish(workspace: Path, inputs: Inputs, measured: Measured) -> LinearEvalReport:
    """Write ``models/probe`` and everything under ``reports/``."""
    card, config, pictures = inputs.card, inputs.config, workspace / "reports"
    sets, asked, judged = measured.sets, measured.asked, measured.judged
    trained, is_folded = judged[SIMCLR], asked is not sets
    fitted = trained.probes[0] if trained.probes and not is_folded else fit_probes(sets, SIMCLR, sets.folds[0], config)
    report = LinearEvalReport(
        simclr=trained.accuracies,
        random_init=mean_accuracies([judged[name].accuracies for name in judged if name.startswith(RANDOM_INIT)]),
        pixels=judged[PIXELS].accuracies,
        labels={probe.fraction: probe.labels for probe in fitted},
        test_images=sets.test.labeled,
        classes=len(card.classes),
        reason=measured.reason,
        start=judged[START].accuracies if START in judged else None,
        estimate="out_of_fold" if is_folded else "test",
        out_of_fold=OutOfFold(sets.train.labeled, len(asked.folds)) if is_folded else None,
    )
    if not measured.reason:
        majority = majority_right(asked)
        report = replace(
            report,
            majority_class=percent(majority),
            paired=pair_with_baselines({name: one.answers for name, one in judged.items() if one.answers}, majority),
            budgets=dict(measured.budgets),
            scores=trained.scores,
            sgd=measured.augmented,
        )
    save_probe(workspace / "models" / "probe", on_most_labels(fitted), card.classes, report, card.digest)
    save_confusion(pictures, asked.test.labels[: len(trained.predicted)], trained.predicted, card.classes)
    save_pictures(pictures, sets, card.classes)
    paths = predictions.read_paths(workspace)
    predictions.save(pictures, predictions.table(report.estimate, asked.test, paths, trained.likely, card.classes))
    reports.write(workspace, report)
    return report


def _say(reason: str | None) -> None:
    if reason:
        print(f"linear_eval: no accuracies: {reason}", file=sys.stderr)


def compared_encoders(workspace: Path, model: Model, seed: int) -> dict[str, Encoder]:
    """The trained encoder, several of random weights, and the one that training began with, if it began with one."""
    encoders = {SIMCLR: model.encoder}
    encoders |= {f"{RANDOM_INIT} {n}": random_encoder(model, seed + n) for n in range(RANDOM_ENCODERS)}
    if (unadapted := unadapted_encoder(workspace, model)) is not None:
        encoders[START] = unadapted
    return encoders


def pixel_features(images: Samples) -> NDArray[np.float32]:
    """[n, s, s, channels] to [n, p * p * channels] in [0, 1], p = min(s, 32), each pixel the mean of its area."""
    side = min(images.shape[1], PIXEL_SIDE)
    pixels = scaled(torch.from_numpy(images))
    return interpolate(pixels, size=(side, side), mode="area").flatten(1).numpy()


def _draw(
    keys: NDArray[np.uint8], config: LinearEvalConfig, labels: NDArray[np.int64], draws: int | None = None
) -> dict[str, list[LabelDraw]]:
    return draw_labels(labels, keys, config.fractions, config.labels_per_class, draws or config.draws, config.seed)


def _summary(accuracies: Accuracies) -> str:
    linear = ", ".join(f"{_shown(value)} on {fraction}" for fraction, value in accuracies.linear_top1.items())
    return f"kNN {_shown(accuracies.knn_top1)}; linear {linear} of the labels"


def _compared(reached: BudgetAccuracies) -> str:
    random, pixels = reached.random_init.top1, reached.pixels.top1
    return f"linear {reached.simclr.top1:.1f} %, random weights {random:.1f} %, raw pixels {pixels:.1f} %"


def _shown(percent: float | None) -> str:
    return "none" if percent is None else f"{percent:.1f} %"
