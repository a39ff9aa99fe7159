"""Mean average precision, F1 and their standard errors, against scikit-learn and images that were really redrawn."""

from collections import Counter

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, f1_score

from simclr_core.data import label_sets
from simclr_core.evaluation.multi_label.precision import (
    RESAMPLES,
    Precision,
    Spread,
    draw_counts,
    exact_precision,
    f1_scores,
    gain,
    mean_of_draws,
    mean_precision,
    measured,
)


def answers(
    images: int, classes: int, seed: int = 0, ties: bool = False
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    generator = np.random.default_rng(seed)
    truth = generator.random((images, classes)) < np.linspace(0.1, 0.6, classes)
    scores = 0.4 * truth + generator.random((images, classes))
    return (np.round(scores, 1) if ties else scores), truth


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("images", "classes"), [(1, 1), (5, 3), (200, 7)])
def test_it_is_the_mean_over_the_classes_that_images_have(images: int, classes: int, ties: bool) -> None:
    scores, truth = answers(images, classes, ties=ties)
    truth[0, 0] = True
    if classes > 2:
        truth[:, 1] = False  # a class without an image
    expected = [average_precision_score(truth[:, one], scores[:, one]) for one in range(classes) if truth[:, one].any()]
    assert exact_precision(scores, truth) == pytest.approx(np.mean(expected), abs=1e-12)


@pytest.mark.seconds
def test_resamples_are_those_of_images_that_are_drawn_again() -> None:
    scores, truth = answers(30, 4, ties=True)
    found = mean_precision({"one": scores}, truth, seed=3)["one"]
    assert found.value == exact_precision(scores, truth)
    counts = np.concatenate(list(draw_counts(30, seed=3)))
    assert counts.shape == (RESAMPLES, 30)
    assert (counts.sum(axis=1) == 30).all()
    means = []
    for row in counts.astype(int):
        drawn = np.repeat(np.arange(30), row)
        asked = truth[drawn].any(axis=0)
        means.append(average_precision_score(truth[drawn][:, asked], scores[drawn][:, asked], average="macro"))
    spread = Spread.of(truth, counts)
    assert spread.factor > 1
    expected = np.mean(means) + spread.factor * (np.array(means) - np.mean(means))
    np.testing.assert_allclose(found.resampled, expected, atol=1e-9)
    assert found.images == spread.images


def test_draws_are_the_same_again_and_others_with_another_seed() -> None:
    one, again, other = (np.concatenate(list(draw_counts(50, seed))) for seed in (1, 1, 2))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    assert len(np.unique(one, axis=0)) == RESAMPLES
    assert one.mean() == 1.0
    assert one.var() == pytest.approx(1 - 1 / 50, abs=0.05)  # of Binomial(50, 1 / 50)


def test_parts_of_the_draws_make_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.concatenate(list(draw_counts(50, 0)))
    monkeypatch.setattr("simclr_core.evaluation.multi_label.precision.CELLS", 1000)
    parts = list(draw_counts(50, 0))
    assert len(parts) == RESAMPLES * 50 // 1000
    assert np.array_equal(np.concatenate(parts), whole)


def test_f1_is_that_of_scikit_learn() -> None:
    scores, truth = answers(80, 5)
    predicted = scores > 0.6
    truth[:, 4] = False
    macro, micro = f1_scores(predicted, truth, np.ones((1, 80)))
    present = f1_score(truth[:, :4], predicted[:, :4], average="macro", zero_division=0)
    assert macro[0] == pytest.approx(present, abs=1e-12)
    assert micro[0] == pytest.approx(f1_score(truth, predicted, average="micro", zero_division=0), abs=1e-12)


def test_f1_without_an_answer_is_zero() -> None:
    nothing, truth = np.zeros((3, 2), bool), np.array([[1, 0], [0, 0], [1, 1]], bool)
    assert [one[0] for one in f1_scores(nothing, truth, np.ones((1, 3)))] == [0.0, 0.0]
    assert [one[0] for one in f1_scores(nothing, nothing, np.ones((1, 3)))] == [0.0, 0.0]


def test_the_interval_is_about_that_of_new_images() -> None:
    """The standard error of the bootstrap next to the spread over sets of images that really are others."""
    values = [exact_precision(*answers(300, 4, seed)) for seed in range(200)]
    scores, truth = answers(300, 4, seed=1000)
    found = mean_precision({"one": scores}, truth, 0)["one"]
    assert found.resampled.std(ddof=1) == pytest.approx(np.std(values, ddof=1), rel=0.2)
    shown = measured(found.value, found.resampled, worth=1.0)
    assert shown.high - shown.low == pytest.approx(2 * 196 * found.resampled.std(ddof=1), rel=0.01)


def test_a_gain_is_paired_by_image() -> None:
    """Of the same answers with a little noise the gain is far surer than either of the two."""
    scores, truth = answers(300, 4)
    noisy = scores + 0.02 * np.random.default_rng(1).random(scores.shape)
    found = mean_precision({"one": scores, "other": noisy}, truth, 0)
    alone = 100 * found["one"].resampled.std(ddof=1)
    paired = gain(found["one"], [found["other"]], worth=1.0)
    assert paired.standard_error < alone / 4
    assert paired.difference == pytest.approx(paired.trained - paired.other, abs=2e-3)
    assert gain(found["one"], [found["one"]], worth=1.0).standard_error == 0
    assert gain(found["one"], [found["other"]], worth=0.25).standard_error == pytest.approx(
        2 * paired.standard_error, abs=1e-3
    )


def test_the_interval_of_draws_knows_of_their_spread_and_of_a_single_draw() -> None:
    first = Precision(0.5, np.random.default_rng(0).normal(0.5, 0.02, RESAMPLES))
    near, far = (mean_of_draws(draws, first, 1.0, 50) for draws in ((0.5, 0.51, 0.49), (0.5, 0.6, 0.4)))
    alone, many = mean_of_draws([0.5], first, 1.0, 50), mean_of_draws([0.5], first, 1.0, 50_000)
    assert near.value == far.value == alone.value == 50.0
    assert near.high - near.low < far.high - far.low
    assert alone.high - alone.low > many.high - many.low
    assert measured(0.999, first.resampled, 1.0).high == 100.0


def rare(images: int) -> NDArray[np.bool_]:
    """One image has the first class, three the second, and a third the last."""
    truth = np.zeros((images, 3), bool)
    truth[0, 0], truth[:3, 1], truth[: images // 3, 2] = True, True, True
    return truth


@pytest.mark.parametrize("truth", [rare(30), np.eye(6, dtype=bool)], ids=["mixed", "one image of each class"])
def test_resamples_are_spread_as_widely_as_errors_of_the_images_make_the_mean(truth: NDArray[np.bool_]) -> None:
    """In place of precisions an error of one image at a time: independent ones add up by their variances."""
    counts = np.concatenate(list(draw_counts(len(truth), 0)))

    def mean(error: NDArray[np.float64], row: NDArray[np.float64]) -> float:
        return float(np.mean([np.average(error[has], weights=row[has]) for has in truth.T if row[has].any()]))

    errors = np.eye(len(truth))
    true = sum(mean(one, np.ones(len(truth))) ** 2 for one in errors)
    shown = sum(float(np.var([mean(one, row) for row in counts[:80]])) for one in errors)
    spread = Spread.of(truth, counts[:80])
    assert spread.factor**2 * shown == pytest.approx(true)
    assert spread.images == pytest.approx(1 / true)


def test_images_count_by_their_parts_in_the_mean() -> None:
    counts = np.concatenate(list(draw_counts(60, 0)))
    alike = Spread.of(np.arange(60)[:, None] % 3 == np.arange(3), counts)
    assert alike.images == pytest.approx(60)
    assert alike.factor == pytest.approx((60 / 57) ** 0.5, rel=0.02), "three means of twenty"
    assert Spread.of(rare(60), counts).images < 10
    texts = Counter("|".join(map(str, np.flatnonzero(row))) for row in rare(60))
    joined = {label_sets.join(text.split("|") if text else []): count for text, count in texts.items()}
    assert label_sets.effective_images(joined) == pytest.approx(Spread.of(rare(60), counts).images)
    assert Spread.of(np.ones((1, 1), bool), np.ones((400, 1))) == Spread(1.0, 1.0)
