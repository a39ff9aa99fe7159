"""Which images a process sees at a step: each once per epoch, the same for any number of processes."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from simclr_core.augmentation.augmentations import Augmentation
from simclr_core.augmentation.draws import ViewDraws
from simclr_core.config import PretrainConfig
from simclr_core.data.dataset import TrainingImages
from simclr_core.data.order import Order, ShardOrder
from simclr_core.data.shards import ShardedImages, read_card
from simclr_core.errors import BatchSizeError
from simclr_core.launch import Member
from simclr_core.pretraining.batches import Batches, choose_order
from tests.conftest import write_prepared

CPU = torch.device("cpu")


def batches(
    workspace: Path, batch_size: int = 16, seed: int = 0, rank: int = 0, size: int = 1, **crops: int
) -> Batches:
    folder = workspace / "data" / "prepared"
    member = Member(rank, size, CPU)
    augmentation = Augmentation(16, crop_scale=(0.5, 1.0), **crops)
    pixels = TrainingImages(ShardedImages(folder / "train"))
    return Batches(pixels, read_card(folder), augmentation, batch_size, Order(seed, len(pixels)), member)


def test_an_epoch_shows_every_image_once_and_each_epoch_in_another_order(prepared: Path) -> None:
    source = batches(prepared)
    epochs = [np.concatenate([source.positions(step) for step in range(6 * e, 6 * e + 6)]) for e in range(2)]
    for order in epochs:
        assert sorted(order) == list(range(96))
    assert not np.array_equal(*epochs)


def test_shard_by_shard_the_same_images_are_seen_in_another_order(prepared: Path) -> None:
    split = ShardedImages(prepared / "data" / "prepared" / "train")
    assert len(set(split.shards)) == 4
    assert split.sizes.tolist() == [len(split.read(position)) for position in range(96)]
    assert choose_order(PretrainConfig(seed=3), split) == Order(3, 96)
    order = choose_order(PretrainConfig(seed=3, order="shards"), split)
    assert isinstance(order, ShardOrder)
    assert sorted(order.positions(1, range(96))) == list(range(96))


def test_a_partial_batch_is_dropped_but_its_images_appear_in_other_epochs(prepared: Path) -> None:
    source = batches(prepared, batch_size=40)
    assert source.steps_per_epoch == 2
    first, second = (set(source.positions(2 * e)) | set(source.positions(2 * e + 1)) for e in range(2))
    assert (len(first), len(second)) == (80, 80)
    assert first != second


@pytest.mark.parametrize("size", [2, 4, 8])
def test_processes_share_the_batch_that_one_would_see(prepared: Path, size: int) -> None:
    (whole,) = batches(prepared).network_inputs(7, 8)
    shares = [next(batches(prepared, rank=rank, size=size).network_inputs(7, 8)) for rank in range(size)]
    for view in (0, 1):
        together = torch.cat([share.chunk(2)[view] for share in shares])
        torch.testing.assert_close(together, whole.chunk(2)[view])


def seen(workspace: Path, size: int, workers: int) -> str:
    """A hash over an epoch of what each sample is and what is done to it, in the order of the global batch."""
    digest = hashlib.sha256()
    sources = [batches(workspace, batch_size=120, rank=rank, size=size) for rank in range(size)]
    for step in range(2):
        for rank, source in enumerate(sources):
            share = 120 // size
            positions = source.positions(step)[rank * share : (rank + 1) * share]
            images = TrainingImages(source.images, workers).batch(positions)
            draws = Augmentation(16).draws(images.sizes, source.seed, 0, positions, 0)
            for sample in zip(positions, map(images.image, range(share)), *draws, strict=True):
                digest.update(b"".join(np.asarray(value).tobytes() for value in sample))
    return digest.hexdigest()


@pytest.mark.seconds
def test_order_and_draws_are_the_same_for_any_number_of_processes_and_workers(tmp_path: Path) -> None:
    workspace = write_prepared(tmp_path, train=240)
    expected = seen(workspace, 1, 1)
    for size in (1, 2, 3, 5, 8):
        for workers in (1, 3):
            assert seen(workspace, size, workers) == expected


def test_extra_crops_follow_the_pair(prepared: Path) -> None:
    pair, more = (batches(prepared, extra_crops=count) for count in (0, 2))
    (two,), (four,) = pair.network_inputs(3, 4), more.network_inputs(3, 4)
    assert four.shape == (64, 3, 16, 16)
    torch.testing.assert_close(four[:32], two)
    assert not torch.equal(four[32:48], four[48:])
    assert len(more.pictures(3, epochs=2)[0]) == 8


def test_extra_crops_of_another_size_are_drawn_and_made_at_it(prepared: Path) -> None:
    """As the crops that a recipe of that size and those parts would make, from the same draws."""
    pair, more = batches(prepared), batches(prepared, extra_crops=2, extra_crop_size=40)
    (two,), ((main, extras),) = pair.network_inputs(3, 4), more.network_inputs(3, 4)
    assert torch.equal(main, two)
    assert (extras.shape, extras.is_contiguous(memory_format=torch.channels_last)) == ((32, 3, 40, 40), True)
    alone, positions = Augmentation(40, crop_scale=(0.05, 0.14)), more.positions(3)
    images = TrainingImages(more.images).batch(positions)
    for number in (2, 3):
        draws = more._augmentation.draws(images.sizes, 0, 0, positions, number)
        assert draws.blur.any()  # a view of 16 pixels has none
        views = (alone.ragged_view(images, ViewDraws(0, draws)) - 0.4) / 0.3
        torch.testing.assert_close(extras[16 * (number - 2) : 16 * (number - 1)], views)
    shown = more.pictures(3, epochs=2)
    assert [picture.shape for picture in shown[0]] == [(16, 16, 3), (16, 16, 3), (40, 40, 3), (40, 40, 3)] * 2


def test_a_step_does_not_depend_on_the_steps_before_it(prepared: Path) -> None:
    run = list(batches(prepared).network_inputs(0, 9))
    resumed = list(batches(prepared).network_inputs(8, 9))
    assert torch.equal(run[8], resumed[0])


def test_inputs_are_two_different_normalized_views_of_the_same_images(prepared: Path) -> None:
    source = batches(prepared)
    (views,) = source.network_inputs(0, 1)
    assert views.shape == (32, 3, 16, 16)
    assert views.is_contiguous(memory_format=torch.channels_last)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.4,) * 3, (0.3,) * 3))
    pictures = source.pictures(16, epochs=1)
    for row in range(16):
        for view in (0, 1):
            pixels = (views[16 * view + row] * std + mean).mul(255).permute(1, 2, 0).numpy()
            np.testing.assert_allclose(pixels, pictures[row][view], atol=0.51)  # rounded
        assert not np.array_equal(*pictures[row])


def test_the_sheet_of_a_later_epoch_shows_the_network_inputs_too(prepared: Path) -> None:
    first, second = batches(prepared).pictures(4, epochs=1), batches(prepared).pictures(4, epochs=2)
    for short, long in zip(first, second, strict=True):
        assert len(long) == 4
        np.testing.assert_array_equal(short, long[:2])
        assert not np.array_equal(long[0], long[2])


@pytest.mark.parametrize(
    ("batch_size", "size", "message"),
    [
        (97, 1, "batch_size is 97, but there are 96 training images"),
        (15, 2, "batch_size is 15, which 2 processes cannot share equally; give a multiple of 2"),
        (4, 4, "leaves each of 4 processes one image"),
    ],
)
def test_a_batch_that_cannot_be_made_is_explained(prepared: Path, batch_size: int, size: int, message: str) -> None:
    with pytest.raises(BatchSizeError, match=message):
        batches(prepared, batch_size=batch_size, size=size)


def test_the_whole_dataset_may_be_one_batch(prepared: Path) -> None:
    source = batches(prepared, batch_size=96)
    assert source.steps_per_epoch == 1
    assert len(source.keys(0)) == len(set(source.keys(0))) == 96


def test_without_a_pair_an_image_has_its_first_view_alone_and_marks_are_by_image(prepared: Path) -> None:
    folder = prepared / "data" / "prepared"
    pixels, marks = TrainingImages(ShardedImages(folder / "train")), np.arange(96) * 7

    def source(pair: bool, marks: np.ndarray | None = None) -> Batches:
        augmentation, alone = Augmentation(16, crop_scale=(0.5, 1.0), pair=pair), Member(0, 1, CPU)
        return Batches(pixels, read_card(folder), augmentation, 16, Order(0, 96), alone, marks)

    single, usual = source(False, marks), source(True)
    assert torch.equal(next(single.network_inputs(7, 8)), next(usual.network_inputs(7, 8))[:16])
    assert single.sources(7).tolist() == single.positions(7).tolist()
    assert single.marks(7).tolist() == (single.positions(7) * 7).tolist()
    assert [len(row) for row in single.pictures(3, epochs=2)] == [2, 2, 2]
