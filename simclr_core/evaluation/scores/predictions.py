"""Each labeled image with what the classifiers said of it: ``reports/predictions.parquet``, one row per image.

    path            of the first file with this content, as it was ingested; null where ``data/manifest`` is missing
    sha256          of that file
    split           test; out_of_fold where there are no labeled test images, and these are training images
    label           the image's class
    knn             the class that most of the nearest training images vote for, out of fold without those of its fold
    knn_answer      its share of the votes, 0 to 1
    knn_label       the share of the votes that the image's class got
    probe           the class that the linear probe gives: on all labels, or out of fold on those of the other folds
    probe_answer    its probability, not calibrated
    probe_label     the probability of the image's class

Without labels there are no rows. The same images and models give the same bytes.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from deploy.artifact import write_atomically
from simclr_core.evaluation.images import EvaluationImages

FILE = "predictions.parquet"
CLASSIFIERS = ("knn", "probe")


def identify(split: str, keys: NDArray[np.uint8], paths: Mapping[str, str]) -> dict[str, pa.Array]:
    """The columns that say which image a row is of: ``keys`` [n, 32] are the SHA-256, by which ``paths`` are."""
    names = [bytes(key).hex() for key in keys]
    return {
        "path": pa.array([paths.get(name) for name in names], pa.string()),
        "sha256": pa.array(names, pa.string()),
        "split": pa.array([split] * len(names), pa.string()),
    }


def table(
    split: str,
    images: EvaluationImages,
    paths: Mapping[str, str],
    scores: Mapping[str, NDArray[np.floating]],
    classes: Sequence[str],
) -> pa.Table:
    """The rows of one split, "test" or "out_of_fold", in the order of the images.

    Args:
        paths: by SHA-256.
        scores: shares of the votes of kNN and probabilities of the probe for each labeled image, [n, classes].
    """
    scores = scores or dict.fromkeys(CLASSIFIERS, np.empty((0, 1)))
    rows = np.arange(len(scores[CLASSIFIERS[0]]))
    labels = images.labels[rows]
    columns = identify(split, images.keys[rows], paths)
    columns["label"] = pa.array([classes[label] for label in labels], pa.string())
    for name in CLASSIFIERS:
        found = scores[name]
        answers = found[rows].argmax(axis=1)
        columns[name] = pa.array([classes[answer] for answer in answers], pa.string())
        columns[f"{name}_answer"] = pa.array(found[rows, answers], pa.float64())
        columns[f"{name}_label"] = pa.array(found[rows, labels], pa.float64())
    return pa.table(columns)


def save(folder: Path, rows: pa.Table) -> None:
    content = io.BytesIO()
    pq.write_table(rows, content, compression="zstd")
    write_atomically(folder / FILE, content.getvalue())


def read_paths(workspace: Path) -> dict[str, str]:
    """The path of each accepted content, by SHA-256; nothing where ``data/prepared`` came without a manifest."""
    accepted = workspace / "data" / "manifest" / "accepted.parquet"
    if not accepted.is_file():
        return {}
    found = pq.read_table(accepted, columns=["sha256", "path"])
    return dict(zip(found["sha256"].to_pylist(), found["path"].to_pylist(), strict=True))
