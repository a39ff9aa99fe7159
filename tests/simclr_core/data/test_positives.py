"""Positives by group: second views are of the partner, whatever happens to the training; and they are worth it."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from simclr_core.augmentation.augmentations import Augmentation
from simclr_core.augmentation.draws import ViewDraws
from simclr_core.data.dataset import TrainingImages, evaluation_images
from simclr_core.data.groups import Groups
from simclr_core.data.order import Order
from simclr_core.data.shard_writing import write_shards
from simclr_core.data.shards import Sample, ShardedImages, read_card, write_card
from simclr_core.errors import BatchSizeError, DatasetError
from simclr_core.evaluation.features import encode as embed
from simclr_core.evaluation.knn import knn_accuracy
from simclr_core.launch import Member
from simclr_core.loss.nt_xent import nt_xent
from simclr_core.loss.objective import InBatch
from simclr_core.model.model_directory import load_model
from simclr_core.pretraining import pretrain
from simclr_core.pretraining.batches import Batches
from simclr_core.pretraining.pretrained import served_preprocessing
from tests.conftest import encode, write_prepared
from tests.simclr_core.conftest import configure, interrupt, put_groups, results, runs

pytestmark = pytest.mark.usefixtures("pictures_by_digest")

torch.set_num_threads(1)

CPU = torch.device("cpu")
FOURS = np.where(np.arange(96) < 80, np.arange(96) // 4, -1)


def batches(workspace: Path, grouped: bool, rank: int = 0, size: int = 1, extra_crops: int = 0) -> Batches:
    folder = workspace / "data" / "prepared"
    augmentation = Augmentation(16, crop_scale=(0.5, 1.0), blur=0.0, extra_crops=extra_crops)
    groups = Groups(FOURS.astype(np.int32)) if grouped else None
    images = ShardedImages(folder / "train")
    pixels, order = TrainingImages(images), Order(0, len(images))
    return Batches(pixels, read_card(folder), augmentation, 16, order, Member(rank, size, CPU), groups)


def test_second_views_are_of_another_image_of_the_group(prepared: Path) -> None:
    """Those of first views and extra crops are as without groups, and so is all of an image that has none."""
    plain, grouped = (batches(prepared, one, extra_crops=1) for one in (False, True))
    for step in (0, 8):
        without, inputs = (next(one.network_inputs(step, step + 1)) for one in (plain, grouped))
        assert torch.equal(inputs[:16], without[:16])
        assert torch.equal(inputs[32:], without[32:])
        positions, seconds = grouped.sources(step)[:16], grouped.sources(step)[16:32]
        alone = FOURS[positions] == -1
        assert torch.equal(inputs[16:32][alone], without[16:32][alone])
        assert (positions == seconds).tolist() == alone.tolist()
        images = TrainingImages(grouped.images).batch(seconds)
        draws = grouped._augmentation.draws(images.sizes, 0, step // 6, positions, 1)
        views = grouped._augmentation.ragged_view(images, ViewDraws(0, draws))
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.4,) * 3, (0.3,) * 3))
        torch.testing.assert_close(inputs[16:32], (views - mean) / std)
        groups = grouped.marks(step)
        assert groups is not None
        assert len(set(groups[alone].tolist()) | set(FOURS)) == alone.sum() + len(set(FOURS))
        assert groups[~alone].tolist() == FOURS[positions][~alone].tolist()
        keys = grouped.keys(step)
        assert keys == [grouped.images.key(one) for one in dict.fromkeys([*positions, *seconds])]
    assert plain.marks(0) is None
    assert len(plain.keys(0)) == 16


def test_steps_and_processes_draw_the_same_partners(prepared: Path) -> None:
    whole = list(batches(prepared, True).network_inputs(0, 9))[8]
    assert torch.equal(next(batches(prepared, True).network_inputs(8, 9)), whole)
    shares = [batches(prepared, True, rank, 2) for rank in range(2)]
    halves = [next(one.network_inputs(8, 9)) for one in shares]
    for view in (0, 1):
        torch.testing.assert_close(torch.cat([half.chunk(2)[view] for half in halves]), whole.chunk(2)[view])
    groups = batches(prepared, True).marks(8)
    assert all(torch.equal(one.marks(8), groups) for one in shares)


@pytest.mark.seconds
@pytest.mark.parametrize("changes", [{}, {"loss": "info_nce", "queue": {"size": 40, "momentum": 0.9}}])
def test_an_interrupted_run_continues_to_the_same_bytes(
    prepared: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object]
) -> None:
    put_groups(prepared, FOURS)
    configure(prepared, **changes)
    pretrain.run(prepared)
    undisturbed = results(prepared)
    interrupt(prepared, monkeypatch, "pretrain.step:raise@6")
    pretrain.run(prepared)
    assert results(prepared) == undisturbed
    assert runs(prepared) == []


def trained(workspace: Path) -> bytes:
    return (workspace / "models" / "pretrained" / "encoder.safetensors").read_bytes()


@pytest.mark.seconds
def test_positives_matter_only_where_there_are_groups(prepared: Path) -> None:
    def run(positives: str) -> bytes:
        configure(prepared, positives=positives, epochs=1)
        pretrain.run(prepared)
        return trained(prepared)

    without = run("group")
    assert run("image") == without
    put_groups(prepared, FOURS)
    assert run("image") == without
    assert run("group") != without


def test_the_run_of_an_earlier_version_is_continued(prepared: Path) -> None:
    first = pretrain.read_inputs(prepared)
    configure(prepared, positives="group")
    assert pretrain.read_inputs(prepared).key == first.key
    configure(prepared, positives="image")
    assert pretrain.read_inputs(prepared).key != first.key
    put_groups(prepared, FOURS)
    configure(prepared, positives="group")
    second = pretrain.read_inputs(prepared)
    assert second.key != first.key
    assert second.facts["data/prepared"] != first.facts["data/prepared"]


def test_what_cannot_be_is_refused(prepared: Path) -> None:
    put_groups(prepared, np.zeros(96))
    configure(prepared, loss="dcl")
    with pytest.raises(BatchSizeError, match=r"the largest group has 96 images: .* or pretrain.positives: image"):
        pretrain.run(prepared)
    put_groups(prepared, np.zeros(95))
    with pytest.raises(DatasetError, match=r"index.npy and groups.npy do not belong together; run `simclr run"):
        pretrain.run(prepared)


def test_shards_have_groups_only_where_there_are_some(tmp_path: Path) -> None:
    samples = [Sample(f"{number:064x}", "png", b"bytes", group=number - 1) for number in range(4)]
    write_shards(tmp_path / "with", [samples[:3], samples[3:]], max_bytes=100)
    write_shards(tmp_path / "without", [[replace(one, group=-1) for one in samples]], max_bytes=100)
    groups = ShardedImages(tmp_path / "with").groups
    assert groups is not None
    assert groups.tolist() == [-1, 0, 1, 2]
    assert ShardedImages(tmp_path / "without").groups is None
    assert not (tmp_path / "without" / "groups.npy").exists()


def a_step(rank: int, size: int, workspace: Path) -> dict[str, torch.Tensor]:
    source = batches(workspace, True, rank, size)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 8)).double()
    distributed = model if size == 1 else torch.nn.parallel.DistributedDataParallel(model)
    views = next(source.network_inputs(3, 4)).double()
    loss = InBatch(nt_xent, 0.2, torch.float32, 3).backward(distributed, views, source.marks(3)).loss
    return {"loss": loss, **{name: one.grad for name, one in model.named_parameters() if one.grad is not None}}


@pytest.mark.seconds
def test_two_processes_on_halves_equal_one(prepared: Path, on_ranks: Callable[..., list[Any]]) -> None:
    """With micro-batches, and groups that have images on both."""
    whole = a_step(0, 1, prepared)
    for half in on_ranks(2, a_step, 2, prepared):
        torch.testing.assert_close(half, whole, rtol=1e-7, atol=1e-9)


def photograph(shape: int, thing: int, shot: int) -> Image.Image:
    """A thing of one of four shapes, with its size and color, in another light and on another ground each time."""
    own, here = np.random.default_rng(thing), np.random.default_rng([thing, shot])
    size, color = 16 / own.uniform(3, 4), own.integers(100, 256, 3)
    y, x = np.mgrid[:16, :16] - 7.5 + here.uniform(-2, 2, (2, 1, 1))
    distance = np.hypot(x, y)
    mask = [
        distance < size,
        np.minimum(abs(x), abs(y)) < 1.6,
        np.maximum(abs(x), abs(y)) < size,
        (distance < size) & (distance > size / 2),
    ][shape]
    ground, light = here.integers(0, 256, 3), here.uniform(0.5, 1.2)
    pixels = light * np.where(mask[..., None], color, ground) + here.normal(0, 6, (16, 16, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def write_things(workspace: Path, shots: int = 6) -> None:
    """``shots`` photographs of 48 things, 12 of each shape, in groups; for the test, one of each of 400 others."""
    prepared = write_prepared(workspace) / "data" / "prepared"
    for split, first, things in (("train", 0, 48), ("test", 1000, 400)):
        samples = []
        for thing in range(things):
            for shot in range(shots if split == "train" else 1):
                data = encode(photograph(thing % 4, first + thing, shot))
                group = thing if split == "train" else -1
                samples.append(Sample(hashlib.sha256(data).hexdigest(), "png", data, thing % 4, group))
        for path in (prepared / split).iterdir():
            path.unlink()
        (prepared / split).rmdir()
        write_shards(prepared / split, [samples], max_bytes=10**6)
    images = {"train": 48 * shots, "train_labelled": 48 * shots, "test": 400}
    write_card(prepared, replace(read_card(prepared), images=images))


def shape_accuracy(workspace: Path) -> float:
    prepared = workspace / "data" / "prepared"
    config, card = pretrain.read_inputs(workspace).config, read_card(prepared)
    encoder = load_model(workspace / "models" / "pretrained").encoder
    features, labels = [], []
    for split in ("train", "test"):
        images = ShardedImages(prepared / split)
        pixels = evaluation_images(images, range(len(images)), served_preprocessing(config, card))
        features.append(embed(encoder, pixels, card.mean, card.std).numpy())
        labels.append(np.asarray(images.labels, np.int64))
    return knn_accuracy(features[0], labels[0], features[1], labels[1], classes=4, neighbors=10, temperature=0.1)


@pytest.mark.slow
def test_groups_teach_what_their_images_share(tmp_path: Path) -> None:
    """Where light and ground tell images apart more than shape does, kNN finds the shape of new things by groups alone:
    29 % without, as by chance, and 42 % with them."""
    write_things(tmp_path)
    found = {}
    for positives in ("image", "group"):
        augmentation = {"jitter_strength": 0.0, "crop_scale": [0.6, 1.0], "blur": 0.0, "grayscale": 0.0}
        configure(tmp_path, positives=positives, batch_size=48, epochs=40, augmentation=augmentation)
        pretrain.run(tmp_path)
        found[positives] = shape_accuracy(tmp_path)
    assert found["group"] > found["image"] + 5, found
