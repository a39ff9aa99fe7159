"""Each step equals torchvision's on one image at a time; each draw is one sample's; nothing depends on the batch."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as reference

import simclr_core.augmentation.augmentations as module
from simclr_core.augmentation.augmentations import Augmentation
from simclr_core.augmentation.draws import Draws
from simclr_core.data.order import uniform
from simclr_core.errors import AugmentationError
from tests.simclr_core.pictures import LEVEL, assert_close, pictures

torch.set_num_threads(1)

EVERYTHING = Augmentation(24, jitter_order="random", blur=0.7, grayscale=0.4, rotation=0.6, solarize=0.3)
STILL = Augmentation(20, (1, 1), (1, 1), flip=0, jitter_strength=0, grayscale=0, blur=0)  # does nothing to 20 x 20


@pytest.mark.parametrize(
    ("jitter_order", "interpolation"), [("fixed", "bilinear"), ("random", "bilinear"), ("random", "bicubic")]
)
@pytest.mark.parametrize("size", [24, 64, 96, 224])
def test_the_whole_recipe_is_torchvisions(size: int, jitter_order: Any, interpolation: Any) -> None:
    """The same parameters, one image at a time; 64 pixels and less take one path through the code, more another."""
    augmentation = replace(EVERYTHING, size=size, jitter_order=jitter_order, interpolation=interpolation)
    mode = InterpolationMode(interpolation)
    images, sizes, samples = uneven_batch()
    got = augmentation.view(images, sizes, 1, 2, samples, 0)
    draws = augmentation.draws(sizes.numpy(), 1, 2, samples.numpy(), 0)
    for number, (image, view) in enumerate(zip(images, got, strict=True)):
        one = Draws._make(values[number] for values in draws)
        assert_close(view, torchvisions(image, one, size, jitter_order == "fixed", mode), LEVEL)


def torchvisions(image: Tensor, draws: Draws, size: int, fixed: bool, mode: InterpolationMode) -> Tensor:
    box, swings = draws.boxes.astype(int).tolist(), draws.swings.tolist()
    pixels = reference.resized_crop(image / 255, *box, [size, size], mode, antialias=True).clamp(0, 1)
    pixels = reference.horizontal_flip(pixels) if draws.flip else pixels
    pixels = reference.rotate(pixels, 90.0 * int(draws.turns))
    steps = (
        lambda image: reference.adjust_brightness(image, 1 + 0.8 * swings[0]),
        lambda image: reference.adjust_contrast(image, 1 + 0.8 * swings[1]),
        lambda image: reference.adjust_saturation(image, 1 + 0.8 * swings[2]),
        lambda image: reference.adjust_hue(image, 0.2 * swings[3]),
    )
    if draws.jitter:
        for number in range(4) if fixed else draws.orders:
            pixels = steps[number](pixels)
    pixels = reference.rgb_to_grayscale(pixels, num_output_channels=3) if draws.gray else pixels
    kernel = size // 10 // 2 * 2 + 1
    pixels = reference.gaussian_blur(pixels, [kernel] * 2, [draws.sigmas] * 2) if draws.blur else pixels
    return reference.solarize(pixels, 0.5) if draws.solarize else pixels


@pytest.mark.parametrize("size", [24, 96])
def test_fused_without_color_is_exact(size: int) -> None:
    images, sizes, samples = uneven_batch()
    exact = Augmentation(size, jitter_strength=0, rotation=0.5, blur=0.6)
    views = [one.view(images, sizes, 0, 0, samples, 0) for one in (exact, replace(exact, mode="fused"))]
    assert_close(*views, LEVEL)


@pytest.mark.parametrize("size", [32, 96])
def test_fused_is_nearly_exact(size: int) -> None:
    """What clamping and the other hue change at full strength: ten levels on average, the spread of blue the most."""
    images, sizes, samples = pictures(128, 40, 40), torch.full((128, 2), 40), torch.arange(128)
    exact = Augmentation(size)
    views = [one.view(images, sizes, 0, 0, samples, 0) for one in (exact, replace(exact, mode="fused"))]
    assert (views[0] - views[1]).abs().mean() < 12 * LEVEL
    assert_close(*(view.mean(dim=(0, 2, 3)) for view in views), 4 * LEVEL)
    assert_close(*(view.std(dim=(0, 2, 3)) for view in views), 8 * LEVEL)


@pytest.mark.parametrize("mode", ["exact", "fused"])
@pytest.mark.parametrize("size", [24, 96])
def test_a_view_depends_only_on_its_sample(size: int, mode: str) -> None:
    images, sizes, samples = uneven_batch()
    augmentation = replace(EVERYTHING, size=size, mode=mode, solarize=0.0)  # 0.5 may fall to either side of itself
    together = augmentation.view(images, sizes, 1, 2, samples, 0)
    assert together.shape == (8, 3, size, size)
    assert together.dtype == torch.float32
    assert together.is_contiguous()
    assert 0 <= together.min() < together.max() <= 1
    for rows in ([0], [3], [5, 2], [7, 6, 5, 4, 3, 2, 1, 0]):
        apart = augmentation.view(images[rows], sizes[rows], 1, 2, samples[rows], 0)
        assert_close(apart, together[rows], 1e-5)
    for row, (height, width) in enumerate(sizes.tolist()):  # without padding
        cut = images[row : row + 1, :, :height, :width]
        assert_close(
            augmentation.view(cut, sizes[row : row + 1], 1, 2, samples[row : row + 1], 0)[0], together[row], 1e-5
        )


@pytest.mark.parametrize("mode", ["exact", "fused"])
@pytest.mark.parametrize("size", [24, 96])
def test_padding_never_affects_a_view(size: int, mode: str) -> None:
    images, sizes, samples = uneven_batch()
    augmentation = replace(EVERYTHING, size=size, mode=mode)
    expected = augmentation.view(images, sizes, 1, 2, samples, 0)
    for image, (height, width) in zip(images, sizes.tolist(), strict=True):
        image[:, height:] = 255
        image[:, :, width:] = 255
    assert torch.equal(augmentation.view(images, sizes, 1, 2, samples, 0), expected)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    images, sizes, samples = uneven_batch()
    expected = EVERYTHING.view(images, sizes, 1, 2, samples, 0)
    monkeypatch.setattr(module, "CHUNK_BYTES", 3 * 4 * 3 * 48**2)
    assert_close(EVERYTHING.view(images, sizes, 1, 2, samples, 0), expected, 1e-5)


def test_new_augmentations_do_not_change_the_draws_of_the_old_ones() -> None:
    """New augmentations draw after the old ones: a recipe without them has the views it always had."""
    _, sizes, samples = uneven_batch()
    plain = Augmentation(24)
    expected = plain.draws(sizes.numpy(), 1, 2, samples.numpy(), 0)
    for more in (replace(plain, rotation=1.0), replace(plain, solarize=1.0), replace(plain, jitter_order="random")):
        got = more.draws(sizes.numpy(), 1, 2, samples.numpy(), 0)
        for name in ("boxes", "flip", "jitter", "swings", "gray", "blur", "sigmas"):
            np.testing.assert_array_equal(getattr(got, name), getattr(expected, name))


def test_numbers_drawn_first_do_not_depend_on_how_many_are_drawn() -> None:
    few, many = (uniform(3, 4, [5, 10**9], 1, count) for count in (31, 60))
    np.testing.assert_array_equal(few, many[:, :31])


def test_rotations_and_orders_are_drawn_evenly() -> None:
    samples = np.arange(6000)
    draws = replace(EVERYTHING, rotation=0.75).draws(np.full((6000, 2), 20), 0, 0, samples, 0)
    assert np.bincount(draws.turns, minlength=4) == pytest.approx(1500, abs=150)
    places = [np.bincount(draws.orders[:, place], minlength=4) for place in range(4)]
    assert np.array(places) == pytest.approx(1500, abs=150)
    assert len({tuple(order) for order in draws.orders}) == 24


def test_extra_crops_are_more_views_of_smaller_parts() -> None:
    sizes, samples = np.full((500, 2), 200), np.arange(500)
    augmentation = replace(EVERYTHING, crop_scale=(0.3, 1.0), extra_crops=3)
    assert (EVERYTHING.views, augmentation.views) == (2, 5)
    areas = [augmentation.draws(sizes, 0, 0, samples, view).boxes[:, 2:].prod(axis=1) / 200**2 for view in range(5)]
    assert all(area.min() > 0.29 for area in areas[:2])
    assert all(0.04 < area.min() < area.max() < 0.15 for area in areas[2:])
    assert not np.array_equal(areas[2], areas[3])


def test_the_second_view_may_be_blurred_and_solarized_more_or_less_often() -> None:
    """Nothing else changes, neither in that view nor in the others: BYOL's pair from the draws of SimCLR's."""
    sizes, samples = np.full((2000, 2), 60), np.arange(2000)
    alike = Augmentation(40, blur=1.0, extra_crops=1)
    byol = replace(alike, second_blur=0.1, second_solarize=0.2)
    assert replace(alike, second_blur=1.0, second_solarize=0.0).draws(sizes, 0, 0, samples, 1).blur.all()
    for view in range(3):
        before, after = (one.draws(sizes, 0, 0, samples, view) for one in (alike, byol))
        for name, values in before._asdict().items():
            if view != 1 or name not in ("blur", "solarize"):
                np.testing.assert_array_equal(getattr(after, name), values, err_msg=f"{name} of view {view}")
    second = byol.draws(sizes, 0, 0, samples, 1)
    assert second.blur.mean() == pytest.approx(0.1, abs=0.03)
    assert second.solarize.mean() == pytest.approx(0.2, abs=0.04)


def test_extra_crops_have_their_own_size() -> None:
    images, sizes, samples = uneven_batch()
    plain = replace(EVERYTHING, extra_crops=1)
    smaller = replace(plain, extra_crop_size=10)
    assert smaller.is_of_two_sizes
    for one in (plain, replace(plain, extra_crop_size=plain.size), replace(smaller, extra_crops=0)):
        assert not one.is_of_two_sizes
    for view in (0, 1):
        whole = (images, sizes, 0, 0, samples, view)
        assert torch.equal(smaller.view(*whole), plain.view(*whole))
    extra = smaller.view(images, sizes, 0, 0, samples, 2)
    assert extra.shape == (len(images), 3, 10, 10)
    as_drawn, small = (one.draws(sizes.numpy(), 0, 0, samples.numpy(), 2) for one in (plain, smaller))
    np.testing.assert_array_equal(small.boxes, as_drawn.boxes)
    assert as_drawn.blur.any()
    assert not small.blur.any()  # a tenth of 10 pixels


def test_a_view_is_reproducible_and_changes_with_every_key() -> None:
    images, sizes, samples = uneven_batch()
    names = [(1, 2, samples, 0), (9, 2, samples, 0), (1, 3, samples, 0), (1, 2, samples + 1, 0), (1, 2, samples, 1)]
    views = [Augmentation(24).view(images, sizes, *name) for name in names]
    assert torch.equal(Augmentation(24).view(images, sizes, *names[0]), views[0])
    for other in views[1:]:
        assert ((other - views[0]).abs().amax(dim=(1, 2, 3)) > LEVEL).all()


def test_without_any_step_the_image_is_unchanged() -> None:
    images = pictures(3, 20, 20)
    view = STILL.view(images, torch.full((3, 2), 20), 0, 0, torch.arange(3), 0)
    assert_close(view, images / 255, 1e-6)


@pytest.mark.parametrize(
    ("field", "on"),
    [("flip", {}), ("jitter_probability", {"jitter_strength": 1.0}), ("grayscale", {}), ("blur", {})],
)
@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_each_probability_is_drawn_per_sample(
    field: str, on: dict[str, float], probability: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SIGMA", (1.0, 2.0))  # a blur of 0.1 pixels changes nothing that can be seen
    n = 1000
    images = pictures(1, 20, 20).expand(n, -1, -1, -1)
    augmentation = replace(STILL, **{**on, field: probability})
    views = augmentation.view(images, torch.full((n, 2), 20), 0, 0, torch.arange(n), 0)
    changed = ((views - images / 255).abs().amax(dim=(1, 2, 3)) > 1e-4).double().mean().item()
    assert changed == pytest.approx(probability, abs=4.5 * math.sqrt(probability * (1 - probability) / n))


def test_steps_are_drawn_independently_of_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SIGMA", (1.0, 2.0))
    n = 2000
    images = pictures(1, 20, 20).expand(n, -1, -1, -1)
    whole = torch.full((n, 2), 20), 0, 0, torch.arange(n), 0
    marks = []
    for field in ("flip", "jitter_probability", "grayscale", "blur"):
        views = replace(STILL, jitter_strength=float("jitter" in field), **{field: 0.5}).view(images, *whole)
        marks.append(((views - images / 255).abs().amax(dim=(1, 2, 3)) > 1e-4).double())
    correlation = torch.corrcoef(torch.stack(marks)) - torch.eye(4)
    assert correlation.abs().max() < 4.5 / math.sqrt(n)


def test_jitter_factors_span_the_papers_range() -> None:
    """On a flat mid-gray picture only brightness shows: 0.25 times a factor in 1 -+ 0.8 s."""
    n = 2000
    images = torch.full((n, 3, 20, 20), 64, dtype=torch.uint8)
    for strength in (0.5, 1.0):
        augmentation = replace(STILL, jitter_strength=strength, jitter_probability=1.0)
        factors = augmentation.view(images, torch.full((n, 2), 20), 0, 0, torch.arange(n), 0)[:, 0, 0, 0] * 255 / 64
        assert factors.min().item() == pytest.approx(1 - 0.8 * strength, abs=0.01)
        assert factors.max().item() == pytest.approx(1 + 0.8 * strength, abs=0.01)
        assert factors.mean().item() == pytest.approx(1, abs=0.03 * strength)


def test_gray_images_stay_gray_whatever_else_is_in_the_batch() -> None:
    gray = pictures(4, 28, 28)[:, :1].expand(-1, 3, -1, -1).contiguous()
    sizes, samples = torch.full((5, 2), 28), torch.arange(5)
    alone = Augmentation(28).view(gray, sizes[:4], 0, 0, samples[:4], 0)
    assert torch.equal(alone[:, 0], alone[:, 1])
    assert torch.equal(alone[:, 0], alone[:, 2])
    among_colors = Augmentation(28).view(torch.cat([gray, pictures(1, 28, 28)]), sizes, 0, 0, samples, 0)
    assert_close(among_colors[:4], alone, 1e-5)
    assert (among_colors[4, 0] != among_colors[4, 1]).any()


def test_exact_under_autocast() -> None:
    images, sizes, samples = uneven_batch()
    expected = Augmentation(24).view(images, sizes, 0, 0, samples, 0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(Augmentation(24).view(images, sizes, 0, 0, samples, 0), expected)


def test_the_kernel_of_the_blur_is_that_of_the_authors_code() -> None:
    """Twice a radius, half of a tenth of the side, and the pixel in the middle: an even tenth gets one more."""
    for size in range(8, 1025):
        assert Augmentation(size).kernel == 2 * int((size // 10) / 2) + 1
    assert Augmentation(224).kernel == 23 == 224 // 10 + 1


@pytest.mark.parametrize(("size", "kernel"), [(19, 1), (28, 3), (32, 3), (96, 9), (224, 23)])
def test_blur_spans_a_tenth_of_the_side_and_is_odd(size: int, kernel: int) -> None:
    """A single bright pixel spreads over the kernel and no further."""
    n = 64  # the sigma is random: some are wide enough to reach the kernel's edge
    images = torch.zeros(n, 3, size, size, dtype=torch.uint8)
    images[:, :, size // 2, size // 2] = 255
    augmentation = replace(STILL, size=size, blur=1)
    views = augmentation.view(images, torch.full((n, 2), size), 0, 0, torch.arange(n), 0)
    lit = (views[:, 0] > 1e-7).any(dim=1).sum(dim=1)
    assert lit.max() <= kernel
    assert kernel > 9 or lit.max() == kernel


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": 0}, "size is 0"),
        ({"crop_scale": (0, 1)}, r"crop_scale is \(0, 1\); give 0 < smallest"),
        ({"crop_scale": (0.5, 1.1)}, "crop_scale is"),
        ({"crop_ratio": (2, 1)}, r"crop_ratio is \(2, 1\)"),
        ({"jitter_strength": -1}, "jitter_strength is -1; give 0 to 1.25"),
        ({"flip": 1.5}, r"flip is 1.5; a probability is in \[0, 1\]"),
        ({"blur": math.nan}, "blur is nan"),
        ({"rotation": -0.1}, "rotation is -0.1"),
        ({"solarize": 2}, "solarize is 2"),
        ({"mode": "quick"}, "mode is 'quick'; give exact or fused"),
        ({"jitter_order": "any"}, "jitter_order is 'any'; give fixed or random"),
        ({"interpolation": "cubic"}, "interpolation is 'cubic'; give bilinear or bicubic"),
        ({"second_blur": 1.1}, "second_blur is 1.1"),
        ({"second_solarize": math.nan}, "second_solarize is nan"),
        ({"extra_crops": -1}, "extra_crops is -1; give 0 or more"),
        ({"extra_crop_size": 0}, "extra_crop_size is 0; give 1 or more"),
        ({"extra_crop_scale": (0, 0.1)}, r"extra_crop_scale is \(0, 0.1\)"),
    ],
)
def test_a_recipe_out_of_range_is_refused(fields: dict[str, float], message: str) -> None:
    with pytest.raises(AugmentationError, match=message):
        Augmentation(**{"size": 28, **fields})


@pytest.mark.parametrize(
    ("images", "sizes", "samples", "message"),
    [
        (
            torch.zeros(2, 1, 9, 9, dtype=torch.uint8),
            [[9, 9]] * 2,
            [0, 1],
            r"are uint8 \[2, 1, 9, 9\]; give .*expand",
        ),
        (torch.zeros(2, 3, 9, 9), [[9, 9]] * 2, [0, 1], "images are float32"),
        (torch.zeros(2, 3, 9, 9, dtype=torch.uint8), [[9, 9]], [0, 1], r"sizes are \[1, 2\] .* for 2 images"),
        (torch.zeros(2, 3, 9, 9, dtype=torch.uint8), [[9, 9]] * 2, [0], r"samples \[1\] for 2 images"),
        (torch.zeros(1, 3, 9, 9, dtype=torch.uint8), [[9, 10]], [0], r"have room for 1 pixel to \[9, 9\]"),
        (torch.zeros(1, 3, 9, 9, dtype=torch.uint8), [[0, 9]], [0], r"sizes go from \[0, 9\]"),
    ],
)
def test_a_batch_of_another_form_is_refused(
    images: Tensor, sizes: list[list[int]], samples: list[int], message: str
) -> None:
    with pytest.raises(AugmentationError, match=message):
        Augmentation(8).view(images, torch.tensor(sizes), 0, 0, torch.tensor(samples), 0)


def uneven_batch() -> tuple[Tensor, Tensor, Tensor]:
    """Eight images of different sizes, zero-padded to the largest; sizes; their numbers in the dataset."""
    sizes = torch.tensor([[28, 28], [40, 31], [25, 48], [33, 33], [48, 20], [30, 47], [21, 22], [45, 45]])
    images = torch.zeros(8, 3, 48, 48, dtype=torch.uint8)
    for image, (height, width) in zip(images, sizes.tolist(), strict=True):
        image[:, :height, :width] = pictures(1, height, width)[0]
    return images, sizes, torch.tensor([4, 90, 17, 3, 10**9, 55, 56, 0])
