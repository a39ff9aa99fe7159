"""What linear evaluation leaves where images have several labels: the probe, pictures, and a row for each image.

``reports/predictions.parquet`` has these columns then:

    path, sha256, split     as in ``scores.predictions``
    labels                  list of the image's classes; empty: none of them
    knn, probe              list of the classes that get half of the votes, and that are as likely as not
    knn_scores              share of the votes for each class, in the order of the classes in models/probe/probe.json
    probe_scores            probability of each class, likewise, not calibrated
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from simclr_core import plots, reports
from simclr_core.data.shards import UNLABELED, DatasetCard
from simclr_core.evaluation.images import EvaluationImages
from simclr_core.evaluation.linear_probe import save_probe
from simclr_core.evaluation.multi_label.classifiers import KNN, PROBE
from simclr_core.evaluation.multi_label.evaluate import Evaluated
from simclr_core.evaluation.multi_label.images import LabelSets, Targets
from simclr_core.evaluation.multi_label.precision import THRESHOLD
from simclr_core.evaluation.pictures import CONFUSION, save_confusion, save_pictures
from simclr_core.evaluation.scores import predictions


def save(workspace: Path, found: Evaluated, card: DatasetCard) -> None:
    """Write ``models/probe`` and everything under ``reports/``."""
    folder, empty = workspace / "reports", np.empty(0, np.int64)
    save_probe(workspace / "models" / "probe", found.probe, card.classes, found.report, card.digest)
    save_confusion(folder, empty, empty, card.classes)
    plots.note(folder / CONFUSION, "an image may have several labels, so no class is taken for another")
    sets = replace(found.sets, train=_unlabeled(found.sets.train), test=_unlabeled(found.sets.test))
    save_pictures(folder, sets, card.classes)
    paths = predictions.read_paths(workspace)
    predictions.save(folder, table(found.report.estimate, found.asked, paths, found.likelihoods, card.classes))
    reports.write(workspace, found.report)


def table(
    split: str,
    asked: LabelSets,
    paths: Mapping[str, str],
    likelihoods: Mapping[str, NDArray[np.float64]],
    classes: Sequence[str],
) -> pa.Table:
    """The rows of one split, "test" or "out_of_fold", in the order of the images; ``paths`` are by SHA-256."""
    rows = len(likelihoods[PROBE]) if likelihoods else 0
    found = likelihoods or dict.fromkeys((KNN, PROBE), np.empty((0, len(classes))))
    names, numbers = pa.list_(pa.string()), pa.list_(pa.float32())
    columns = predictions.identify(split, asked.images.keys[:rows], paths)
    columns["labels"] = pa.array(_named(asked.targets[:rows], classes), names)
    columns |= {name: pa.array(_named(found[name] >= THRESHOLD, classes), names) for name in (KNN, PROBE)}
    columns |= {f"{name}_scores": pa.array(found[name].astype(np.float32).tolist(), numbers) for name in (KNN, PROBE)}
    return pa.table(columns)


def _named(targets: Targets, classes: Sequence[str]) -> list[list[str]]:
    return [[name for name, has in zip(classes, row, strict=True) if has] for row in targets.tolist()]


def _unlabeled(images: EvaluationImages) -> EvaluationImages:
    """Without the labels by which they are drawn, which a picture would show as their classes."""
    return replace(images, labels=np.full_like(images.labels, UNLABELED))
