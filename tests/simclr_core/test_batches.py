"""Which images a process sees at a step: each once per epoch, the same for any number of processes."""

from pathlib import Path

import numpy as np
import pytest
import torch

from simclr_core.augmentations import Augmentation
from simclr_core.batches import Batches
from simclr_core.errors import BatchSizeError
from simclr_core.launch import Member
from simclr_core.shards import ShardedImages, read_card

CPU = torch.device("cpu")


def batches(workspace: Path, batch_size: int = 16, seed: int = 0, rank: int = 0, size: int = 1) -> Batches:
    folder = workspace / "data" / "prepared"
    member = Member(rank, size, CPU)
    augmentation = Augmentation(16, crop_scale=(0.5, 1.0))
    return Batches(ShardedImages(folder / "train"), read_card(folder), augmentation, batch_size, seed, member)


def test_an_epoch_shows_every_image_once_and_each_epoch_in_another_order(prepared: Path) -> None:
    source = batches(prepared)
    epochs = [np.concatenate([source.positions(step) for step in range(6 * e, 6 * e + 6)]) for e in range(2)]
    for order in epochs:
        assert sorted(order) == list(range(96))
    assert not np.array_equal(*epochs)


def test_a_rest_that_fills_no_batch_is_left_out_of_the_epoch_but_not_of_all_epochs(prepared: Path) -> None:
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


def test_a_step_does_not_depend_on_the_steps_before_it(prepared: Path) -> None:
    run = list(batches(prepared).network_inputs(0, 9))
    resumed = list(batches(prepared).network_inputs(8, 9))
    assert torch.equal(run[8], resumed[0])


def test_inputs_are_two_different_normalised_views_of_the_same_images(prepared: Path) -> None:
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


def test_the_pictures_of_later_epochs_are_those_of_the_network_too(prepared: Path) -> None:
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
