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
"""

import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from deploy.images.full_depth import Samples
from simclr_core import reports
from simclr_core.config import LinearEvalConfig
from simclr_core.data.dataset import require_pixels
from simclr_core.data.shards import read_card
from simclr_core.data.subsets import LabelDraw, draw_labels
from simclr_core.evaluation.features import extract, scaled
from simclr_core.evaluation.images import (
    Answers,
    EvaluationImages,
    count_pairs,
    missing_labels,
    percent,
    random_encoder,
    read_splits,
    unadapted_encoder,
)
from simclr_core.evaluation.knn import knn_votes, shares
from simclr_core.evaluation.linear_probe import Probe, fit_probe, probabilities, ranked_classes, save_probe
from simclr_core.evaluation.multi_label.evaluate import evaluate
from simclr_core.evaluation.multi_label.results import save
from simclr_core.evaluation.paired_comparison import out_of_fold_worth
from simclr_core.evaluation.pictures import save_confusion, save_pictures
from simclr_core.evaluation.scores import predictions
from simclr_core.evaluation.scores.budgets import SIMCLR, START, FeatureSets, measure_budgets
from simclr_core.evaluation.scores.classification import score
from simclr_core.evaluation.scores.folds import Fold, ask_test_images, divide, gather, read_near_groups
from simclr_core.evaluation_reports import (
    Accuracies,
    BudgetAccuracies,
    LinearEvalReport,
    OutOfFold,
    PairedCounts,
    Scores,
)
from simclr_core.machine.devices import choose_device
from simclr_core.model.encoder import Encoder
from simclr_core.model.model_directory import Model, load_model
from simclr_core.params import read_block
from simclr_core.reporter import emit, finish

PIXEL_SIDE = 32  # raw pixels are averaged down to at most this side
RANDOM_INIT = "random_init"
RANDOM_ENCODERS = 3  # the baseline is their mean: kNN on one draw of the demo's encoder swings by four points


def run(workspace: Path) -> None:
    """Evaluate ``models/pretrained``. Without labeled training or test images the report says so, and has nulls.

    Raises:
        SimclrError, DeployError: params.yaml, the prepared images or the model cannot be used.
    """
    began = time.perf_counter()
    config = read_block(workspace / "params.yaml", "linear_eval", LinearEvalConfig)
    prepared, pictures = workspace / "data" / "prepared", workspace / "reports"
    card = read_card(prepared)
    model = load_model(workspace / "models" / "pretrained")
    require_pixels(card, model.preprocessing, "the encoder")
    encoders = compared_encoders(workspace, model, config.seed)
    if card.multi_label:
        found = evaluate(workspace, config, card, partial(feature_sets, encoders=encoders, model=model))
        _say(found.report.reason)
        save(workspace, found, card)
        finish("linear_eval", workspace, began, found.report.reason or "an image may have several labels")
        return
    train, test = read_splits(prepared)
    reason = missing_labels(train, test)
    draw = partial(_draw, train.keys, config)
    once = partial(draw, draws=1)  # each fold is another draw of the labels
    folds = [] if test.labeled else divide(train, read_near_groups(workspace), config.seed, once)
    if folds:
        reason = None
    elif train.labeled and not test.labeled:
        reason = (
            f"{reason}; or label two training images of each of two classes, where near copies, and images of one "
            "group of labels.csv, count as one"
        )
    _say(reason)

    emit("start", stage="linear_eval", message=f"features of {len(train.labels) + len(test.labels)} images")
    bank, queries = (feature_sets(split, encoders, model) for split in (train, test))
    sets = FeatureSets(bank, queries, train, test, len(card.classes), ask_test_images(train, test, draw))
    asked = sets
    if folds:
        worth = out_of_fold_worth(len(folds))
        asked = replace(sets, queries=bank, test=train, folds=folds, worth=worth)
    judged: dict[str, Judged] = {}
    for name in sets.bank:
        judged[name] = unmeasured(config) if reason else judge(asked, name, card.classes, config)
        emit("progress", stage="linear_eval", message=f"{name}: {_summary(judged[name].accuracies)}")
    trained = judged[SIMCLR]
    fitted = trained.probes[0] if trained.probes and not folds else fit_probes(sets, SIMCLR, sets.folds[0], config)
    report = LinearEvalReport(
        simclr=trained.accuracies,
        random_init=mean_accuracies([judged[name].accuracies for name in judged if name.startswith(RANDOM_INIT)]),
        pixels=judged["pixels"].accuracies,
        labels={probe.fraction: probe.labels for probe in fitted},
        test_images=test.labeled,
        classes=len(card.classes),
        reason=reason,
        start=judged[START].accuracies if START in judged else None,
        estimate="out_of_fold" if folds else "test",
        out_of_fold=OutOfFold(train.labeled, len(folds)) if folds else None,
    )
    if not reason:
        majority, probes = majority_right(asked), {name: one.probes for name, one in judged.items()}
        budgets = {}
        for budget, reached in measure_budgets(probes, asked, config.l2_count, config.seed):
            budgets[budget] = reached
            emit("progress", stage="linear_eval", message=f"{reached.labels} labels: {_compared(reached)}")
        report = replace(
            report,
            majority_class=percent(majority),
            paired=pair_with_baselines({name: one.answers for name, one in judged.items() if one.answers}, majority),
            budgets=budgets,
            scores=trained.scores,
        )
    save_probe(workspace / "models" / "probe", _largest(fitted), card.classes, report, card.digest)
    save_confusion(pictures, asked.test.labels[: len(trained.predicted)], trained.predicted, card.classes)
    save_pictures(pictures, sets, card.classes)
    paths = predictions.read_paths(workspace)
    predictions.save(pictures, predictions.table(report.estimate, asked.test, paths, trained.likely, card.classes))
    reports.write(workspace, report)
    finish("linear_eval", workspace, began, f"random_init, mean of {RANDOM_ENCODERS}: {_summary(report.random_init)}")


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


@dataclass(frozen=True)
class Judged:
    """What one encoder's features are worth: by fold a probe for each share of the labels, and how often answers are
    right.

    The last three are of the trained encoder alone: of each answered image the probability of each class, [n, classes],
    by classifier, and the probe's answer, [n]; and what the answers are worth by class.
    """

    probes: list[list[Probe]]
    accuracies: Accuracies
    answers: Answers | None = None
    likely: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    predicted: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    scores: dict[str, Scores] = field(default_factory=dict)


def unmeasured(config: LinearEvalConfig) -> Judged:
    """Where labels are missing."""
    unknown: dict[str, float | None] = dict.fromkeys(config.fractions)
    return Judged([], Accuracies(None, unknown, unknown))


def judge(sets: FeatureSets, name: str, classes: Sequence[str], config: LinearEvalConfig) -> Judged:
    """In each fold fit a probe on a draw of each share of the labels, and ask it and kNN for the classes."""
    bank, queries, labels, folds = sets.bank[name], sets.queries[name], sets.test.labels, sets.folds
    probes = [fit_probes(sets, name, fold, config) for fold in folds]
    votes = gather(folds, [_votes(bank, queries, fold, len(classes), config) for fold in folds])
    largest = [_largest(one) for one in probes]
    asked = [queries[fold.asked] for fold in folds]
    first = gather(folds, [ranked_classes(probe, one)[:, 0] for probe, one in zip(largest, asked, strict=True)])
    answers = {"knn": votes.argmax(axis=1), "probe": first}
    right = Answers(**{classifier: answer == labels for classifier, answer in answers.items()})
    accuracies = Accuracies(percent(right.knn), *linear_accuracies(probes, queries, labels, folds))
    if name != SIMCLR:
        return Judged(probes, accuracies, right)
    sure = gather(folds, [probabilities(probe, one) for probe, one in zip(largest, asked, strict=True)])
    ranked = {"knn": votes, "probe": sure}
    scores = {one: score(ranked[one], labels, answers[one], sets.train.labels, classes, sets.worth) for one in answers}
    return Judged(probes, accuracies, right, {"knn": shares(votes), "probe": sure}, first, scores)


def fit_probes(sets: FeatureSets, name: str, fold: Fold, config: LinearEvalConfig) -> list[Probe]:
    """One on the first draw of each share of the labels."""
    bank, keys, classes = sets.bank[name], sets.train.keys, sets.classes
    draws = [fold.drawn[fraction][0] for fraction in config.fractions]
    return [fit_probe(bank, fold.known, keys, classes, draw, config.l2_count, config.seed) for draw in draws]


def _largest(probes: Sequence[Probe]) -> Probe:
    """The probe on the most labels."""
    return max(probes, key=lambda probe: Fraction(probe.fraction))


def _votes(
    bank: NDArray[np.float32], queries: NDArray[np.float32], fold: Fold, classes: int, config: LinearEvalConfig
) -> NDArray[np.float64]:
    """Of the images whose labels are known, for those that are asked about: [n, classes]."""
    seen = fold.known >= 0
    return knn_votes(
        bank[seen],
        fold.known[seen],
        queries[fold.asked],
        classes,
        config.knn_neighbours,
        config.knn_temperature,
    )


def mean_accuracies(draws: Sequence[Accuracies]) -> Accuracies:
    """The mean of each number; None where there is none."""
    fractions = draws[0].linear_top1
    return Accuracies(
        _mean([draw.knn_top1 for draw in draws]),
        {fraction: _mean([draw.linear_top1[fraction] for draw in draws]) for fraction in fractions},
        {fraction: _mean([draw.linear_top5[fraction] for draw in draws]) for fraction in fractions},
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(statistics.fmean(known), 3) if known else None


def feature_sets(split: EvaluationImages, encoders: dict[str, Encoder], model: Model) -> dict[str, NDArray[np.float32]]:
    """Features [n, d] of each encoder, and of raw pixels, from one decoding of the images."""
    device = choose_device()
    chunks: dict[str, list[NDArray[np.float32]]] = {name: [] for name in (*encoders, "pixels")}
    done = 0
    for images in split.chunks(model.preprocessing):
        for name, encoder in encoders.items():
            chunks[name].append(extract(encoder.to(device), images, model.card["mean"], model.card["std"]))
        chunks["pixels"].append(pixel_features(images))
        done += len(images)
        emit("progress", stage="linear_eval", message=f"features of {done} of {len(split.labels)} images")
    return {name: np.concatenate(parts) for name, parts in chunks.items()}


def pixel_features(images: Samples) -> NDArray[np.float32]:
    """[n, s, s, channels] to [n, p * p * channels] in [0, 1], p = min(s, 32), each pixel the mean of its area."""
    side = min(images.shape[1], PIXEL_SIDE)
    pixels = scaled(torch.from_numpy(images))
    return interpolate(pixels, size=(side, side), mode="area").flatten(1).numpy()


def linear_accuracies(
    probes: Sequence[Sequence[Probe]], features: NDArray[np.float32], labels: NDArray[np.int64], folds: Sequence[Fold]
) -> tuple[dict[str, float | None], dict[str, float | None]]:
    """By label budget, the percentage of images whose class comes first, and among the first five.

    ``probes`` are by fold; ``features`` [n, d] and ``labels`` [n] are of the images that are asked about.
    """
    top1: dict[str, float | None] = {}
    top5: dict[str, float | None] = {}
    for of_budget in zip(*probes, strict=True):
        hits: NDArray[np.bool_] = gather(
            folds,
            [
                ranked_classes(probe, features[fold.asked])[:, :5] == labels[fold.asked, None]
                for probe, fold in zip(of_budget, folds, strict=True)
            ],
        )
        top1[of_budget[0].fraction] = percent(hits[:, 0])
        top5[of_budget[0].fraction] = percent(np.logical_or.reduce(hits, axis=1))
    return top1, top5


def majority_right(sets: FeatureSets) -> NDArray[np.bool_]:
    """Which images [n] are of the class that most known labels are of; the first one of several."""
    labels = sets.test.labels
    most = [np.bincount(fold.known[fold.known >= 0]).argmax() for fold in sets.folds]
    right = [labels[fold.asked] == one for fold, one in zip(sets.folds, most, strict=True)]
    return gather(sets.folds, right)


def pair_with_baselines(
    answers: Mapping[str, Answers], majority: NDArray[np.bool_]
) -> dict[str, dict[str, PairedCounts]]:
    """By classifier and baseline, how many test images the trained encoder alone gets right, and the baseline alone."""
    draws = [name for name in answers if name.startswith(RANDOM_INIT)]

    def against(trained: NDArray[np.bool_], others: Mapping[str, NDArray[np.bool_]]) -> dict[str, PairedCounts]:
        return {
            RANDOM_INIT: count_pairs((trained, others[draw]) for draw in draws),
            "pixels": count_pairs([(trained, others["pixels"])]),
            "majority": count_pairs([(trained, majority)]),
            **({START: count_pairs([(trained, others[START])])} if START in others else {}),
        }

    return {
        "knn": against(answers[SIMCLR].knn, {name: one.knn for name, one in answers.items()}),
        "probe": against(answers[SIMCLR].probe, {name: one.probe for name, one in answers.items()}),
    }


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
