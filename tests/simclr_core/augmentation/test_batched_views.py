"""What a GPU computes, on a CPU: the views of ``augmentations``, from batches of any layout, whatever the parts."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import simclr_core.augmentation.batched_views as module
from simclr_core.augmentation.augmentations import Augmentation
from simclr_core.augmentation.batched_views import batched_views
from simclr_core.augmentation.draws import ViewDraws
from simclr_core.data.ragged import RaggedImages
from tests.simclr_core.pictures import LEVEL, assert_close, pictures

torch.set_num_threads(1)

EVERYTHING = Augmentation(24, blur=0.7, grayscale=0.4, rotation=0.6)
SIZES = [(28, 28), (40, 31), (25, 48), (33, 33), (48, 20), (30, 47), (21, 22), (100, 10), (10, 100)]


def ragged(layout: str = "planar", channels: int = 3) -> RaggedImages:
    """Images of any sizes; of 8 bits in three channels, and at full depth in other numbers of them."""
    sizes = torch.tensor(SIZES)
    images = torch.zeros(len(SIZES), channels, 100, 100, dtype=torch.uint8 if channels == 3 else torch.uint16)
    for image, (height, width) in zip(images, SIZES, strict=True):
        if channels == 3:
            image[:, :height, :width] = pictures(1, height, width)[0]
        else:
            pixels = np.random.default_rng(height).integers(0, 65_536, (channels, height, width), np.uint16)
            image.numpy()[:, :height, :width] = pixels
    form = torch.channels_last if layout == "interleaved" else torch.contiguous_format
    return RaggedImages.of(images.contiguous(memory_format=form), sizes)


def drawn(augmentation: Augmentation, images: RaggedImages, views: int = 2) -> list[ViewDraws]:
    samples = np.arange(len(images)) * 7
    return [ViewDraws(0, augmentation.draws(images.sizes, 1, 2, samples, view)) for view in range(views)]


def both(augmentation: Augmentation, images: RaggedImages, views: list[ViewDraws]) -> tuple[Tensor, Tensor]:
    expected = torch.cat([augmentation.ragged_view(images, view) for view in views])
    got = torch.full_like(expected, torch.nan)
    for rows, pixels in batched_views(images, views, augmentation._recipe):
        got[rows] = pixels
    return got, expected


@pytest.mark.parametrize("layout", ["planar", "interleaved"])
@pytest.mark.parametrize("recipe", [{}, {"jitter_order": "random"}, {"interpolation": "bicubic"}])
@pytest.mark.parametrize("size", [24, 64, 96])
def test_exact_views_are_those_of_a_cpu(size: int, recipe: dict[str, Any], layout: str) -> None:
    augmentation = replace(EVERYTHING, size=size, **recipe)
    images = ragged(layout)
    got, expected = both(augmentation, images, drawn(augmentation, images))
    assert_close(got, expected, LEVEL / 8 if size > 64 else 2e-5)  # where a CPU cuts the blur off


@pytest.mark.parametrize("recipe", [{}, {"jitter_order": "random"}, {"interpolation": "bicubic"}])
@pytest.mark.parametrize("size", [24, 96])
def test_fused_views_are_those_of_a_cpu(size: int, recipe: dict[str, Any]) -> None:
    """Above 64 pixels a CPU rounds crops to whole levels, and brightness and contrast triple that at most."""
    augmentation = replace(EVERYTHING, size=size, mode="fused", **recipe)
    images = ragged("interleaved")
    got, expected = both(augmentation, images, drawn(augmentation, images))
    assert_close(got, expected, 6 * LEVEL if size > 64 else 2e-5)
    assert (got - expected).abs().mean() < 0.3 * LEVEL


@pytest.mark.parametrize("mode", ["exact", "fused"])
@pytest.mark.parametrize("layout", ["planar", "interleaved"])
@pytest.mark.parametrize("channels", [1, 2, 5, 16])
def test_full_depth_in_any_number_of_channels(channels: int, layout: str, mode: Any) -> None:
    augmentation = replace(EVERYTHING, mode=mode, jitter_order="random")
    images = ragged(layout, channels)
    got, expected = both(augmentation, images, drawn(augmentation, images))
    assert_close(got, expected, 2e-5)


@pytest.mark.parametrize("layout", ["planar", "interleaved"])
@pytest.mark.parametrize("mode", ["exact", "fused"])
def test_colorless_images(layout: str, mode: Any) -> None:
    images = ragged(layout)
    pixels = [images.image(row)[:1].expand(3, -1, -1) for row in range(len(images))]
    flat = [(one.permute(1, 2, 0) if images.channels_last else one).reshape(-1) for one in pixels]
    gray = replace(images, samples=torch.cat(flat), colorless=True)
    augmentation = replace(EVERYTHING, mode=mode)
    got, expected = both(augmentation, gray, drawn(augmentation, gray))
    assert_close(got, expected, 2e-5)


def test_solarized_are_the_views_that_were_drawn() -> None:
    augmentation = Augmentation(24, blur=0.0, solarize=0.5)
    images = ragged()
    views = drawn(augmentation, images)
    got, expected = both(augmentation, images, views)
    assert ((got - expected).abs() > 1e-3).double().mean() < 1e-3  # 0.5 may fall to either side of itself
    assert 0 < sum(view.draws.solarize.sum() for view in views) < 2 * len(images)


def test_a_row_that_is_left_alone_is_not_changed_at_all() -> None:
    """Next to rows that are: by crop alone, to the last bit."""
    images = ragged()
    views = drawn(EVERYTHING, images, views=1)
    draws = views[0].draws
    alone = np.arange(len(images)) % 2 == 0
    off = {name: getattr(draws, name) & ~alone for name in ("jitter", "gray", "blur", "solarize")}
    mixed = draws._replace(**off, turns=np.where(alone, 0, draws.turns))
    nothing = {name: np.zeros_like(getattr(draws, name)) for name in ("jitter", "gray", "blur", "solarize", "turns")}
    got, _ = both(replace(EVERYTHING, jitter_order="random"), images, [ViewDraws(0, mixed)])
    cropped, _ = both(EVERYTHING, images, [ViewDraws(0, draws._replace(**nothing))])
    assert mixed.jitter.any()
    hue_aside = torch.from_numpy(alone)
    assert_close(got[hue_aside], cropped[hue_aside], 1e-6)  # a turn by nothing goes through HSV


def test_views_of_some_of_the_images() -> None:
    """As second views of groups are: of images that come after the others in the batch."""
    images = ragged()
    samples = np.arange(3)
    views = [
        ViewDraws(first, EVERYTHING.draws(images.sizes[first : first + 3], 0, 0, samples, view))
        for view, first in enumerate((0, 6))
    ]
    got, expected = both(EVERYTHING, images, views)
    assert_close(got, expected, 2e-5)


@pytest.mark.parametrize("size", [24, 96])
def test_parts_change_nothing(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    augmentation = replace(EVERYTHING, size=size)
    images = ragged()
    views = drawn(augmentation, images)
    whole, _ = both(augmentation, images, views)
    monkeypatch.setattr(module, "DEVICE_BYTES", 3 * 4 * 3 * max(size, 40) ** 2)
    boxes = np.concatenate([view.draws.boxes for view in views])
    parts = list(module._parts(boxes[:, 2:], 3, size))
    assert len(parts) > 2
    assert [row for part in parts for row in range(part.start, part.stop)] == list(range(2 * len(images)))
    assert_close(both(augmentation, images, views)[0], whole, 1e-5)


def test_one_huge_image_does_not_make_the_others_wait_alone() -> None:
    """Only the part that holds it is short."""
    extents = np.full((1000, 2), 300.0)
    extents[500] = 8000
    parts = list(module._parts(extents, 3, 224))
    assert [part.stop - part.start for part in parts] == [500, 2, 498]


def test_a_batch_is_read_to_its_end_and_no_further() -> None:
    """The last crop ends with the samples; what else is in the buffer is in no view."""
    augmentation = Augmentation(8, (1, 1), (1, 1), flip=0, jitter_strength=0, grayscale=0, blur=0)
    images = torch.full((2, 3, 6, 6), 200, dtype=torch.uint8)
    whole = RaggedImages.of(images, torch.full((2, 2), 6))
    longer = replace(whole, samples=torch.cat([whole.samples, torch.zeros(40, dtype=torch.uint8)]))
    for one in (whole, longer):
        got, _ = both(augmentation, one, drawn(augmentation, one))
        assert_close(got, torch.full_like(got, 200 / 255), 1e-6)
