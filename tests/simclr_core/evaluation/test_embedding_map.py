"""The map of the embeddings: neighbors stay neighbors, the bytes do not change, and there is always a picture."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_info, threadpool_limits

from simclr_core import plots
from simclr_core.evaluation import embedding_map
from simclr_core.evaluation.embedding_map import coordinates, save_map

CLASSES = ("a", "b", "c")


def islands(count: int, dim: int = 64) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Three directions close to each other with less noise around, each vector with another length."""
    random = np.random.default_rng(0)
    labels = np.arange(count) % 3
    directions = random.normal(size=dim) + random.normal(scale=0.03, size=(3, dim))
    vectors = directions[labels] + random.normal(scale=0.003, size=(count, dim))
    return (vectors * random.uniform(1, 100, (count, 1))).astype(np.float32), labels


def same_class_neighbors(points: NDArray[np.floating], labels: NDArray[np.integer], count: int = 5) -> float:
    """The share of the nearest ``count`` points that have the class of the point."""
    distances = np.square(points[:, None] - points).sum(axis=2)
    nearest = np.argsort(distances, axis=1)[:, 1 : count + 1]
    return float(np.mean(labels[nearest] == labels[:, None]))


def test_vectors_of_one_direction_form_a_cluster_at_any_length() -> None:
    features, labels = islands(150)
    points = coordinates(features)
    assert points is not None
    assert points.shape == (150, 2)
    assert same_class_neighbors(points, labels) == 1.0
    assert same_class_neighbors(features, labels) < 0.95, "lengths hide nothing, so this test would show nothing"


def test_lengths_and_rotations_do_not_move_a_point() -> None:
    features, labels = islands(60, dim=8)
    longer = features * np.linspace(1, 9, 60, dtype=np.float32)[:, None]
    a, b = coordinates(features), coordinates(longer)
    assert a is not None
    assert b is not None
    assert same_class_neighbors(a, labels) == same_class_neighbors(b, labels) == 1.0


@pytest.mark.seconds
@pytest.mark.parametrize("count", [10, 11, 31, 92])
def test_few_images_have_a_map_too(count: int, tmp_path: Path) -> None:
    features, labels = islands(count)
    points = coordinates(features)
    assert points is not None
    assert np.isfinite(points).all()
    save_map(tmp_path / "map.png", features, labels, CLASSES)


def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    calls: dict[str, list[Any]] = {"note": [], "scatter": []}
    monkeypatch.setattr(plots, "note", lambda path, text: calls["note"].append(text))
    monkeypatch.setattr(
        plots, "scatter", lambda path, points, labels, classes, _: calls["scatter"].append((points, labels))
    )
    return calls


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        (np.ones((9, 4), np.float32), "9 images are too few for a map; 10 or more are needed"),
        (np.ones((0, 4), np.float32), "0 images are too few for a map; 10 or more are needed"),
        (np.full((20, 4), 0.1, np.float32) * np.arange(1, 21, dtype=np.float32)[:, None], "all embeddings are equal"),
        (np.zeros((20, 4), np.float32), "all embeddings are equal"),
    ],
)
def test_the_picture_says_why_there_is_no_map(
    monkeypatch: pytest.MonkeyPatch, features: NDArray[np.float32], expected: str
) -> None:
    calls = drawn(monkeypatch)
    save_map(Path("map.png"), features, np.zeros(len(features), np.int64), CLASSES)
    assert not calls["scatter"]
    assert expected in str(calls["note"])


def test_of_many_images_a_fixed_sample_of_every_class_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = drawn(monkeypatch)
    monkeypatch.setattr(embedding_map, "IMAGES", 60)
    features, labels = islands(300)
    by_class = np.argsort(labels, kind="stable")  # as folders give them
    for _ in range(2):
        save_map(Path("map.png"), features[by_class], labels[by_class], CLASSES)
    (points, shown), (again, _) = calls["scatter"]
    assert np.array_equal(points, again)
    assert points.shape == (60, 2)
    assert np.bincount(shown, minlength=3).min() > 10
    assert same_class_neighbors(points, shown) == 1.0


@pytest.mark.seconds
def test_the_bytes_do_not_depend_on_the_number_of_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_work: list[set[int]] = []
    fit = TSNE.fit_transform

    def noted(tsne: TSNE, components: NDArray[np.float64]) -> NDArray[np.float32]:
        at_work.append({pool["num_threads"] for pool in threadpool_info()})
        points: NDArray[np.float32] = fit(tsne, components)
        return points

    monkeypatch.setattr(TSNE, "fit_transform", noted)
    for threads in (1, 3):
        with threadpool_limits(threads):
            save_map(tmp_path / f"{threads}.png", *islands(200), CLASSES)
            assert {pool["num_threads"] for pool in threadpool_info()} == {threads}
    assert at_work == [{1}, {1}]
    content = (tmp_path / "1.png").read_bytes()
    assert content == (tmp_path / "3.png").read_bytes()
    assert len(content) < plots.MAX_BYTES
