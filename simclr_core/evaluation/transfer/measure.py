"""What encoders are worth on a labeled set: linear evaluation, kNN and few-shot, each compared on the same images.

Linear evaluation is that of SimCLR, appendix B.8: multinomial logistic regression by L-BFGS on features of images
without augmentation, 45 penalties from 1e-6 to 1e5, chosen on training images that are held out; then fitted again on
all. Here the penalty is the one with the lowest cross-entropy there, and features are standardized.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deploy.errors import ImageError
from deploy.images.full_depth import Samples
from deploy.images.inputs import map_ahead, read_pixels, source_of
from deploy.images.preprocess import Preprocessing
from deploy.plural import counted, listed
from simclr_core.data.subsets import LabelDraw
from simclr_core.errors import LabelError
from simclr_core.evaluation.features import encode
from simclr_core.evaluation.images import CHUNK
from simclr_core.evaluation.knn import knn_predict
from simclr_core.evaluation.linear_eval import pixel_features
from simclr_core.evaluation.linear_probe import fit_probe, ranked_classes
from simclr_core.evaluation.paired_comparison import mcnemar_p_value
from simclr_core.evaluation.scores.budgets import PIXELS
from simclr_core.evaluation.transfer.few_shot import draw_episodes, episode_accuracy, interval
from simclr_core.evaluation.transfer.labeled_set import LabeledSet, check
from simclr_core.machine.threads import own_cores
from simclr_core.model.encoder import Encoder
from simclr_core.model.model_directory import Model

PENALTIES = 45  # SimCLR, appendix B.8
NEIGHBORS, TEMPERATURE = 20, 0.1  # of kNN, as in evaluate's defaults


Features = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Worth:
    """Accuracies in percent of one kind of features: of all test images, and the mean over the classes. ``few_shot`` is
    the mean over episodes and half the width of its interval of 95 %; None where classes have too few images."""

    linear: float
    linear_per_class: float
    l2: float
    knn: float
    knn_per_class: float
    few_shot: tuple[float, float] | None


@dataclass(frozen=True)
class Difference:
    """How much better the encoder is than one baseline, in points, with the exact two-sided p-value of McNemar; for
    few-shot the mean difference over the same episodes and half the width of its interval of 95 %."""

    linear: float
    linear_p: float
    knn: float
    knn_p: float
    few_shot: tuple[float, float] | None


@dataclass(frozen=True)
class Transfer:
    """What was measured on one set; the first of ``worth`` is the encoder, and ``above`` has all the others."""

    name: str
    classes: int
    train: int
    test: int
    worth: dict[str, Worth]
    above: dict[str, Difference]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Answers:
    linear: NDArray[np.bool_]
    knn: NDArray[np.bool_]
    episodes: NDArray[np.float64]


def measure(images: LabeledSet, model: Model, encoders: Mapping[str, Encoder], seed: int = 0) -> Transfer:
    """Everything of one set. The first of ``encoders`` is compared with the others and with raw pixels; all see the
    images as ``model`` does: small ones are enlarged to the size of its input, never padded unless it has a letterbox.

    Raises:
        LabelError: classes are missing or too small, as ``labeled_set.check`` says, or no file can be read.
    """
    images, features = compute_features(images, model, encoders)
    worth, answers = {}, {}
    for name, rows in features.items():
        worth[name], answers[name] = _judge(images, rows, seed)
    first, *others = worth
    above = {name: _difference(answers[first], answers[name]) for name in others}
    test = int(images.is_test.sum())
    return Transfer(images.name, len(images.classes), len(images) - test, test, worth, above, images.notes)


def compute_features(
    images: LabeledSet, model: Model, encoders: Mapping[str, Encoder]
) -> tuple[LabeledSet, dict[str, NDArray[np.float32]]]:
    """The images that can be read and that ``check`` accepts, and by encoder their features [n, d]; pixels last."""
    check(images)  # before the work
    found: dict[str, list[NDArray[np.float32]]] = {name: [] for name in (*encoders, PIXELS)}
    readable, faults = np.zeros(len(images), bool), list[str]()
    for start, places, samples in _chunks(images, model.preprocessing, faults):
        readable[start + places] = True
        for name, encoder in encoders.items():
            made = encode(encoder, samples, model.card["mean"], model.card["std"])
            found[name].append(made.cpu().numpy())
        found[PIXELS].append(pixel_features(samples))
    if not readable.any():
        raise LabelError(f"{images.name}: none of {counted(len(images), 'image')} can be read; {listed(faults, 1)}")
    left_out = f"left out: {counted(len(faults), 'file')} that cannot be read: {listed(faults, 3, '; ')}"
    kept = check(images.only(readable, left_out))
    rows = np.searchsorted(np.flatnonzero(readable), kept.places)
    return kept, {name: np.concatenate(parts)[rows] for name, parts in found.items()}


def _chunks(
    images: LabeledSet, preprocessing: Preprocessing, faults: list[str]
) -> Iterator[tuple[int, NDArray[np.int64], Samples]]:
    """Of each part of the set where it starts, which of its images could be read, and these [m, s, s, channels]; why
    others could not goes to ``faults``."""
    workers = own_cores()
    for start in range(0, len(images), CHUNK):
        part = images.pictures[start : start + CHUNK]
        read = list(map_ahead(lambda one: read_pixels(one, preprocessing), part, workers, 2 * workers))
        faults += [
            f"{source_of(part[place], place)}: {one}" for place, one in enumerate(read) if isinstance(one, ImageError)
        ]
        good = [(place, one) for place, one in enumerate(read) if not isinstance(one, ImageError)]
        if good:
            yield start, np.array([place for place, _ in good]), np.stack([one for _, one in good])


def _judge(images: LabeledSet, features: NDArray[np.float32], seed: int) -> tuple[Worth, _Answers]:
    test, classes = images.is_test, len(images.classes)
    train_labels, truth = images.labels[~test], images.labels[test]
    everything = LabelDraw("1.0", np.arange(len(train_labels)))
    probe = fit_probe(features[~test], train_labels, images.keys[~test], classes, everything, PENALTIES, seed)
    linear = ranked_classes(probe, features[test])[:, 0] == truth
    knn = knn_predict(features[~test], train_labels, features[test], classes, NEIGHBORS, TEMPERATURE) == truth
    episodes = np.array([episode_accuracy(features, one) for one in draw_episodes(images.labels, seed)])
    assert probe.l2 is not None, "every class has training images"
    worth = Worth(
        _percent(linear),
        per_class(linear, truth),
        probe.l2,
        _percent(knn),
        per_class(knn, truth),
        interval(episodes) if len(episodes) else None,
    )
    return worth, _Answers(linear, knn, episodes)


def per_class(right: NDArray[np.bool_], truth: NDArray[np.int64]) -> float:
    """The mean over the classes in ``truth`` [n] of the percent of their images that are ``right`` [n]: the measure of
    the paper for Aircraft, Pets, Caltech-101 and Flowers.

    Examples:
        >>> per_class(np.array([True, True, True, False]), np.array([0, 0, 0, 1]))
        50.0
    """
    return float(np.mean([_percent(right[truth == label]) for label in np.unique(truth)]))


def two_sided_p(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """The exact p-value of McNemar's test that two classifiers, right or not on the same images [n], are equally good;
    for accuracy it is the permutation test of appendix B.8 with all permutations in place of 100,000."""
    won, lost = int(np.sum(one & ~other)), int(np.sum(other & ~one))
    return min(1.0, 2 * min(mcnemar_p_value(won, lost), mcnemar_p_value(lost, won)))


def _difference(one: _Answers, other: _Answers) -> Difference:
    return Difference(
        _percent(one.linear) - _percent(other.linear),
        two_sided_p(one.linear, other.linear),
        _percent(one.knn) - _percent(other.knn),
        two_sided_p(one.knn, other.knn),
        interval(one.episodes - other.episodes) if len(one.episodes) else None,
    )


def _percent(right: NDArray[np.bool_]) -> float:
    return 100 * float(right.mean())
