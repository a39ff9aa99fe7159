"""What a person looks at after the evaluation: which classes are confused, which images have similar features."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deploy.artifact import write_atomically
from deploy.images.preview import preview
from simclr_core import plots
from simclr_core.data.shards import stored_pixels
from simclr_core.evaluation.embedding_map import save_map
from simclr_core.evaluation.images import EvaluationImages
from simclr_core.evaluation.knn import nearest
from simclr_core.evaluation.scores.budgets import SIMCLR, FeatureSets

CONFUSION = "confusion.png"
QUERIES, NEIGHBORS = 8, 6  # rows and columns of the picture of neighbors


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
    plots.confusion_matrix(folder / CONFUSION, matrix, classes)


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
        rows.append([preview(stored_pixels(split.images, int(split.positions[one]))) for split, one in pictures])
        colors = [plots.RIGHT if train.labels[member] == label else plots.WRONG for member in members]
        borders.append([None, *(colors if label >= 0 and train.labeled else [None] * len(members))])
        titles.append(classes[label] if label >= 0 else "")
    plots.image_grid(path, rows, titles, borders)
