"""The exported candidate compared with the released champion, image by image: ``reports/compare.json`` for the gates.

    python -m simclr_core compare        in a workspace, after export

Judged is what is served: the embeddings that onnxruntime gives of the same image files, each encoder with its own
preprocessing. Both then get the same new classifiers, cosine kNN and a linear probe on every labeled training image,
and their answers to the labeled test images are counted in pairs. An index of the champion's embeddings is asked with
the candidate's as well: who may exchange the encoder without embedding everything again?

Without labeled test images there are no answers to count; then two views of the same images judge (``label_free``). Out
of fold few labels would rule out no loss of the usual size, and the champion has not been pretrained on all of them.
"""

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import deploy
from deploy.bundle import MODEL
from deploy.encoder import Encoder
from deploy.images.preprocess import Preprocessing
from simclr_core import reports
from simclr_core.champion import champion_bundle, read_champion
from simclr_core.config import CompareConfig
from simclr_core.data.shards import DatasetCard, ShardedImages, read_card
from simclr_core.data.subsets import LabelDraw, subset
from simclr_core.evaluation.embeddings import embed
from simclr_core.evaluation.images import Answers, EvaluationImages, missing_labels, percent, read_splits
from simclr_core.evaluation.knn import knn_predict, nearest
from simclr_core.evaluation.label_free import MOST_IMAGES, compare_without_labels
from simclr_core.evaluation.linear_probe import fit_probe, ranked_classes
from simclr_core.evaluation.multi_label import compare as several
from simclr_core.evaluation.multi_label import images as multi_label
from simclr_core.evaluation.scores.folds import divide, read_near_groups
from simclr_core.evaluation.served_accuracy import spread
from simclr_core.evaluation_reports import CompareReport, LabelFree, Megabytes, OldIndex, Paired
from simclr_core.params import read_block
from simclr_core.reporter import emit, finish

ALL_LABELS = "1.0"
SEED = 0  # of the validation folds by which the probe's L2 is chosen


@dataclass(frozen=True)
class Embedded:
    """What one encoder makes of the labeled images: float32 [n, d], of length 1."""

    train: NDArray[np.float32]
    test: NDArray[np.float32]


def run(workspace: Path) -> None:
    """Compare ``models/bundle`` with ``models/champion``. What cannot be measured is null, and the report says why.

    Raises:
        SimclrError, DeployError: params.yaml, the prepared images or a bundle cannot be used.
    """
    began = time.perf_counter()
    config = read_block(workspace / "params.yaml", "compare", CompareConfig)
    prepared = workspace / "data" / "prepared"
    card = read_card(prepared)
    classes = len(card.classes)
    sets = multi_label.read_splits(prepared) if card.multi_label else None
    train, test = read_splits(prepared) if sets is None else (sets[0].images, sets[1].images)
    bundles = {"candidate": workspace / "models" / "bundle"}
    champion = read_champion(workspace)
    released, version = champion_bundle(workspace, champion), champion.version
    if released:
        bundles["champion"] = released
    unlabeled = missing_labels(train, test) if sets is None else multi_label.missing_labels(*sets)
    reason = unlabeled or (None if released else "no encoder has been released yet")
    if reason:
        print(f"compare: nothing to compare: {reason}", file=sys.stderr)

    emit("start", stage="compare", message=f"candidate and {version or 'no champion'} on {test.labeled} test images")
    encoders: dict[str, Encoder] = {}
    embedded: dict[str, Embedded] = {}
    answers: dict[str, Answers] = {}
    for name, bundle in bundles.items():
        encoder = encoders[name] = deploy.load(bundle)  # also without labels: what does not load goes no further
        for handicap in _handicaps(Preprocessing.from_json(encoder.info["preprocessing"]), card):
            message = f"warning: {name} takes {handicap}: it is judged below its best"
            emit("progress", stage="compare", message=message)
        if not unlabeled:
            bank, queries = (embed(encoder, one.images, one.positions, name) for one in (train, test))
            embedded[name] = Embedded(bank, queries)
        if not unlabeled and sets is None:
            answers[name] = answer(embedded[name], train, test, classes, config)
            emit("progress", stage="compare", message=f"{name}: {_summary(answers[name])}")
    label_free = judge_views(encoders, prepared) if unlabeled and released else None
    precision = several.Compared() if sets is None else several.compare_precision(embedded, *sets, config)
    report = CompareReport(
        champion=version,
        test_images=test.labeled,
        classes=classes,
        reason=reason,
        knn=paired({name: both.knn for name, both in answers.items()}),
        probe=paired({name: both.probe for name, both in answers.items()}),
        old_index=ask_old_index(embedded, train, test, classes, config)
        if sets is None
        else several.ask_old_index(embedded, *sets, config),
        megabytes=Megabytes(**{name: _megabytes(bundle) for name, bundle in bundles.items()}),
        label_free=label_free,
        estimated=not test.labeled and bool(divide(train.with_near(read_near_groups(workspace)), SEED, lambda _: {})),
        precision=precision.precision,
        gains=precision.gains,
    )
    reports.write(workspace, report)
    finish("compare", workspace, began, f"compared with {version or 'nothing'}")


def _handicaps(served: Preprocessing, card: DatasetCard) -> Iterator[str]:
    """What an encoder is served with and the prepared images do not have."""
    if card.short_side is not None and card.short_side < served.resize:
        yield f"{served.resize} pixels, and the prepared images were reduced to {card.short_side}"
    if card.background != served.background:
        yield f"images on {served.background}, and the prepared ones are on {card.background}"
    if card.letterbox != served.letterbox:
        ways = ("their center", "the whole of them in a square")
        yield f"{ways[served.letterbox]}, and the prepared ones are {ways[card.letterbox]}"


def answer(
    embedded: Embedded, train: EvaluationImages, test: EvaluationImages, classes: int, config: CompareConfig
) -> Answers:
    """Fit both classifiers on the labeled training images, and ask them for the classes of the test images."""
    predicted = knn_predict(
        embedded.train, train.labels, embedded.test, classes, config.knn_neighbours, config.knn_temperature
    )
    draw = LabelDraw(ALL_LABELS, subset(train.labels, train.keys, ALL_LABELS, SEED))
    probe = fit_probe(embedded.train, train.labels, train.group_keys, classes, draw, config.l2_count, SEED)
    return Answers(
        knn=predicted == test.labels,
        probe=ranked_classes(probe, embedded.test)[:, 0] == test.labels,
    )


def paired(right: dict[str, NDArray[np.bool_]]) -> Paired:
    """``right`` [n] of the candidate, and of the champion if there is one; of neither without labels."""
    candidate, champion = right.get("candidate"), right.get("champion")
    if candidate is None or champion is None:
        return Paired(None if candidate is None else percent(candidate))
    only_candidate, only_champion = int(np.sum(candidate & ~champion)), int(np.sum(champion & ~candidate))
    return Paired(percent(candidate), percent(champion), only_candidate, only_champion)


def judge_views(encoders: dict[str, Encoder], prepared: Path) -> LabelFree | None:
    """Both encoders on views of test images, of training images where those are too few; None if both are."""
    for split in ("test", "train"):
        images = ShardedImages(prepared / split)
        positions = spread(len(images), MOST_IMAGES)
        if found := compare_without_labels(encoders, images, positions, split):
            message = (
                f"views of {found.images} images: {found.candidate:.1f} % of neighbors kept, {found.champion:.1f} %"
            )
            emit("progress", stage="compare", message=f"{message} by the champion")
            return found
    return None


def ask_old_index(
    embedded: dict[str, Embedded], train: EvaluationImages, test: EvaluationImages, classes: int, config: CompareConfig
) -> OldIndex:
    """kNN in the champion's embeddings of the training images, asked with its own and with the candidate's of the test.

    Vectors of different lengths cannot be compared.
    """
    if len(embedded) < 2:
        return OldIndex()
    index, old, new = embedded["champion"].train, embedded["champion"].test, embedded["candidate"].test
    if old.shape[1] != new.shape[1]:
        return OldIndex()
    old_right, new_right = (
        knn_predict(index, train.labels, one, classes, config.knn_neighbours, config.knn_temperature) == test.labels
        for one in (old, new)
    )
    first_old, first_new = (nearest(index, one, 1)[1].numpy() for one in (old, new))
    return OldIndex(True, percent(old_right), percent(new_right), percent(first_old == first_new))


def _megabytes(bundle: Path) -> float:
    """Of the ONNX file, which is what a server holds in memory."""
    return round((bundle / MODEL).stat().st_size / 1e6, 3)


def _summary(answers: Answers) -> str:
    return f"kNN {percent(answers.knn):.1f} %, linear probe {percent(answers.probe):.1f} %"
