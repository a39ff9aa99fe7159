"""The judgment without labels against naive loops, and against encoders of which one is known to be better."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import deploy
from simclr_core.augmentation.augmentations import Augmentation
from simclr_core.data.shards import ShardedImages
from simclr_core.errors import NonFiniteFeaturesError
from simclr_core.evaluation import label_free
from simclr_core.evaluation.label_free import MILD, NEIGHBORS, compare_without_labels, draw_views, kept_neighbors
from tests.conftest import write_prepared
from tests.simclr_core.pixel_encoders import CANDIDATE, CHAMPION, mixing, put_bundle

VIEWS = Augmentation(15, **MILD)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_prepared(tmp_path_factory.mktemp("views"), train=80, test=10) / "data" / "prepared"


def naive_neighbors(views: NDArray[np.float32], image: int, count: int) -> set[int]:
    similarity = {other: float(views[image] @ views[other]) for other in range(len(views)) if other != image}
    return set(sorted(similarity, key=lambda other: -similarity[other])[:count])


def unit(count: int, dim: int, seed: int) -> NDArray[np.float32]:
    drawn = np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)
    normalized: NDArray[np.float32] = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    return normalized


def test_kept_neighbors_are_those_of_a_naive_loop() -> None:
    first = unit(40, 5, seed=0)
    second = first + 0.3 * unit(40, 5, seed=1)
    second /= np.linalg.norm(second, axis=1, keepdims=True)
    kept = kept_neighbors(first, second, 7)
    expected = [len(naive_neighbors(first, one, 7) & naive_neighbors(second, one, 7)) / 7 for one in range(40)]
    np.testing.assert_allclose(kept, expected)
    assert 0 < kept.mean() < 1


def test_equal_views_keep_all_neighbors_and_unrelated_ones_as_many_as_chance() -> None:
    first = unit(400, 8, seed=0)
    assert (kept_neighbors(first, first, 20) == 1).all()
    assert kept_neighbors(first, unit(400, 8, seed=1), 20).mean() == pytest.approx(20 / 399, abs=0.01)


def test_an_image_is_never_its_own_neighbor_though_it_has_exact_copies() -> None:
    first = np.repeat(unit(4, 6, seed=0), 3, axis=0)  # each image three times
    second = np.concatenate([first[6:], first[:6]])  # the copies of an image are in the same places
    assert (kept_neighbors(first, second, 2) == 1).all()


def test_views_are_the_same_ones_however_many_are_drawn_at_a_time(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, positions = ShardedImages(prepared / "train"), np.arange(70)
    whole = [np.concatenate(views) for views in zip(*draw_views(images, positions, VIEWS, seed=0), strict=True)]
    monkeypatch.setattr(label_free, "CHUNK", 9)
    parts = [np.concatenate(views) for views in zip(*draw_views(images, positions, VIEWS, seed=0), strict=True)]
    assert whole[0].shape == (70, 15, 15, 3)
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(one, other)
    assert (whole[0] != whole[1]).any(axis=(1, 2, 3)).mean() > 0.9


def test_every_number_equals_what_the_embeddings_of_the_same_views_give(prepared: Path, tmp_path: Path) -> None:
    put_bundle(tmp_path / "candidate", mixing(1), CANDIDATE)
    put_bundle(tmp_path / "champion", mixing(2), CHAMPION)
    encoders = {name: deploy.load(tmp_path / name) for name in ("candidate", "champion")}
    images, positions = ShardedImages(prepared / "train"), np.arange(0, 80, 1)
    report = compare_without_labels(encoders, images, positions, "train")
    assert report is not None
    views = [np.concatenate(one) for one in zip(*draw_views(images, positions, VIEWS, seed=0), strict=True)]
    ours, theirs = (
        100 * kept_neighbors(*(encoder.embed(view).vectors for view in views), NEIGHBORS)
        for encoder in encoders.values()
    )
    assert (report.images, report.split) == (80, "train")
    assert report.candidate == pytest.approx(ours.mean(), abs=1e-3)
    assert report.champion == pytest.approx(theirs.mean(), abs=1e-3)
    assert report.difference == pytest.approx((ours - theirs).mean(), abs=1e-3)
    assert report.standard_error == pytest.approx(np.std(ours - theirs, ddof=1) / np.sqrt(80), abs=1e-3)


def test_an_encoder_of_colors_keeps_more_neighbors_than_one_of_single_pixels(prepared: Path, tmp_path: Path) -> None:
    corner = np.zeros((10 * 10 * 3, 12), np.float32)
    corner[:12] = np.eye(12)  # what a crop replaces
    everything = np.zeros((10 * 10 * 3, 12), np.float32)
    for channel in range(3):
        everything[channel::3, channel] = 1
    put_bundle(tmp_path / "candidate", everything, CANDIDATE)
    put_bundle(tmp_path / "champion", corner, CANDIDATE)
    encoders = {name: deploy.load(tmp_path / name) for name in ("candidate", "champion")}
    report = compare_without_labels(encoders, ShardedImages(prepared / "train"), np.arange(80), "train")
    assert report is not None
    assert report.difference > 4 * report.standard_error > 0


def test_too_few_images_are_not_judged(prepared: Path, tmp_path: Path) -> None:
    put_bundle(tmp_path / "bundle", mixing(1), CANDIDATE)
    encoders = dict.fromkeys(("candidate", "champion"), deploy.load(tmp_path / "bundle"))
    assert compare_without_labels(encoders, ShardedImages(prepared / "train"), np.arange(49), "train") is None


def test_embeddings_that_are_not_finite_are_an_error(prepared: Path, tmp_path: Path) -> None:
    broken = mixing(1)
    broken[0, 0] = np.nan
    put_bundle(tmp_path / "candidate", broken, CANDIDATE)
    put_bundle(tmp_path / "champion", mixing(2), CANDIDATE)
    encoders = {name: deploy.load(tmp_path / name) for name in ("candidate", "champion")}
    with pytest.raises(NonFiniteFeaturesError, match="candidate"):
        compare_without_labels(encoders, ShardedImages(prepared / "train"), np.arange(80), "train")
