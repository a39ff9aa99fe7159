"""Scores by class against scikit-learn's, intervals against arithmetic, and what the accuracy alone would hide."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, balanced_accuracy_score, f1_score, precision_score, recall_score

from simclr_core.evaluation.scores.classification import average_precision, estimate, score

CLASSES = ("ant", "bee", "cat", "dog")


def answers(ties: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, classes and answers of 300 images, of which few are of the third class and none of the fourth."""
    random = np.random.default_rng(3)
    actual = random.choice(3, 300, p=[0.6, 0.35, 0.05])
    scores = random.normal(size=(300, 4)) + 1.5 * np.eye(4)[actual]
    scores = scores.round(0 if ties else 9)
    return scores, actual, scores.argmax(axis=1)


@pytest.mark.parametrize("ties", [False, True])
def test_scores_are_those_of_scikit_learn(ties: bool) -> None:
    scores, actual, predicted = answers(ties)
    found = score(scores, actual, predicted, np.array([0, 0, 1, 3, -1]), CLASSES)
    present = [0, 1, 2]
    assert found.balanced_accuracy == pytest.approx(
        100 * recall_score(actual, predicted, labels=present, average="macro"), abs=1e-3
    )
    assert found.macro_f1 == pytest.approx(100 * f1_score(actual, predicted, labels=present, average="macro"), abs=1e-3)
    expected = [average_precision_score(actual == number, scores[:, number]) for number in present]
    assert found.mean_average_precision == pytest.approx(100 * np.mean(expected), abs=1e-3)
    for number in present:
        one = found.per_class[CLASSES[number]]
        assert one.average_precision == pytest.approx(100 * expected[number], abs=1e-3)
        about = {"labels": [number], "average": "macro"}
        assert one.recall == pytest.approx(100 * recall_score(actual, predicted, **about), abs=1e-3)
        assert one.precision == pytest.approx(100 * precision_score(actual, predicted, **about), abs=1e-3)
        assert (one.images, one.answers) == (np.sum(actual == number), np.sum(predicted == number))
    assert [one.labels for one in found.per_class.values()] == [2, 1, 0, 1]
    absent = found.per_class["dog"]
    assert (absent.images, absent.recall, absent.average_precision) == (0, None, None)


def test_a_rare_class_that_is_never_the_answer_shows() -> None:
    actual = np.repeat([0, 1], [95, 5])
    found = score(np.tile([0.9, 0.1], (100, 1)), actual, np.zeros(100, int), actual, ("good", "broken"))
    assert found.top1.top1 == 95
    assert found.balanced_accuracy == balanced_accuracy_score(actual, np.zeros(100)) * 100 == 50
    broken = found.per_class["broken"]
    assert (broken.answers, broken.recall, broken.precision, broken.f1) == (0, 0, None, 0)
    assert broken.average_precision == 5  # as by chance: every score is the same


def test_equal_scores_are_ranked_together_whatever_their_order() -> None:
    scores = np.array([1.0, 1.0, 0.5, 0.5])
    for positive in ([True, False, False, True], [False, True, True, False]):
        assert average_precision(scores, np.array(positive)) == pytest.approx(0.5)


def test_the_interval_of_one_draw_is_wider_than_that_of_three() -> None:
    one, three = estimate([0.75], 2000, 80), estimate([0.73, 0.75, 0.77], 2000, 80)
    assert one.top1 == three.top1 == 75
    assert one.low < three.low < 75 < three.high < one.high
    # 1.96 * sqrt(0.75 * 0.25 / 80) is 9.5 points, and Wilson's interval of 2,000 images is 1.9 wide to each side
    assert one.high == pytest.approx(75 + np.hypot(9.49, 1.85), abs=0.05)
    assert estimate([0.0], 10, 5).low == 0


def test_more_labels_and_more_images_make_it_narrower() -> None:
    widths = [
        found.high - found.low for found in (estimate([0.8], 50, 10), estimate([0.8], 50, 99), estimate([0.8], 999, 99))
    ]
    assert widths == sorted(widths, reverse=True)
