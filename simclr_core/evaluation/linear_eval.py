"""Linear evaluation: what the frozen features are worth, compared with a random encoder, raw pixels, and guessing.

Where pretraining began with given weights, these are compared with too, as they came.

    python -m simclr_core linear_eval        in a workspace, after pretrain

For every share of the labels a multinomial logistic regression is fitted on cached features (SimCLR, section B.8) and
tested on the test split; cosine kNN has every labeled training image in its bank. Nothing is chosen by its test
accuracy. How often one encoder alone is right is counted image by image, so that gates can tell a difference from
chance. Writes ``models/probe``, the classifier that a bundle ships, and to ``reports/``: linear_eval.json, the
confusion matrix of that classifier, what it and kNN say of each test image (``predictions``), a picture of nearest
neighbors, and a map of the embeddings.
"""

import csv
import io
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from deploy.artifact import write_atomically
from deploy.images.preprocess import decode
from simclr_core import plots, reports
from simclr_core.config import LinearEvalConfig
from simclr_core.data.dataset import require_pixels
from simclr_core.data.shards import ShardedImages, read_card
from simclr_core.data.subsets import draw_labels
from simclr_core.evaluation.embedding_map import save_map
from simclr_core.evaluation.features import extract
from simclr_core.evaluation.images import (
    Answers,
    EvaluationImages,
    count_pairs,
    missing_labels,
    random_encoder,
    unadapted_encoder,
)
from simclr_core.evaluation.knn import knn_votes, nearest, shares
from simclr_core.evaluation.linear_probe import Probe, fit_drawn, probabilities, ranked_classes, save_probe
from simclr_core.evaluation.scores import predictions
from simclr_core.evaluation.scores.budgets import START, FeatureSets, measure_budgets
from simclr_core.evaluation.scores.classification import score
from simclr_core.evaluation_reports import Accuracies, LinearEvalReport, PairedCounts, Scores
from simclr_core.model.encoder import Encoder
from simclr_core.model.model_directory import Model, load_model
from simclr_core.params import read_block
from simclr_core.reporter import emit, record_timing

PIXEL_SIDE = 32  # raw pixels are averaged down to at most this side
RANDOM_INIT = "random_init"
RANDOM_ENCODERS = 3  # the baseline is their mean: kNN on one draw of the demo's encoder swings by four points
QUERIES, NEIGHBORS = 8, 6  # rows and columns of the picture of neighbors


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
    train, test = (EvaluationImages.of(ShardedImages(prepared / split)) for split in ("train", "test"))
    reason = missing_labels(train, test)
    if reason:
        print(f"linear_eval: no accuracies: {reason}", file=sys.stderr)

    emit("start", stage="linear_eval", message=f"features of {len(train.labels) + len(test.labels)} images")
    random_encoders = {f"{RANDOM_INIT} {n}": random_encoder(model, config.seed + n) for n in range(RANDOM_ENCODERS)}
    encoders = {"simclr": model.encoder, **random_encoders}
    if (unadapted := unadapted_encoder(workspace, model)) is not None:
        encoders[START] = unadapted
    bank, queries = (feature_sets(split, encoders, model) for split in (train, test))
    drawn = draw_labels(train.labels, train.keys, config.fractions, config.labels_per_class, config.draws, config.seed)
    classifier = (len(card.classes), config.knn_neighbours, config.knn_temperature)
    answers: dict[str, Answers] = {}
    accuracies: dict[str, Accuracies] = {}
    probes: dict[str, list[Probe]] = {}
    scores: dict[str, Scores] = {}
    likely: dict[str, NDArray[np.float64]] = {}
    for name, features in bank.items():
        probes[name] = [
            fit_drawn(
                features, train.labels, train.keys, len(card.classes), drawn[one][0], config.l2_count, config.seed
            )
            for one in config.fractions
        ]
        unknown: dict[str, float | None] = dict.fromkeys(config.fractions)
        accuracies[name] = Accuracies(None, unknown, unknown)
        if not reason:
            votes = knn_votes(features, train.labels, queries[name], *classifier)
            best_class = ranked_classes(_largest(probes[name]), queries[name])[:, 0]
            answers[name] = Answers(votes.argmax(axis=1) == test.labels, best_class == test.labels)
            linear = linear_accuracies(probes[name], queries[name], test)
            accuracies[name] = Accuracies(_percent(answers[name].knn), *linear)
            if name == "simclr":
                likely = {"knn": shares(votes), "probe": probabilities(_largest(probes[name]), queries[name])}
                about = (train.labels, card.classes)
                scores["knn"] = score(votes, test.labels, votes.argmax(axis=1), *about)
                scores["probe"] = score(likely["probe"], test.labels, best_class, *about)
        emit("progress", stage="linear_eval", message=f"{name}: {_summary(accuracies[name])}")
    report = LinearEvalReport(
        simclr=accuracies["simclr"],
        random_init=mean_accuracies([accuracies[name] for name in random_encoders]),
        pixels=accuracies["pixels"],
        labels={probe.fraction: probe.labels for probe in probes["simclr"]},
        test_images=test.labeled,
        classes=len(card.classes),
        reason=reason,
        majority_class=None if reason else _percent(majority_right(train, test)),
        paired={} if reason else pair_with_baselines(answers, majority_right(train, test)),
        budgets={}
        if reason
        else measure_budgets(
            drawn, probes, FeatureSets(bank, queries, train, test), len(card.classes), config.l2_count, config.seed
        ),
        scores=scores,
        start=accuracies.get(START),
    )

    largest = _largest(probes["simclr"])
    save_probe(workspace / "models" / "probe", largest, card.classes, report.simclr, card.digest, report.start)
    predicted = ranked_classes(largest, queries["simclr"])[: test.labeled, :1].flatten()
    save_confusion(pictures, test.labels[: len(predicted)], predicted, card.classes)
    predictions.save(pictures, predictions.table("test", test, predictions.read_paths(workspace), likely, card.classes))
    save_neighbors(pictures / "neighbours.png", train, bank["simclr"], test, queries["simclr"], card.classes)
    shown, features = (test, queries["simclr"]) if len(test.labels) else (train, bank["simclr"])
    save_map(pictures / "map.png", features, shown.labels, card.classes)
    reports.write(workspace, report)
    seconds = time.perf_counter() - began
    record_timing("linear_eval", workspace=workspace, seconds=seconds)
    baseline = f"random_init, mean of {RANDOM_ENCODERS}: {_summary(report.random_init)}"
    emit("end", stage="linear_eval", message=baseline, seconds=round(seconds, 1))


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
    device = "cuda" if torch.cuda.is_available() else "cpu"
    chunks: dict[str, list[NDArray[np.float32]]] = {name: [] for name in (*encoders, "pixels")}
    for images in split.chunks(model.preprocessing):
        for name, encoder in encoders.items():
            chunks[name].append(extract(encoder.to(device), images, model.card["mean"], model.card["std"]))
        chunks["pixels"].append(pixel_features(images))
    return {name: np.concatenate(parts) for name, parts in chunks.items()}


def pixel_features(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """uint8 [n, s, s, 3] to [n, p * p * 3] in [0, 1], p = min(s, 32), each pixel the mean of the area it covers."""
    side = min(images.shape[1], PIXEL_SIDE)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    return interpolate(pixels, size=(side, side), mode="area").flatten(1).numpy()


def linear_accuracies(
    probes: Sequence[Probe], features: NDArray[np.float32], test: EvaluationImages
) -> tuple[dict[str, float | None], dict[str, float | None]]:
    """By label budget, the percentage of test images whose class comes first, and among the first five."""
    top1: dict[str, float | None] = {}
    top5: dict[str, float | None] = {}
    for probe in probes:
        hits = ranked_classes(probe, features) == test.labels[:, None]
        known = probe.head is not None and test.labeled
        top1[probe.fraction] = round(100 * float(hits[:, 0].mean()), 3) if known else None
        top5[probe.fraction] = round(100 * float(hits[:, :5].any(axis=1).mean()), 3) if known else None
    return top1, top5


def majority_right(train: EvaluationImages, test: EvaluationImages) -> NDArray[np.bool_]:
    """Which test images [n] are of the class that most labeled training images are of; the first one of several."""
    known = train.labels[train.labels >= 0]
    right: NDArray[np.bool_] = test.labels == np.bincount(known).argmax()
    return right


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
        "knn": against(answers["simclr"].knn, {name: one.knn for name, one in answers.items()}),
        "probe": against(answers["simclr"].probe, {name: one.probe for name, one in answers.items()}),
    }


def _largest(probes: Sequence[Probe]) -> Probe:
    return max(probes, key=lambda probe: Fraction(probe.fraction))


def _percent(right: NDArray[np.bool_]) -> float:
    return round(100 * float(right.mean()), 3)


def save_confusion(
    folder: Path, actual: NDArray[np.int64], predicted: NDArray[np.int64], classes: Sequence[str]
) -> None:
    """``confusion.csv``, a line per test image for ``dvc plots``, and the matrix as ``confusion.png``."""
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerows(
        [("actual", "predicted"), *((classes[a], classes[p]) for a, p in zip(actual, predicted, strict=True))]
    )
    write_atomically(folder / "confusion.csv", content.getvalue())
    if not len(predicted):
        plots.note(folder / "confusion.png", "no labels, no confusion matrix")
        return
    matrix = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(matrix, (actual, predicted), 1)
    plots.confusion_matrix(folder / "confusion.png", matrix, classes)


def save_neighbors(
    path: Path,
    train: EvaluationImages,
    bank: NDArray[np.float32],
    test: EvaluationImages,
    queries: NDArray[np.float32],
    classes: Sequence[str],
) -> None:
    """Test images, spread over the classes, and the training images nearest to each; green is the same class, red not.

    Without test images, training images are the queries, and leave the bank.
    """
    source, features = (test, queries) if len(queries) else (train, bank)
    by_class = np.argsort(source.labels, kind="stable")
    chosen = by_class[np.linspace(0, len(by_class) - 1, min(QUERIES, len(by_class))).astype(int)]
    others = np.arange(len(bank)) if len(queries) else np.setdiff1d(np.arange(len(bank)), chosen)
    if not len(others):
        plots.note(path, "too few training images for nearest neighbors")
        return
    nearest_positions = others[nearest(bank[others], features[chosen], NEIGHBORS)[1].numpy()]

    rows, borders, titles = [], [], []
    for query, members in zip(chosen, nearest_positions, strict=True):
        label = source.labels[query]
        pictures = [(source, query), *((train, member) for member in members)]
        rows.append([decode(split.images.read(int(split.positions[one]))) for split, one in pictures])
        colors = [plots.RIGHT if train.labels[member] == label else plots.WRONG for member in members]
        borders.append([None, *(colors if label >= 0 and train.labeled else [None] * len(members))])
        titles.append(classes[label] if label >= 0 else "")
    plots.image_grid(path, rows, titles, borders)


def _summary(accuracies: Accuracies) -> str:
    linear = ", ".join(f"{_shown(value)} on {fraction}" for fraction, value in accuracies.linear_top1.items())
    return f"kNN {_shown(accuracies.knn_top1)}; linear {linear} of the labels"


def _shown(percent: float | None) -> str:
    return "none" if percent is None else f"{percent:.1f} %"
