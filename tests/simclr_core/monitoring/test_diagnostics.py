"""The label-free numbers against slow oracles and cases whose answer is known."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from deploy.images.preprocess import Preprocessing
from simclr_core.data.shards import ShardedImages, read_card
from simclr_core.errors import NonFiniteFeaturesError
from simclr_core.evaluation.features import encode, own_rows
from simclr_core.launch import Member
from simclr_core.monitoring import diagnostics
from simclr_core.monitoring.diagnostics import (
    MEASURED,
    Monitor,
    alignment,
    choose_monitor,
    collapsed,
    effective_rank,
    feature_std,
    thumbnails,
    uniformity,
)
from tests.simclr_core.fake_cuda import count, fake_cuda


def unit(row: list[float]) -> list[float]:
    length = math.sqrt(sum(value * value for value in row))
    return [value / length for value in row]


def squared_distance(a: list[float], b: list[float]) -> float:
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True))


def random_features(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3 + 0.5


def test_alignment_is_the_mean_squared_distance_of_unit_rows() -> None:
    first, second = random_features(7, 5), random_features(7, 5, seed=1)
    pairs = zip(first.tolist(), second.tolist(), strict=True)
    expected = sum(squared_distance(unit(a), unit(b)) for a, b in pairs) / 7
    assert alignment(first, second) == pytest.approx(expected)
    assert alignment(first, first * 2) == pytest.approx(0)
    assert alignment(first, -first) == pytest.approx(4)


def test_uniformity_is_the_log_of_the_mean_potential_over_pairs() -> None:
    rows = [unit(row) for row in random_features(6, 4).tolist()]
    potentials = [math.exp(-2 * squared_distance(rows[i], rows[j])) for i in range(6) for j in range(i)]
    assert uniformity(random_features(6, 4)) == pytest.approx(math.log(sum(potentials) / len(potentials)))
    assert uniformity(torch.ones(5, 3)) == pytest.approx(0)


def test_effective_rank_counts_directions() -> None:
    assert effective_rank(torch.eye(8)) == pytest.approx(8)
    assert effective_rank(torch.ones(20, 8)) == pytest.approx(1)
    values = torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)
    rotation, _ = torch.linalg.qr(random_features(3, 3))
    shares = [value / 6 for value in values.tolist()]
    expected = math.exp(-sum(share * math.log(share) for share in shares))
    assert effective_rank(torch.diag(values) @ rotation) == pytest.approx(expected)
    assert effective_rank(torch.zeros(4, 3)) == pytest.approx(1)


@pytest.mark.parametrize(("n", "d"), [(300, 40), (40, 300), (64, 64)])
@pytest.mark.parametrize("kind", ["even", "uneven", "deficient", "rectified"])
def test_the_effective_rank_is_that_of_the_singular_values(kind: str, n: int, d: int) -> None:
    features = random_features(n, d)
    if kind == "uneven":  # over four decades
        features *= torch.logspace(0, -4, d, dtype=torch.float64)
    if kind == "deficient":
        features = random_features(n, 5) @ random_features(5, d, seed=1)
    if kind == "rectified":
        features = (features - 2).relu().float()
    singular = np.linalg.svd(features.double().numpy(), compute_uv=False)
    shares = singular / singular.sum()
    expected = math.exp(-sum(share * math.log(share) for share in shares if share > 0))
    assert effective_rank(features) == pytest.approx(expected, rel=1e-7)


def test_feature_std_is_zero_for_one_direction_and_one_for_an_even_spread() -> None:
    assert feature_std(torch.ones(9, 4) * torch.arange(1, 10)[:, None]) == pytest.approx(0, abs=1e-9)
    both_ways = torch.cat([torch.eye(6), -torch.eye(6)])
    assert feature_std(both_ways) == pytest.approx(1)
    rows = torch.tensor([unit(row) for row in random_features(10, 3).tolist()])
    expected = sum(math.sqrt(sum((x - c.mean()) ** 2 for x in c) / 10) for c in rows.T) / 3 * math.sqrt(3)
    assert feature_std(random_features(10, 3)) == pytest.approx(expected, rel=1e-5)


def judged(features: torch.Tensor) -> bool:
    return collapsed(effective_rank(features), feature_std(features))


def test_collapse_is_recognized_and_health_is_not_called_collapse() -> None:
    noise = random_features(256, 64)
    constant = torch.full((256, 64), 5.0, dtype=torch.float64)
    line = torch.linspace(-1, 1, 256, dtype=torch.float64)[:, None] * torch.ones(64)
    assert judged(constant)
    assert judged(constant + 1e-3 * noise)  # one point, seen through a little noise
    assert judged(line)
    assert judged(torch.zeros(256, 64))
    assert not judged(noise)
    assert not judged((constant + noise).relu())  # all positive, as after a ReLU: a large common mean is healthy


def monitor(labels: list[int], seed: int = 0) -> Monitor:
    images = np.random.default_rng(seed).integers(0, 256, (len(labels), 8, 8, 3), np.uint8)
    return Monitor(images, np.array(labels), (0.5,) * 3, (0.25,) * 3, ("a", "b", "c"))


def small_encoder() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_the_monitor_measures_h_and_z_and_changes_nothing() -> None:
    watched, encoder = monitor([0, 1] * 20), small_encoder().train()
    head = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)).train()
    network = nn.Sequential(encoder, head)
    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    generator = torch.get_rng_state()
    first, second = random_features(7, 5), random_features(7, 5, seed=1)
    h = watched.features(encoder)
    measured = watched.measure(h, head, first, second)
    assert torch.equal(h, encode(encoder, watched.images, watched.mean, watched.std))
    assert measured["effective_rank"] == pytest.approx(effective_rank(h))
    assert measured["feature_std"] == pytest.approx(feature_std(h))
    z = head[0](h).detach() / math.sqrt(1 + head[1].eps)  # by the BatchNorm's running statistics, which are 0 and 1
    assert measured["effective_rank_z"] == pytest.approx(effective_rank(z), rel=1e-5)
    assert measured["feature_std_z"] == pytest.approx(feature_std(z), rel=1e-5)
    assert measured["alignment"] == pytest.approx(alignment(first, second), rel=1e-5)
    assert measured["uniformity"] == pytest.approx(uniformity(first), rel=1e-5)
    assert tuple(measured) == MEASURED
    alone = replace(watched, of_head=False).measure(h, head, first, second)
    assert alone == {**measured, "effective_rank_z": alone["effective_rank"], "feature_std_z": alone["feature_std"]}
    assert all(module.training for module in network.modules())
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in network.state_dict().items())


IMAGES = 600  # three batches


def look_in_a_group(rank: int) -> tuple[torch.Tensor, dict[str, float | None], torch.Tensor]:
    whole, member = monitor([0, 1, 2] * (IMAGES // 3)), Member(rank, 2, torch.device("cpu"))
    own = whole.images[own_rows(IMAGES, member)]
    watched, z = replace(whole, images=own, member=member), random_features(4, 3)
    h = watched.features(small_encoder())
    pictures = torch.from_numpy(diagnostics._gather_pictures(own, IMAGES, member))
    return h, {**watched.measure(h, nn.Identity(), z, z)}, pictures


@pytest.mark.seconds
def test_processes_share_the_images_and_see_what_one_sees(on_ranks: Callable[..., list[Any]]) -> None:
    watched, z = monitor([0, 1, 2] * (IMAGES // 3)), random_features(4, 3)
    h = watched.features(small_encoder())
    for shared, measured, pictures in on_ranks(2, look_in_a_group):
        assert torch.equal(shared, h)
        assert measured == watched.measure(h, nn.Identity(), z, z)
        assert np.array_equal(pictures.numpy(), thumbnails(watched.images))


@pytest.mark.seconds
def test_on_a_gpu_the_features_are_made_and_judged_there() -> None:
    watched = monitor([0, 1, 2] * 4)
    with fake_cuda() as gpu:
        h = watched.features(small_encoder().to(gpu))
        assert (h.device, h.shape) == (gpu, (12, 6))
        counts = count(lambda: (watched._probe_top1(h), effective_rank(h), feature_std(h)))
        assert diagnostics._projected(nn.Identity(), h).device == gpu
    assert counts.kernels > 0


def test_the_online_knn_classifies_half_of_the_labeled_images_by_the_other_half() -> None:
    colors = np.zeros((8, 8, 8, 3), np.uint8)
    colors[[0, 1, 4, 5]] = (255, 0, 0)
    colors[[2, 3, 6, 7]] = (0, 0, 255)
    labels = np.array([0, 0, 1, 1, 0, 1, -1, -1])  # the red image 5 is labeled as blue
    watched = Monitor(colors, labels, (0.5,) * 3, (0.25,) * 3, ("a", "b", "c"))
    z = random_features(4, 3)
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    encoder = nn.Sequential(pooled, nn.Linear(3, 3, bias=False))
    nn.init.eye_(encoder[1].weight)
    # 0, 2 and 4 answer; 1 and 3 are reported right, 5 is not
    assert watched.measure(watched.features(encoder), nn.Identity(), z, z)["knn_top1"] == pytest.approx(66.667)


def probed(h: torch.Tensor, labels: list[int]) -> float | None:
    images = np.zeros((len(h), 8, 8, 3), np.uint8)
    watched = Monitor(images, np.array(labels), (0.5,) * 3, (0.25,) * 3, ("a", "b", "c"))
    return watched._probe_top1(h.float())


def test_the_online_probe_trains_on_half_of_the_labeled_images_and_is_tested_on_the_other_half() -> None:
    """Against plain gradient descent on the same objective, of which the optimum is unique."""
    h, labels = random_features(60, 5), np.random.default_rng(1).integers(0, 3, 60)
    h[np.arange(60), labels] += 3  # one image in a few is on the wrong side
    x = (h - h.mean(dim=0)) / h.std(dim=0, correction=0)
    weight, bias = torch.zeros(5, 3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    truth = torch.nn.functional.one_hot(torch.from_numpy(labels), 3)
    for _ in range(3000):
        error = ((x[::2] @ weight + bias).softmax(dim=1) - truth[::2]) / 30
        weight -= 0.5 * (x[::2].T @ error + 0.1 * weight)
        bias -= 0.5 * error.sum(dim=0)
    right = ((x[1::2] @ weight + bias).argmax(dim=1).numpy() == labels[1::2]).mean()
    assert 0.5 < right < 1
    assert probed(h, labels.tolist()) == pytest.approx(100 * right, abs=1e-3)


def test_the_probe_needs_no_healthy_features_and_no_second_class() -> None:
    assert probed(torch.ones(8, 4), [0, 0, 0, 0, 0, 0, 1, 1]) == pytest.approx(75)  # all it has is how often each is
    assert probed(random_features(8, 4), [0] * 8) == pytest.approx(100)
    assert probed(random_features(2, 3), [2, 2]) == pytest.approx(100)


@pytest.mark.parametrize("labels", [[-1] * 6, [-1, -1, 2, -1, -1, -1]])
def test_without_labels_only_knn_and_probe_are_missing(labels: list[int]) -> None:
    z = random_features(4, 3)
    watched = monitor(labels)
    measured = watched.measure(watched.features(small_encoder()), nn.Identity(), z, z)
    assert {name for name, value in measured.items() if value is None} == {"knn_top1", "probe_top1"}


def test_features_that_are_not_finite_are_an_error() -> None:
    encoder = small_encoder()
    with torch.no_grad():
        encoder[0].weight.fill_(float("nan"))
    with pytest.raises(NonFiniteFeaturesError, match="infinite or not a number"):
        monitor([0] * 4).features(encoder)


def test_labeled_images_are_watched_first(prepared: Path) -> None:
    folder = prepared / "data" / "prepared"
    images, card = ShardedImages(folder / "train"), read_card(folder)  # 96, of which 48 have a label
    preprocessing = Preprocessing(16, 16)

    def chosen(count: int, seed: int = 0) -> Monitor:
        return choose_monitor(images, card, preprocessing, count, seed)

    assert (chosen(32).labels >= 0).sum() == 32
    assert [(chosen(60).labels >= 0).sum(), len(chosen(60).labels)] == [48, 60]
    assert len(chosen(2000).images) == 96
    assert len(np.unique(chosen(2000).images.reshape(96, -1), axis=0)) == 96
    np.testing.assert_array_equal(chosen(32).images, chosen(32).images)
    assert not np.array_equal(chosen(32).images, chosen(32, seed=1).images)
