"""What linear evaluation leaves where images have several labels: the probe, pictures, and a row for each image.

``reports/predictions.parquet`` has these columns then:

    path, sha256, split     as in ``scores.predictions``
    labels                  list of the image's classes; empty: none of them
    knn, probe              list of the classes that get half of the votes, and that are as likely as not
    knn_scores              share of the votes for each class, in the order of the classes in models/probe/probe.json
    probe_scores            probability of each class, likewise, not calibrated
    probe_log_odds          its logit, which the average precisions of the report rank by: it is never rounded to 1

The confusion matrix has the right answers on its diagonal, what was missed in its last column, and what was wrongly
given in its last row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from simclr_core import reports
from simclr_core.data.shards import UNLABELED, DatasetCard
from simclr_core.evaluation.calibration import sigmoid
from simclr_core.evaluation.images import EvaluationImages
from simclr_core.evaluation.linear_probe import save_probe
from simclr_core.evaluation.multi_label.classifiers import EVEN, KNN, PROBE
from simclr_core.evaluation.multi_label.evaluate import Evaluated
from simclr_core.evaluation.multi_label.images import LabelSets, Targets
from simclr_core.evaluation.pictures import save_confusion, save_pictures
from simclr_core.evaluation.scores import predictions

NOTHING = "(nothing)"  # in the confusion matrix: what an image has and the probe misses, and the reverse


def save(workspace: Path, found: Evaluated, card: DatasetCard) -> None:
    """Write ``models/probe`` and everything under ``reports/``."""
    folder = workspace / "reports"
    save_probe(workspace / "models" / "probe", found.probe, card.classes, found.report, card.digest)
    save_confusion(folder, *_decisions(found), (*card.classes, NOTHING))
    sets = replace(found.sets, train=_unlabeled(found.sets.train), test=_unlabeled(found.sets.test))
    save_pictures(folder, sets, card.classes)
    paths = predictions.read_paths(workspace)
    predictions.save(folder, table(found.report.estimate, found.asked, paths, found.answers, card.classes))
    reports.write(workspace, found.report)


def _decisions(found: Evaluated) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Each class that an image has or that the probe gives it, as (actual, predicted): both the class where both do,
    and one of them NOTHING where it is missed, or wrongly given. Without answers there are none."""
    if not found.answers:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    said = found.answers[PROBE] >= EVEN[PROBE]
    return decisions(found.asked.targets, said)


def decisions(truth: Targets, said: Targets) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The same of both as bool [n, classes]; the number of NOTHING is the number of classes."""
    images, classes = np.nonzero(truth | said)
    nothing = truth.shape[1]
    return np.where(truth[images, classes], classes, nothing), np.where(said[images, classes], classes, nothing)


def table(
    split: str,
    asked: LabelSets,
    paths: Mapping[str, str],
    answers: Mapping[str, NDArray[np.float64]],
    classes: Sequence[str],
) -> pa.Table:
    """The rows of one split, "test" or "out_of_fold", in the order of the images; ``paths`` are by SHA-256."""
    rows = len(answers[PROBE]) if answers else 0
    found = answers or dict.fromkeys((KNN, PROBE), np.empty((0, len(classes))))
    names, numbers = pa.list_(pa.string()), pa.list_(pa.float64())
    columns = predictions.identify(split, asked.images.keys[:rows], paths)
    columns["labels"] = pa.array(_named(asked.targets[:rows], classes), names)
    columns |= {name: pa.array(_named(found[name] >= EVEN[name], classes), names) for name in (KNN, PROBE)}
    scores = {"knn_scores": found[KNN], "probe_scores": sigmoid(found[PROBE]), "probe_log_odds": found[PROBE]}
    columns |= {name: pa.array(one.tolist(), numbers) for name, one in scores.items()}
    return pa.table(columns)


def _named(targets: Targets, classes: Sequence[str]) -> list[list[str]]:
    return [[name for name, has in zip(classes, row, strict=True) if has] for row in targets.tolist()]


def _unlabeled(images: EvaluationImages) -> EvaluationImages:
    """Without the labels by which they are drawn, which a picture would show as their classes."""
    return replace(images, labels=np.full_like(images.labels, UNLABELED))
