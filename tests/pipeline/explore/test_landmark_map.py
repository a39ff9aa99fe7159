"""The map: what is there already does not move, and what is placed lands among its class."""

import numpy as np
import pytest
from numpy.typing import NDArray

from deploy.explore.placement import among
from pipeline.explore.landmark_map import count_landmarks, nearest_labeled, place

CLASSES, DIM = 5, 16


def islands(count: int, seed: int, spread: float = 0.15) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Unit vectors [count, DIM] around one center for each class, and their classes."""
    random = np.random.default_rng(seed)
    centers = np.linalg.qr(np.random.default_rng(0).normal(size=(DIM, DIM)))[0][:CLASSES]
    labels = random.integers(0, CLASSES, count)
    vectors = centers[labels] + random.normal(0, spread, (count, DIM))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), labels


@pytest.mark.seconds
def test_new_images_do_not_move_the_others_and_land_among_their_class() -> None:
    old, old_labels = islands(300, seed=1)
    new, new_labels = islands(500, seed=2)
    first = place(old, landmarks=200)
    both = place(np.concatenate([old, new]), landmarks=200)
    np.testing.assert_array_equal(both.points[:200], first.points[:200])
    np.testing.assert_allclose(both.points[200:300], first.points[200:], atol=1e-5)  # sums in another order
    np.testing.assert_allclose(both.novelty[:300], first.novelty, atol=1e-5)
    apart = np.linalg.norm(both.points[200:, None] - both.points[None, :200], axis=2)
    found = old_labels[:200][apart.argmin(axis=1)]
    assert (found == np.concatenate([old_labels[200:], new_labels])).mean() > 0.98
    assert np.abs(both.points).max() == pytest.approx(1)


@pytest.mark.seconds
def test_what_no_landmark_resembles_is_novel() -> None:
    vectors, _ = islands(300, seed=1)
    stranger = np.linalg.svd(vectors)[2][-1:].astype(np.float32)  # at right angles to nearly all of them
    novelty = place(np.concatenate([vectors, stranger]), landmarks=250).novelty
    assert novelty.argmax() == 300
    assert novelty[-1] > 2 * novelty[:-1].mean()


def test_an_image_between_two_islands_is_placed_on_the_one_with_more_weight() -> None:
    layout = np.array([[-1, 0], [-0.97, 0.02], [1, 0], [0.99, 0.01], [0.98, -0.02]], np.float32)
    cosines = np.array([[0.9, 0.89, 0.88, 0.1, 0.1], [0.2, 0.5, 0.7, 0.71, 0.72]], np.float32)
    left, right = among(layout, cosines)
    assert np.linalg.norm(left - layout[0]) < 0.04  # the mean of all would be at 0.4
    assert np.linalg.norm(right - layout[3]) < 0.04


@pytest.mark.parametrize("count", [0, 1, 5])
def test_few_images_have_no_map(count: int) -> None:
    vectors, _ = islands(count, seed=3)
    found = place(vectors, landmarks=count)
    assert found.points.shape == (count, 2)
    assert np.isnan(found.points).all()
    assert np.isnan(found.novelty).all() == (count < 2)


def test_equal_images_have_no_map() -> None:
    assert np.isnan(place(np.ones((20, 4), np.float32) / 2, landmarks=20).points).all()


def test_a_later_batch_gives_no_landmarks_once_there_are_enough() -> None:
    batches = ["0001"] * 30 + ["0002"] * 50
    for later in (0, 1, 400):
        assert count_landmarks(batches + ["0003"] * later, most=300, fewest=60) == 80
    assert count_landmarks(batches, most=70, fewest=60) == 70
    assert count_landmarks(["0001"] * 7, fewest=60) == 7
    assert count_landmarks([]) == 0


def test_the_nearest_labeled_images_are_those_of_a_full_search() -> None:
    vectors, _ = islands(60, seed=4)
    labeled = np.arange(0, 60, 3)
    rows, cosines = nearest_labeled(vectors, labeled, 4)
    for row in range(60):
        others = [one for one in labeled if one != row]
        expected = sorted(others, key=lambda one: -float(vectors[row] @ vectors[one]))[:4]
        assert rows[row].tolist() == expected
        np.testing.assert_allclose(cosines[row], vectors[expected] @ vectors[row], rtol=1e-5)


def test_of_too_few_labeled_images_the_rest_is_missing() -> None:
    vectors, _ = islands(6, seed=5)
    rows, cosines = nearest_labeled(vectors, np.array([2]), 3)
    assert rows[2].tolist() == [-1, -1, -1]  # itself is not its neighbor
    assert rows[0].tolist() == [2, -1, -1]
    assert np.isnan(cosines[0, 1:]).all()
    assert (nearest_labeled(vectors, np.array([], np.int64), 3)[0] == -1).all()
