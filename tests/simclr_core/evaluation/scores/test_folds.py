"""Out of fold: against scikit-learn with the same folds, whatever the order, and nothing that has seen the answer."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from simclr_core.config import LinearEvalConfig
from simclr_core.data.subsets import LabelDraw, draw_labels
from simclr_core.evaluation.fewest import fold_count
from simclr_core.evaluation.images import EvaluationImages
from simclr_core.evaluation.knn import knn_predict
from simclr_core.evaluation.paired_comparison import interval, out_of_fold_worth
from simclr_core.evaluation.scores.accuracies import majority_right
from simclr_core.evaluation.scores.budgets import FeatureSets
from simclr_core.evaluation.scores.classification import estimate
from simclr_core.evaluation.scores.folds import Fold, ask_test_images, divide, gather, read_near_groups
from simclr_core.evaluation.scores.judgment import Judged, fit_probes, judge

CLASSES = ("ant", "bee")
CONFIG = LinearEvalConfig(fractions=("1.0",), labels_per_class=(), draws=1, knn_neighbours=5, l2_count=2)
L2 = 0.1


def images(labels: NDArray[np.int64], seed: int = 0) -> EvaluationImages:
    keys = np.random.default_rng(seed).integers(0, 256, (len(labels), 32), np.uint8)
    return EvaluationImages(None, np.arange(len(labels)), labels, keys)  # type: ignore[arg-type]


def draw(keys: NDArray[np.uint8], labels: NDArray[np.int64]) -> dict[str, list[LabelDraw]]:
    return draw_labels(labels, keys, CONFIG.fractions, CONFIG.labels_per_class, CONFIG.draws, CONFIG.seed)


def folds_of(train: EvaluationImages, groups: dict[str, str] | None = None) -> list[Fold]:
    return divide(train.with_near(groups or {}), 0, partial(draw, train.keys))


def sets_of(features: NDArray[np.float32], train: EvaluationImages, folds: list[Fold]) -> FeatureSets:
    return FeatureSets({"simclr": features}, {"simclr": features}, train, train, len(CLASSES), folds)


def clouds(labels: NDArray[np.int64], apart: float = 1.0) -> NDArray[np.float32]:
    random = np.random.default_rng(1)
    return (random.normal(size=(len(labels), 6)) + apart * np.eye(6)[labels]).astype(np.float32)


def names(train: EvaluationImages) -> list[str]:
    return [bytes(key).hex() for key in train.keys]


def test_answers_are_those_of_scikit_learn_with_the_same_folds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simclr_core.evaluation.linear_probe.l2_values", lambda count: [L2])
    train = images(np.arange(40) % 2)
    features, folds = clouds(train.labels), folds_of(train)
    found = judge(sets_of(features, train, folds), "simclr", CLASSES, CONFIG)
    fold = gather(folds, [np.full(len(one.asked), number) for number, one in enumerate(folds)])
    split = PredefinedSplit(fold)
    scaled = StandardScaler().fit_transform(features.astype(np.float64))
    probe = LogisticRegression(
        C=2 / (32 * L2), tol=1e-8
    )  # of two classes scikit-learn fits one vector, ours two halves
    expected = cross_val_predict(probe, scaled, train.labels, cv=split, method="predict_proba")
    np.testing.assert_allclose(found.likely["probe"], expected, atol=1e-3)
    knn = KNeighborsClassifier(5, metric="cosine", weights=lambda distance: np.exp(-distance / CONFIG.knn_temperature))
    expected = cross_val_predict(knn, features, train.labels, cv=split, method="predict_proba")
    np.testing.assert_allclose(found.likely["knn"], expected, atol=1e-4)
    assert found.accuracies.knn_top1 == 100 * np.mean(expected.argmax(axis=1) == train.labels)
    assert (found.predicted == found.likely["probe"].argmax(axis=1)).all()
    assert found.accuracies.linear_top1["1.0"] == 100 * np.mean(found.predicted == train.labels)


@pytest.mark.seconds
def test_the_regularization_is_chosen_without_the_fold() -> None:
    """The probe of a fold is the same whatever is known of the fold's labels and, but for their scale, its features."""
    train = images(np.arange(40) % 2)
    features, folds = clouds(train.labels), folds_of(train)
    (before, *_), *_ = judge(sets_of(features, train, folds), "simclr", CLASSES, CONFIG).probes
    other = train.labels.copy()
    other[folds[0].asked] = 1 - other[folds[0].asked]
    turned = EvaluationImages(train.images, train.positions, other, train.keys)
    (after, *_), *_ = judge(sets_of(features, turned, folds), "simclr", CLASSES, CONFIG).probes
    assert (before.l2, before.labels) == (after.l2, after.labels)
    assert before.head is not None
    assert after.head is not None
    assert (before.head.weight == after.head.weight).all()


def test_each_labeled_image_is_asked_once_and_each_class_is_spread_evenly() -> None:
    train = images(np.repeat([0, 1, 2], [23, 11, 3]))
    folds = folds_of(train)
    assert len(folds) == 5
    assert sorted(np.concatenate([fold.asked for fold in folds]).tolist()) == list(range(37))
    for fold in folds:
        assert (fold.known[fold.asked] == -1).all()
        assert (np.delete(fold.known, fold.asked) == np.delete(train.labels, fold.asked)).all()
        assert all((fold.known[one.positions] >= 0).all() for draws in fold.drawn.values() for one in draws)
        for number, size in ((0, 23), (1, 11), (2, 3)):
            assert abs(np.sum(train.labels[fold.asked] == number) - size / 5) < 1


def test_images_that_are_joined_by_copies_or_by_groups_stay_in_one_fold() -> None:
    """0 and 1 are near copies, 1 and 2 of one patient: so 0, 1 and 2 are asked by the same classifiers."""
    train = images(np.repeat([0, 1], 20))
    patients = -1 - np.arange(40)
    patients[[1, 2]], patients[[30, 31, 32]] = 0, 1
    train = replace(train, groups=patients)
    folds = folds_of(train, dict.fromkeys(names(train)[:2], "burst"))
    fold = gather(folds, [np.full(len(one.asked), number) for number, one in enumerate(folds)])
    assert len({*fold[:3]}) == len({*fold[30:33]}) == 1
    assert len({*fold}) == 5


def test_the_penalty_is_not_chosen_by_near_copies_of_what_was_learned() -> None:
    """Each image is there twice, with a label that its features do not say: a copy in another fold would say it."""
    train = images(np.tile(np.random.default_rng(7).integers(0, 2, 30), 2))
    features = np.tile(np.random.default_rng(8).normal(size=(30, 40)), (2, 1)).astype(np.float32)
    near = {name: f"burst {place % 30}" for place, name in enumerate(names(train))}
    config = CONFIG.model_copy(update={"l2_count": 6})

    def chosen(known: EvaluationImages) -> float:
        sets = sets_of(features, known, ask_test_images(known, known, partial(draw, known.keys)))
        return fit_probes(sets, "simclr", sets.folds[0], config)[0].l2 or 0.0

    assert chosen(train) < 1 < chosen(train.with_near(near))


def test_the_fold_of_an_image_does_not_depend_on_the_order() -> None:
    train = images(np.random.default_rng(3).integers(0, 2, 30))
    groups = dict.fromkeys(names(train)[4:7], "burst")
    order = np.random.default_rng(5).permutation(30)
    shuffled = EvaluationImages(train.images, train.positions, train.labels[order], train.keys[order])
    one, other = (
        [{names(of)[position] for position in fold.asked} for fold in folds_of(of, groups)] for of in (train, shuffled)
    )
    assert one == other
    assert any(set(names(train)[4:7]) <= fold for fold in one)


@pytest.mark.parametrize(
    ("counts", "folds"), [([], 0), ([9], 0), ([9, 1], 0), ([2, 2], 2), ([3, 2], 3), ([9, 9, 1], 5), ([1, 1, 1], 0)]
)
def test_there_are_five_folds_or_what_the_labels_allow(counts: list[int], folds: int) -> None:
    assert fold_count(counts) == folds
    train = images(np.repeat(np.arange(len(counts)), counts).astype(np.int64))
    found = folds_of(train)
    assert len(found) == folds
    assert all(len(set(fold.known[fold.known >= 0])) > 1 for fold in found)
    assert folds_of(images(np.full(8, -1))) == []


def test_near_copies_that_are_kept_together_do_not_answer_for_each_other() -> None:
    """Forty pictures, two copies of each, and features that tell nothing but which picture it is."""
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(40) % 2, 1))
    train = images(np.concatenate([labels, labels]))
    features = np.tile(np.random.default_rng(2).normal(size=(40, 64)).astype(np.float32), (2, 1))
    groups = {name: str(position % 40) for position, name in enumerate(names(train))}

    def knn(folds: list[Fold]) -> float:
        found: Judged = judge(sets_of(features, train, folds), "simclr", CLASSES, CONFIG)
        assert found.accuracies.knn_top1 is not None
        return found.accuracies.knn_top1

    assert knn(folds_of(train, groups)) < 65
    assert knn(folds_of(train)) > 75


def test_the_most_frequent_class_is_that_of_the_known_labels() -> None:
    train = images(np.repeat([0, 1], [5, 4]))
    folds = folds_of(train)
    right = majority_right(sets_of(clouds(train.labels), train, folds))
    for fold in folds:
        known = fold.known[fold.known >= 0]
        expected = int(np.sum(known == 1) > np.sum(known == 0))
        assert (right[fold.asked] == (train.labels[fold.asked] == expected)).all()


def test_near_groups_are_read_from_every_part_of_the_manifest(tmp_path: Path) -> None:
    assert read_near_groups(tmp_path) == {}
    folder = tmp_path / "data" / "manifest" / "manifest"
    folder.mkdir(parents=True)
    pl.DataFrame({"sha256": ["aa", "bb"], "near_group": ["aa", None]}).write_parquet(folder / "0001-0000.parquet")
    pl.DataFrame({"sha256": ["cc"], "near_group": ["aa"]}).write_parquet(folder / "0002-0000.parquet")
    pl.DataFrame({"sha256": ["dd"]}).write_parquet(folder / "0003-0000.parquet")  # of an earlier version
    assert read_near_groups(tmp_path) == {"aa": "aa", "cc": "aa"}


def test_an_image_counts_as_the_corrected_variance_says() -> None:
    """Nadeau and Bengio (2003): (1 / J + asked / known) of the variance between folds, in place of 1 / J of it."""
    for count in (2, 5):
        images_in_all, variance = 60 * count, 0.21
        asked, known = images_in_all / count, images_in_all * (count - 1) / count
        corrected = (1 / count + asked / known) * variance / asked
        assert variance / (out_of_fold_worth(count) * images_in_all) == pytest.approx(corrected)
    assert out_of_fold_worth(5) == pytest.approx(4 / 9)
    assert interval(450, [(60, 45)], 0.95, 1 / 3) == interval(150, [(20, 15)], 0.95)
    assert estimate([0.8], out_of_fold_worth(5) * 90, 72) == estimate([0.8], 40, 72)


@pytest.mark.seconds
def test_a_gain_is_rarely_shown_where_there_is_none() -> None:
    """Features of the same worth whose noise differs, by kNN out of fold, judged as the gate does: at most 5 %."""
    random, rounds, shown = np.random.default_rng(0), 400, 0
    for seed in range(rounds):
        train = images(np.arange(60) % 2, seed)
        folds, right = folds_of(train), []
        for _ in range(2):
            features = (random.normal(size=(60, 4)) + np.eye(4)[train.labels]).astype(np.float32)
            answers = [
                knn_predict(features[one.known >= 0], one.known[one.known >= 0], features[one.asked], 2, 5, 0.1)
                for one in folds
            ]
            right.append(gather(folds, answers) == train.labels)
        won, lost = int(np.sum(right[0] & ~right[1])), int(np.sum(right[1] & ~right[0]))
        shown += interval(60, [(won, lost)], 0.95, out_of_fold_worth(len(folds))).low > 0
    assert shown / rounds <= 0.05
