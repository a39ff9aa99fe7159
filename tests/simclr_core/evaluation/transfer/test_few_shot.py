import math

import numpy as np
import pytest

from deploy.search.few_shot import FewShot
from simclr_core.evaluation.transfer.few_shot import (
    EPISODES,
    QUERIES,
    Episode,
    draw_episodes,
    episode_accuracy,
    interval,
)


def test_prototypes_computed_by_hand() -> None:
    # The examples of class 0 have the directions (1, 0) and (0, 1): its prototype is that of 45 degrees, however long
    # one of them is. Class 1 is at 180 degrees.
    features = np.array([[1, 0], [0, 50], [-1, 0], [-2, 0]], np.float32)
    angles = np.deg2rad([0, 60, 120, 110, 170, 112])
    asked = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    episode = Episode(np.array([[0, 1], [2, 3]]), np.array([[4, 5, 6], [7, 8, 9]]))
    # The border is at 112.5 degrees: 0 and 60 are right, 120 is wrong; of class 1 only 170 is right.
    assert episode_accuracy(np.concatenate([features, asked]), episode) == pytest.approx(100 * 3 / 6)


def test_accuracy_is_that_of_the_served_classifier() -> None:
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(6), 25)
    features = (generator.normal(size=(6, 8))[labels] + generator.normal(size=(150, 8))).astype(np.float32)
    for episode in draw_episodes(labels, seed=1, episodes=5):
        names = [str(row) for row in range(5) for _ in range(5)]
        served = FewShot(features[episode.examples].reshape(25, 8), names, "class_mean")
        answers = served.predict(features[episode.queries].reshape(-1, 8)).argmax(axis=1)
        assert episode_accuracy(features, episode) == pytest.approx(
            100 * np.mean(answers == np.repeat(range(5), QUERIES))
        )


def test_episodes_are_600_of_five_classes_and_no_image_is_twice_in_one() -> None:
    labels = np.repeat(np.arange(7), 20)
    episodes = list(draw_episodes(labels, seed=0))
    assert len(episodes) == EPISODES == 600
    for one in episodes:
        taken = np.concatenate([one.examples, one.queries], axis=1)
        assert taken.shape == (5, 20)
        assert len(np.unique(taken)) == taken.size
        assert (labels[taken] == labels[taken[:, :1]]).all()
        assert len(np.unique(labels[taken[:, 0]])) == 5
    again = list(draw_episodes(labels, seed=0))
    assert all((a.examples == b.examples).all() for a, b in zip(episodes, again, strict=True))


def test_too_few_images_give_no_episode() -> None:
    assert list(draw_episodes(np.repeat(np.arange(5), 19), seed=0)) == []
    assert list(draw_episodes(np.repeat(np.arange(4), 50), seed=0)) == []


def test_the_interval_is_that_of_the_normal_distribution() -> None:
    values = np.array([50.0, 60.0, 70.0, 80.0])
    mean, half = interval(values)
    assert mean == 65
    assert half == pytest.approx(1.96 * math.sqrt(((values - 65) ** 2).sum() / 3) / 2, rel=1e-4)
