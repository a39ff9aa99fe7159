"""Views of images at full depth: those of 8-bit images where both exist, and channel by channel those of gray."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from simclr_core.augmentation.augmentations import Augmentation, as_pixels
from simclr_core.data.ragged import RaggedImages
from simclr_core.errors import AugmentationError

N = 6
EVERYTHING = Augmentation(24, jitter_order="random", blur=0.7, grayscale=0.4, rotation=0.6, solarize=0.3)


def batch(channels: int, side: int = 40) -> tuple[Tensor, Tensor, Tensor]:
    pixels = np.random.default_rng(0).integers(0, 65_536, (N, channels, side, side), np.uint16)
    return torch.from_numpy(pixels), torch.full((N, 2), side), torch.arange(N)


def view(augmentation: Augmentation, images: Tensor, number: int = 1) -> Tensor:
    sizes, samples = torch.tensor([[images.shape[2], images.shape[3]]]).expand(N, 2), torch.arange(N)
    return augmentation.view(images, sizes, seed=3, epoch=1, samples=samples, view=number)


@pytest.mark.parametrize("mode", ["exact", "fused"])
@pytest.mark.parametrize("size", [24, 80])  # by matrices, and by torch's resize
def test_rgb_of_8_bits_gives_the_views_that_it_gives_at_full_depth(mode: Any, size: int) -> None:
    augmentation = replace(EVERYTHING, mode=mode, size=size)
    narrow = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (N, 3, 40, 40), np.uint8))
    wide = torch.from_numpy(narrow.numpy().astype(np.uint16) * np.uint16(257))
    tolerance = 2.5 / 255 if (mode, size) == ("fused", 80) else 1e-4  # there bytes are resized in whole levels
    difference = (view(augmentation, narrow) - view(augmentation, wide)).abs()
    if augmentation.solarize and tolerance > 1e-3:  # a level across the threshold of solarization is far
        assert difference.quantile(0.999) <= tolerance
    else:
        assert (difference > tolerance).double().mean() < 1e-3


@pytest.mark.parametrize("mode", ["exact", "fused"])
@pytest.mark.parametrize("size", [24, 80])
@pytest.mark.parametrize("order", ["fixed", "random"])
def test_every_channel_is_changed_as_an_image_of_it_alone(mode: Any, size: int, order: Any) -> None:
    augmentation = replace(EVERYTHING, mode=mode, size=size, jitter_order=order)
    images, _, _ = batch(5)
    views = view(augmentation, images)
    assert views.shape == (N, 5, size, size)
    for channel in range(5):
        alone = view(augmentation, images[:, channel : channel + 1].contiguous())
        torch.testing.assert_close(views[:, channel : channel + 1], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", ["exact", "fused"])
def test_one_channel_is_changed_as_gray_is(mode: Any) -> None:
    augmentation = replace(EVERYTHING, mode=mode)
    gray = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (N, 1, 40, 40), np.uint8))
    wide = torch.from_numpy(gray.numpy().astype(np.uint16) * np.uint16(257))
    expected = view(augmentation, gray.expand(-1, 3, -1, -1).contiguous())
    difference = (view(augmentation, wide) - expected[:, :1]).abs()
    assert (difference > 1e-4).double().mean() < 1e-3


def test_brightness_and_contrast_are_one_factor_about_the_mean_of_each_channel() -> None:
    still = Augmentation(40, (1, 1), (1, 1), flip=0, jitter_probability=1, grayscale=1, blur=0)
    images, sizes, samples = batch(2)
    images = torch.from_numpy(images.numpy() // 8 + np.array([1000, 20_000], np.uint16).reshape(1, 2, 1, 1))
    draws = still.draws(sizes.numpy(), 3, 1, samples.numpy(), 1)
    pixels = images.numpy().astype(np.float64) / 65_535
    brightness, contrast = (1 + 0.8 * draws.swings[:, number].reshape(-1, 1, 1, 1) for number in (0, 1))
    expected = (pixels * brightness).clip(0, 1)
    mean = expected.mean(axis=(2, 3), keepdims=True)
    expected = (mean + contrast * (expected - mean)).clip(0, 1)
    assert np.abs(view(still, images).numpy() - expected).max() < 1e-5


def test_the_low_byte_is_in_the_views() -> None:
    images, _, _ = batch(5)
    other = torch.from_numpy(images.numpy() ^ np.uint16(64))
    assert not torch.equal(view(EVERYTHING, images), view(EVERYTHING, other))


def test_gray_at_full_depth_in_three_channels_is_found_to_be_gray() -> None:
    images, _, _ = batch(1)
    spread = torch.from_numpy(np.repeat(images.numpy(), 3, axis=1))
    sizes = torch.full((N, 2), 40)
    assert RaggedImages.of(spread, sizes).colorless
    assert not RaggedImages.of(batch(3)[0], sizes).colorless
    assert not RaggedImages.of(images, sizes).colorless


def test_views_become_pixels_of_the_depth_that_they_had() -> None:
    views = torch.rand(2, 5, 4, 4)
    wide = as_pixels(views, torch.uint16)
    assert (wide.dtype, wide.shape) == (np.uint16, (2, 4, 4, 5))
    assert np.array_equal(wide, (views.numpy().transpose(0, 2, 3, 1) * np.float32(65_535)).round())
    assert as_pixels(views, torch.uint8).dtype == np.uint8


@pytest.mark.parametrize(
    ("dtype", "channels"), [(torch.uint16, 17), (torch.uint8, 1), (torch.uint8, 5), (torch.int32, 3)]
)
def test_other_batches_are_refused(dtype: torch.dtype, channels: int) -> None:
    with pytest.raises(AugmentationError, match=r"or uint16 \[n, channels, H, W\]"):
        view(EVERYTHING, torch.zeros((N, channels, 8, 8), dtype=dtype))
