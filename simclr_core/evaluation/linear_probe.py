"""A linear classifier on frozen features under a label budget: fitted, tested, published as ``models/probe``.

The labels of a budget are all it ever sees, for choosing the regularization too; the test split has no part in it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from deploy.artifact import publish, verify
from deploy.bundle import Head
from simclr_core.data.label_sets import strata
from simclr_core.data.subsets import LabelDraw, folds
from simclr_core.evaluation.logistic_regression import LinearHead, l2_values, select_and_fit
from simclr_core.evaluation.regression.standardized import standardize
from simclr_core.evaluation_reports import LinearEvalReport, MultiLabelResults
from simclr_core.machine.devices import own_device

FORMAT_VERSION = 1
FOLDS = 5
FEW_LABELS = 1000  # below, one fold is too small to choose by, and each is held out in turn


@dataclass(frozen=True)
class Probe:
    """``head`` acts on raw features; None when the budget holds no label. ``l2`` is what the validation folds chose.

    ``fraction`` is the name of the label budget: a share, or a number per class.
    """

    fraction: str
    labels: int
    l2: float | None = None
    head: LinearHead | None = None


def fit_probe(
    features: NDArray[np.float32],
    labels: NDArray[np.int64] | NDArray[np.bool_],
    keys: NDArray[np.uint8],
    classes: int,
    draw: LabelDraw,
    l2_count: int,
    seed: int,
) -> Probe:
    """Fit on the labels that were drawn.

    ``features`` [n, d], ``labels`` [n] (negative: none) and ``keys`` [n, 32] are of all training images: the
    statistics that standardize the features need no labels, so they come from all. The penalty is chosen by folds that
    keep images with the same key together: near copies, or a patient's other images, would make every penalty seem too
    strong. Where an
    image may have several labels, these are bool [n, classes], and the probe has a logistic regression for each class.
    It is fitted on this process's device, which gets the features in blocks.
    """
    budget = draw.positions
    if not len(budget):
        return Probe(draw.budget, 0)
    inputs = standardize(torch.from_numpy(features), torch.from_numpy(budget), own_device())
    drawn: NDArray[Any] = labels[budget]
    fold = folds(strata(drawn), keys[budget], FOLDS, seed)
    held = np.array([fold == number for number in range(FOLDS if len(budget) < FEW_LABELS else 1)])
    penalties = l2_values(l2_count)
    l2, head = select_and_fit(inputs, torch.from_numpy(drawn), classes, penalties, torch.from_numpy(held))
    raw = head.on_raw_features(inputs.mean, inputs.std)
    return Probe(draw.budget, len(budget), l2, LinearHead(raw.weight.cpu(), raw.bias.cpu()))


def on_most_labels(probes: Sequence[Probe]) -> Probe:
    return max(probes, key=lambda probe: Fraction(probe.fraction))


def ranked_classes(probe: Probe, features: NDArray[np.float32]) -> NDArray[np.int64]:
    """The classes of each image, most likely first: int64 [n, classes]; [n, 0] for a probe without labels."""
    if probe.head is None:
        return np.empty((len(features), 0), np.int64)
    logits = probe.head.logits(torch.from_numpy(features))
    return logits.sort(dim=1, descending=True, stable=True).indices.numpy()


def probe_logits(probe: Probe, features: NDArray[np.float32]) -> NDArray[np.float64]:
    """Of each class for each image: [n, classes]. The probe has a head."""
    assert probe.head is not None
    return probe.head.logits(torch.from_numpy(features)).double().numpy()


def summarize(results: MultiLabelResults) -> dict[str, float]:
    """What the card of a classifier says of it."""
    return {f"{name}_mean_average_precision": one.mean_average_precision.value for name, one in results.scores.items()}


def save_probe(
    target: Path,
    probe: Probe,
    classes: Sequence[str],
    report: LinearEvalReport,
    data_digest: str,
) -> None:
    """Publish ``probe.json`` and ``head.npz``: float32 ``weight`` [d, classes] and ``bias`` [classes], for the raw h.

    Without labels there is no ``head.npz``. Accuracies out of fold, which are not those of this head, say so; and so
    does a head whose logits are of a logistic regression for each class (``multi_label``).
    """
    estimate = {"estimate": report.estimate} if report.out_of_fold else {}
    several = report.multi_label
    measured = asdict(report.simclr) if several is None else summarize(several)
    card = {
        "format_version": FORMAT_VERSION,
        "classes": list(classes),
        "fraction": probe.fraction,
        "labels": probe.labels,
        "l2": probe.l2,
        "metrics": measured | estimate,
        "data_digest": data_digest,
        **({"start": asdict(report.start) | estimate} if report.start else {}),
        **({"multi_label": True} if several else {}),
    }
    with publish(target, replace=True) as work:
        if probe.head is not None:
            np.savez(work / "head.npz", weight=probe.head.weight.numpy(), bias=probe.head.bias.numpy())
        (work / "probe.json").write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def load_probe(directory: Path) -> tuple[Head | None, dict[str, Any]]:
    """The classifier that linear_eval fitted, and its card; neither when there were no labels.

    Raises:
        ArtifactError: it is damaged; nothing was parsed.
    """
    if not (directory / "head.npz").exists():
        return None, {}
    verify(directory)
    card = json.loads((directory / "probe.json").read_text(encoding="utf-8"))
    with np.load(directory / "head.npz", allow_pickle=False) as arrays:
        return head_of(arrays["weight"], arrays["bias"], card), card


def head_of(weight: NDArray[np.float32], bias: NDArray[np.float32], card: Mapping[str, Any]) -> Head:
    """A classifier as it is served: float32 ``weight`` [d, classes] and ``bias`` [classes]."""
    head = Head(np.ascontiguousarray(weight), np.ascontiguousarray(bias), tuple(card["classes"]))
    return replace(head, multi_label=card.get("multi_label", False))
