"""What a person looks at after the evaluation: which classes are confused, which images have similar features."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deploy.artifact import write_atomically
from deploy.images.preview import preview
from deploy.plural import counted
from simclr_core import plots
from simclr_core.data.shards import stored_pixels
from simclr_core.evaluation.embedding_map import save_map
from simclr_core.evaluation.images import EvaluationImages
from simclr_core.evaluation.knn import nearest
from simclr_core.evaluation.scores.budgets import SIMCLR, FeatureSets

CONFUSION = "confusion.png"
QUERIES, NEIGHBORS = 12, 6  # rows at most, and columns, of the picture of neighbors


def save_pictures(folder: Path, sets: FeatureSets, classes: Sequence[str]) -> None:
    """Nearest neighbors and a map of the trained features.

    Without test images the map shows training images.
    """
    train, test, bank, queries = sets.train, sets.test, sets.bank[SIMCLR], sets.queries[SIMCLR]
    save_neighbors(folder / "neighbours.png", train, bank, test, queries, classes)
    shown, features = (test, queries) if len(test.labels) else (train, bank)
    save_map(folder / "map.png", features, shown.labels, classes)


def save_confusion(
    folder: Path, actual: NDArray[np.int64], predicted: NDArray[np.int64], classes: Sequence[str]
) -> None:
    """``confusion.csv``, a line per answered image for ``dvc plots``, and the matrix as ``confusion.png``."""
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerows(
        [("actual", "predicted"), *((classes[a], classes[p]) for a, p in zip(actual, predicted, strict=True))]
    )
    write_atomically(folder / "confusion.csv", content.getvalue())
    if not len(predicted):
        plots.note(folder / CONFUSION, "no accuracies, no confusion matrix")
        return
    matrix = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(matrix, (actual, predicted), 1)
    right = 100 * np.trace(matrix) / matrix.sum()
    title = f"Linear probe: {right:.1f} % of {counted(int(matrix.sum()), 'answer')} right; a dark diagonal is good"
    plots.confusion_matrix(folder / CONFUSION, matrix, classes, title)


def choose_queries(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Positions of at most QUERIES images, of ``labels`` [n], class by class: equally many of each class that has them;
    of more classes than QUERIES, some."""
    by_class = np.argsort(labels, kind="stable")
    members = np.split(by_class, np.flatnonzero(np.diff(labels[by_class])) + 1)
    if len(members) > QUERIES:
        members = [by_class]
    each = QUERIES // len(members)
    return np.concatenate([one[np.linspace(0, len(one) - 1, min(each, len(one))).astype(int)] for one in members])


def save_neighbors(
    path: Path,
    train: EvaluationImages,
    bank: NDArray[np.float32],
    test: EvaluationImages,
    queries: NDArray[np.float32],
    classes: Sequence[str],
) -> None:
    """Test images, spread over the classes, and the training images nearest to each, with a border that tells whether
    they are of the same class.

    Without test images, training images are the queries, and leave the bank.
    """
    source, features = (test, queries) if len(queries) else (train, bank)
    chosen = choose_queries(source.labels)
    others = np.arange(len(bank)) if len(queries) else np.setdiff1d(np.arange(len(bank)), chosen)
    if not len(others):
        plots.note(path, "too few training images for nearest neighbors")
        return
    nearest_positions = others[nearest(bank[others], features[chosen], NEIGHBORS)[1].numpy()]

    rows, borders, titles = [], [], []
    for query, members in zip(chosen, nearest_positions, strict=True):
        label = source.labels[query]
        pictures = [(source, query), *((train, member) for member in members)]
        rows.append([preview(stored_pixels(split.images, int(split.positions[one]))) for split, one in pictures])
        frames = [plots.SAME if train.labels[member] == label else plots.OTHER for member in members]
        borders.append([None, *(frames if label >= 0 and train.labeled else [None] * len(members))])
        titles.append(classes[label] if label >= 0 else "")
    title = "Left: an image; then the training images nearest to it."
    if train.labeled and (source.labels >= 0).any():
        title += " A whole blue border: the same class, which is good; a broken orange one: another."
    plots.image_grid(path, rows, titles, borders, title)
