"""Choose images of a workspace: read the prepared images, the encoder and the probe, and ask one way to choose.

Chosen is among the accepted training images without a label; wrong labels are looked for among those with one. Of near
copies, as validation finds them, one stands for all, and none where one has a label; of the images of one group of
labels.csv one is chosen. The same images, labels and models give the same choice.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deploy.bundle import ASSIGNED, Head
from deploy.folders.progress import Progress
from deploy.plural import counted
from simclr_core.config import LinearEvalConfig
from simclr_core.data.dataset import require_pixels
from simclr_core.data.label_sets import BETWEEN, NOTHING
from simclr_core.data.shards import UNLABELED, DatasetCard, ShardedImages, read_card
from simclr_core.data.subsets import LabelDraw
from simclr_core.errors import LabelError, NonFiniteFeaturesError
from simclr_core.evaluation.calibration import softmax
from simclr_core.evaluation.images import EvaluationImages, encoding, made_of
from simclr_core.evaluation.linear_probe import fit_probe, load_probe, probe_logits
from simclr_core.evaluation.scores.folds import Fold, divide, gather, read_near_groups
from simclr_core.launch import Member
from simclr_core.machine.devices import own_device
from simclr_core.model.model_directory import Model, load_model
from simclr_core.params import read_block
from simclr_core.suggest import By
from simclr_core.suggest.diverse import spread_out
from simclr_core.suggest.mistakes import suspect
from simclr_core.suggest.pool import Features, Pool, first_of_each, open_pool, scale_rows
from simclr_core.suggest.ranked import margins, novelties
from simclr_core.suggest.typical import most_typical

ALL = "1.0"  # of the labels


@dataclass(frozen=True)
class Suggestion:
    """``position`` is in the training split. ``label`` and ``guess``, the probe's, are as a table of labels writes
    them, and empty where there is none."""

    sha256: str
    position: int
    label: str
    guess: str
    why: str


@dataclass(frozen=True)
class Suggestions:
    """The chosen images, in order, of ``pool`` images; ``fewer`` is why they are fewer than were asked for."""

    by: By
    images: tuple[Suggestion, ...]
    pool: int
    labeled: int
    multi_label: bool
    fewer: str = ""


@dataclass(frozen=True)
class Inputs:
    """``probe`` is None where there were not labels enough for one."""

    workspace: Path
    card: DatasetCard
    model: Model
    probe: Head | None
    train: ShardedImages

    def features(self, images: EvaluationImages) -> Features:
        """What the encoder makes of the images, as the probe sees it: [n, d]; stderr has the progress."""
        member = Member(0, 1, own_device())
        maker = {"features": encoding(self.model.encoder, self.model, member)}
        progress = Progress(len(images.positions), sys.stderr)
        progress(0)
        scratch = self.workspace / ".simclr"
        found = made_of(images, self.model.preprocessing, maker, member, None, progress, scratch)["features"]
        if not np.isfinite(found.sum(dtype=np.float64)):
            raise NonFiniteFeaturesError(
                "models/pretrained: its features of the prepared images are not finite; train again with `simclr run`"
            )
        return found


def choose(workspace: Path, by: By, budget: int) -> Suggestions:
    """Choose up to ``budget`` images.

    Raises:
        LabelError: this way needs labels that are not there, or no image is left to choose.
        NonFiniteFeaturesError: the encoder gives infinities or what is not a number.
        SimclrError, DeployError: the prepared images or the models cannot be used.
    """
    inputs = read_inputs(workspace)
    return find_mistakes(inputs, budget) if by == "mistakes" else choose_unlabeled(inputs, by, budget)


def read_inputs(workspace: Path) -> Inputs:
    prepared = workspace / "data" / "prepared"
    card, model = read_card(prepared), load_model(workspace / "models" / "pretrained")
    require_pixels(card, model.preprocessing, "the encoder")
    probe = load_probe(workspace / "models" / "probe")[0]
    if probe is not None and probe.labels != card.classes:
        raise LabelError(
            f"models/probe has the classes {', '.join(probe.labels)}, the prepared images have "
            f"{', '.join(card.classes)}; run `simclr run` again"
        )
    return Inputs(workspace, card, model, probe, ShardedImages(prepared / "train"))


def choose_unlabeled(inputs: Inputs, by: By, budget: int) -> Suggestions:
    """Among the images without a label."""
    if by == "uncertain" and (inputs.probe is None or len(inputs.card.classes) < 2):
        raise LabelError(
            "uncertain needs a linear probe, and models/probe has none: label images of two classes, for which "
            "`simclr suggest --by typical` needs no label, then `simclr run`"
        )
    pool = open_pool(inputs.train, read_near_groups(inputs.workspace))
    unlabeled = len(pool.labeled) - int(pool.labeled.sum())
    if not unlabeled:
        raise LabelError(
            "every training image has a label, or is a near copy of one that has; `simclr suggest --by mistakes` looks "
            "for wrong labels"
        )
    raw = inputs.features(pool.images)
    likely = None if inputs.probe is None else inputs.probe.probabilities(raw)
    features = scale_rows(raw)
    if by == "uncertain":
        assert likely is not None
        positions, reasons = _unsure(likely, pool, budget, inputs)
    else:
        positions, reasons = {"typical": _typical, "diverse": _diverse, "novel": _novel}[by](features, pool, budget)
    guesses = [""] * len(positions) if likely is None else _guess(likely[positions], inputs)
    found = [
        Suggestion(inputs.train.key(position), position, "", guess, why)
        for position, guess, why in zip(pool.images.positions[positions].tolist(), guesses, reasons, strict=True)
    ]
    groups = len(np.unique(pool.groups[~pool.labeled]))
    fewer = "" if len(found) == budget else _fewer(unlabeled, groups)
    return Suggestions(by, tuple(found), unlabeled, int(pool.labeled.sum()), inputs.card.multi_label, fewer)


def _typical(features: Features, pool: Pool, budget: int) -> tuple[NDArray[np.int64], list[str]]:
    found = most_typical(features, pool.labeled, pool.groups, budget)
    return found.positions, [
        f"typical of {counted(size, 'similar image')}, {labels} of them with a label"
        for size, labels in zip(found.sizes.tolist(), found.labels.tolist(), strict=True)
    ]


def _diverse(features: Features, pool: Pool, budget: int) -> tuple[NDArray[np.int64], list[str]]:
    found = spread_out(features, pool.labeled, pool.groups, budget)
    return found.positions, [
        "nearest to the mean of all images"
        if np.isnan(distance)
        else f"{distance:.3f} from the nearest that has a label or was chosen (1 - cosine)"
        for distance in found.distances.tolist()
    ]


def _novel(features: Features, pool: Pool, budget: int) -> tuple[NDArray[np.int64], list[str]]:
    distances = novelties(features, pool.labeled)
    of = "labeled image" if pool.labeled.any() else "other image"
    positions = _ranked(-distances, pool, budget)
    return positions, [f"{one:.3f} from the fifth nearest {of} (1 - cosine)" for one in distances[positions].tolist()]


def _unsure(
    likely: NDArray[np.floating], pool: Pool, budget: int, inputs: Inputs
) -> tuple[NDArray[np.int64], list[str]]:
    names = inputs.card.classes
    if inputs.card.multi_label:
        distances = np.abs(likely - ASSIGNED)
        positions = _ranked(distances.min(axis=1), pool, budget)
        asked = distances[positions].argmin(axis=1)
        return positions, [
            f"the probe is unsure of {names[one]}: {likely[row, one]:.0%}"
            for row, one in zip(positions, asked, strict=True)
        ]
    positions = _ranked(margins(likely), pool, budget)
    order = np.argsort(-likely[positions], axis=1, kind="stable")[:, :2]
    return positions, [
        f"the probe is unsure: {names[one]} {likely[row, one]:.0%}, {names[other]} {likely[row, other]:.0%}"
        for row, (one, other) in zip(positions, order, strict=True)
    ]


def _ranked(numbers: NDArray[np.floating], pool: Pool, budget: int) -> NDArray[np.int64]:
    """The unlabeled images with the lowest numbers, of each group one."""
    candidates = np.flatnonzero(~pool.labeled)
    return first_of_each(candidates[np.argsort(numbers[candidates], kind="stable")], pool.groups, budget)


def _guess(likely: NDArray[np.floating], inputs: Inputs) -> list[str]:
    names = inputs.card.classes
    if inputs.card.multi_label:
        found = [[names[one] for one in np.flatnonzero(row >= ASSIGNED)] for row in likely]
        return [BETWEEN.join(one) or NOTHING for one in found]
    return [names[one] for one in likely.argmax(axis=1)]


def _fewer(unlabeled: int, groups: int) -> str:
    if groups < unlabeled:
        return f"the unlabeled images are of {counted(groups, 'group')} of labels.csv, and each gives one"
    return "there are no more unlabeled training images"


def find_mistakes(inputs: Inputs, budget: int) -> Suggestions:
    """Labels that are likely wrong, by probes that have not seen them."""
    if inputs.card.multi_label:
        raise LabelError("mistakes takes one label for each image, and an image may have several here")
    images = EvaluationImages.of(inputs.train).with_near(read_near_groups(inputs.workspace))
    config = read_block(inputs.workspace / "params.yaml", "linear_eval", LinearEvalConfig)
    folds = divide(images, config.seed, draw_all)
    if not folds:
        raise LabelError(
            "wrong labels are looked for where two classes have two labeled training images each; label more: "
            "`simclr suggest --by typical` chooses which"
        )
    features, classes = inputs.features(images), len(inputs.card.classes)
    likely = out_of_fold(features, images, folds, classes, config)
    found = suspect(likely, images.labels)
    names, rows = inputs.card.classes, found.positions[:budget]

    def describe(row: int, other: int) -> Suggestion:
        position, label = int(images.positions[row]), int(images.labels[row])
        said, taken = (f"{names[one]} ({likely[row, one]:.0%})" for one in (label, other))
        why = f"labeled {said}, the probe says {taken}"
        return Suggestion(inputs.train.key(position), position, names[label], names[other], why)

    suggestions = [describe(row, other) for row, other in zip(rows, found.likely[:budget], strict=True)]
    fewer = "" if len(rows) == budget else "no other label is suspected"
    return Suggestions("mistakes", tuple(suggestions), images.labeled, images.labeled, False, fewer)


def out_of_fold(
    features: Features, images: EvaluationImages, folds: Sequence[Fold], classes: int, config: LinearEvalConfig
) -> NDArray[np.float64]:
    """The probability of each class for each labeled image, by a probe on the labels of other folds: [n, classes]."""

    def answer(fold: Fold) -> NDArray[np.float64]:
        draw = fold.drawn[ALL][0]
        probe = fit_probe(features, fold.known, images.group_keys, classes, draw, config.l2_count, config.seed)
        return softmax(probe_logits(probe, fold.rows(features)))

    return gather(folds, [answer(fold) for fold in folds])


def draw_all(labels: NDArray[np.int64]) -> dict[str, list[LabelDraw]]:
    return {ALL: [LabelDraw(ALL, np.flatnonzero(labels != UNLABELED))]}
