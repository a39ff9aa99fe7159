"""Images come out of the flat buffer as they went in."""

import numpy as np
import pytest
import torch

from simclr_core.data.ragged import RaggedImages

SIZES = [(3, 5), (1, 9), (4, 4)]


def batch(dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    images = torch.zeros(3, 3, 4, 9, dtype=dtype)
    for number, (height, width) in enumerate(SIZES):
        values = np.random.default_rng(number).integers(1, 256, (3, height, width), np.uint8)
        images.numpy()[number, :, :height, :width] = values
    return images


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_images_of_any_sizes_come_back(dtype: torch.dtype, form: torch.memory_format) -> None:
    images = batch(dtype)
    ragged = RaggedImages.of(images.contiguous(memory_format=form), torch.tensor(SIZES))
    assert ragged.samples.numel() == sum(3 * height * width for height, width in SIZES)
    assert ragged.channels_last == (form == torch.channels_last)
    for row, (height, width) in enumerate(SIZES):
        assert np.array_equal(ragged.image(row).numpy(), images.numpy()[row, :, :height, :width])
    assert np.array_equal(ragged.padded(slice(0, 3)).numpy(), images.numpy())
    assert np.array_equal(ragged.padded(slice(1, 2)).numpy(), images.numpy()[1:2, :, :1, :9])


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_a_batch_of_one_size_is_not_copied(form: torch.memory_format) -> None:
    images = torch.randint(1, 256, (4, 3, 5, 6), dtype=torch.uint8).contiguous(memory_format=form)
    ragged = RaggedImages.of(images, torch.tensor([[5, 6]] * 4))
    assert torch.equal(ragged.padded(slice(1, 4)), images[1:])
    images.zero_()
    assert not ragged.samples.any()
    assert not ragged.padded(slice(0, 4)).any()


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_of_colorless_images_one_channel_is_looked_at(form: torch.memory_format) -> None:
    images = batch()[:, :1].expand(-1, 3, -1, -1).contiguous(memory_format=form)
    gray = RaggedImages.of(images, torch.tensor(SIZES))
    assert (gray.colorless, gray.distinct, gray.channels) == (True, 1, 3)
    assert gray.image(0).shape == (1, 3, 5)
    assert torch.equal(gray.padded(slice(0, 3)), images[:, :1])
    assert RaggedImages.of(batch(), torch.tensor(SIZES)).distinct == 3
