"""Each step equals torchvision's on one image at a time; each draw is one sample's; nothing depends on the batch."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.v2 import functional as reference

import simclr_core.augmentations as module
from simclr_core.augmentations import (
    Augmentation,
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    crop_boxes,
    gaussian_blur,
    jittered,
    luminance,
    resized_crop,
)
from simclr_core.errors import AugmentationError

torch.set_num_threads(1)

Step = Callable[[Tensor, Any], Tensor]

LEVEL = 1 / 255
STILL = Augmentation(20, (1, 1), (1, 1), flip=0, jitter_strength=0, grayscale=0, blur=0)  # does nothing to 20 x 20


@pytest.mark.parametrize("size", [7, 28, 64])
def test_crop_resize_and_flip_are_torchvisions(size: int) -> None:
    images = pictures(6, 40, 31)
    boxes = torch.tensor(
        [[0, 0, 40, 31], [3, 5, 30, 20], [39, 30, 1, 1], [10, 0, 7, 28], [2, 2, 28, 7], [12, 11, 9, 20]]
    )
    flipped = torch.tensor([False, True, False, True, True, False])
    got = resized_crop(images, boxes, flipped, size)
    for image, box, flip, view in zip(images, boxes.tolist(), flipped, got, strict=True):
        expected = reference.resized_crop(image / 255, *box, [size, size], InterpolationMode.BILINEAR, antialias=True)
        assert_close(view, reference.horizontal_flip(expected) if flip else expected, 1e-5)


@pytest.mark.parametrize(
    ("ours", "torchvisions", "values"),
    [
        (adjust_brightness, reference.adjust_brightness, [0.0, 0.2, 1.0, 1.8]),
        (adjust_contrast, reference.adjust_contrast, [0.0, 0.2, 1.0, 1.8]),
        (adjust_saturation, reference.adjust_saturation, [0.0, 0.2, 1.0, 1.8]),
        (adjust_hue, reference.adjust_hue, [-0.5, -0.2, 0.0, 0.13, 0.5]),
    ],
)
def test_colour_steps_are_torchvisions(ours: Step, torchvisions: Step, values: list[float]) -> None:
    pixels = colours(len(values))
    got = ours(pixels, torch.tensor(values))
    for image, value, view in zip(pixels, values, got, strict=True):
        assert_close(view, torchvisions(image, value), LEVEL)


def test_grayscale_is_torchvisions() -> None:
    pixels = colours(2)
    assert_close(luminance(pixels), reference.rgb_to_grayscale(pixels), LEVEL)


@pytest.mark.parametrize("kernel", [3, 9, 23])
def test_blur_is_torchvisions(kernel: int) -> None:
    pixels = colours(4)
    sigmas = [0.1, 0.7, 1.3, 2.0]
    got = gaussian_blur(pixels, torch.tensor(sigmas), kernel)
    for image, sigma, view in zip(pixels, sigmas, got, strict=True):
        assert_close(view, reference.gaussian_blur(image, [kernel, kernel], [sigma, sigma]), 1e-5)


def test_jitter_runs_brightness_contrast_saturation_hue() -> None:
    pixels = colours(3)
    swings = torch.tensor([[0.9, -0.5, 0.2], [-0.7, 0.8, 0.0], [0.3, -1.0, 0.6], [-1.0, 0.4, 0.7]])
    got = jittered(pixels, swings)
    for image, (b, c, s, h), view in zip(pixels, swings.T.tolist(), got, strict=True):
        expected = reference.adjust_contrast(reference.adjust_brightness(image, 1 + 0.8 * b), 1 + 0.8 * c)
        expected = reference.adjust_hue(reference.adjust_saturation(expected, 1 + 0.8 * s), 0.2 * h)
        assert_close(view, expected, LEVEL)


def test_crop_shapes_are_distributed_as_torchvisions() -> None:
    """Quantiles of area and aspect ratio, and the mean place, over 4,000 crops of one wide image."""
    n, height, width, ratio = 4000, 60, 100, (0.6, 1.2)
    generator = np.random.default_rng(0)
    draws = [generator.random((10, n)), generator.random((10, n)), generator.random(n), generator.random(n)]
    ours = crop_boxes(*draws, np.tile([height, width], (n, 1)), (0.08, 1.0), ratio)
    torch.manual_seed(0)
    image = torch.empty(1, height, width)
    theirs = np.array([RandomResizedCrop.get_params(image, [0.08, 1.0], list(ratio)) for _ in range(n)])
    for measure in (lambda box: box[:, 2] * box[:, 3] / 6000, lambda box: np.log(box[:, 3] / box[:, 2])):
        quantiles = [np.quantile(measure(boxes), np.linspace(0.05, 0.95, 10)) for boxes in (ours, theirs)]
        np.testing.assert_allclose(*quantiles, atol=0.04)
    np.testing.assert_allclose(ours.mean(axis=0), theirs.mean(axis=0), atol=1.2)


@pytest.mark.parametrize(("draw", "top", "left"), [(0.0, 0, 0), (0.5, 10, 15), (1 - 2**-53, 20, 30)])
def test_crops_reach_every_border(draw: float, top: int, left: int) -> None:
    half = np.full((10, 1), 0.25), np.full((10, 1), 0.5)
    place = np.array([draw])
    assert crop_boxes(*half, place, place, np.array([[40, 60]]), (0.0, 1.0), (1.5, 1.5)).tolist() == [
        [top, left, 20, 30]
    ]


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 50), (50, 1), (3, 90), (90, 3)])
def test_extreme_shapes_are_cropped_as_torchvision_falls_back(height: int, width: int) -> None:
    nothing_fits = np.full((10, 1), 1 - 1e-9), np.full((10, 1), 0.5), np.array([0.9]), np.array([0.9])
    box = crop_boxes(*nothing_fits, np.array([[height, width]]), (0.08, 1.0), (3 / 4, 4 / 3))[0].tolist()
    expected = RandomResizedCrop.get_params(torch.empty(1, height, width), [1.0, 1.0], [3 / 4, 4 / 3])
    assert tuple(box) == expected


def test_a_view_depends_on_its_sample_alone() -> None:
    images, sizes, samples = uneven_batch()
    augmentation = Augmentation(24)
    together = augmentation.view(images, sizes, 1, 2, samples, 0)
    assert together.shape == (8, 3, 24, 24)
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


def test_padding_is_never_seen() -> None:
    images, sizes, samples = uneven_batch()
    expected = Augmentation(24).view(images, sizes, 1, 2, samples, 0)
    for image, (height, width) in zip(images, sizes.tolist(), strict=True):
        image[:, height:] = 255
        image[:, :, width:] = 255
    assert torch.equal(Augmentation(24).view(images, sizes, 1, 2, samples, 0), expected)


def test_a_view_repeats_and_changes_with_every_name() -> None:
    images, sizes, samples = uneven_batch()
    names = [(1, 2, samples, 0), (9, 2, samples, 0), (1, 3, samples, 0), (1, 2, samples + 1, 0), (1, 2, samples, 1)]
    views = [Augmentation(24).view(images, sizes, *name) for name in names]
    assert torch.equal(Augmentation(24).view(images, sizes, *names[0]), views[0])
    for other in views[1:]:
        assert ((other - views[0]).abs().amax(dim=(1, 2, 3)) > LEVEL).all()


def test_without_any_step_the_image_stays() -> None:
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


def test_gray_images_stay_gray_and_equal_in_any_company() -> None:
    gray = pictures(4, 28, 28)[:, :1].expand(-1, 3, -1, -1).contiguous()
    sizes, samples = torch.full((5, 2), 28), torch.arange(5)
    alone = Augmentation(28).view(gray, sizes[:4], 0, 0, samples[:4], 0)
    assert torch.equal(alone[:, 0], alone[:, 1])
    assert torch.equal(alone[:, 0], alone[:, 2])
    among_colours = Augmentation(28).view(torch.cat([gray, pictures(1, 28, 28)]), sizes, 0, 0, samples, 0)
    assert_close(among_colours[:4], alone, 1e-5)
    assert (among_colours[4, 0] != among_colours[4, 1]).any()


def test_exact_under_autocast() -> None:
    images, sizes, samples = uneven_batch()
    expected = Augmentation(24).view(images, sizes, 0, 0, samples, 0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(Augmentation(24).view(images, sizes, 0, 0, samples, 0), expected)


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
        ({"flip": 1.5}, r"flip is 1.5; a probability lies in \[0, 1\]"),
        ({"blur": math.nan}, "blur is nan"),
    ],
)
def test_a_recipe_out_of_range_is_refused(fields: dict[str, float], message: str) -> None:
    with pytest.raises(AugmentationError, match=message):
        Augmentation(**{"size": 28, **fields})


def pictures(n: int, height: int, width: int) -> Tensor:
    """Smooth colour pictures with some noise, uint8 [n, 3, height, width]."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(n, 3, 5, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return (255 * (0.9 * smooth + 0.1 * torch.rand(smooth.shape, generator=generator))).to(torch.uint8)


def colours(n: int) -> Tensor:
    """Pictures in [0, 1] with the corners of the colour cube, black, white and grays among them."""
    cube = torch.cartesian_prod(*[torch.tensor([0.0, 0.5, 1.0])] * 3).T.reshape(3, 27)
    pixels = pictures(n, 30, 30) / 255
    pixels[:, :, 0, :27] = cube
    return pixels


def uneven_batch() -> tuple[Tensor, Tensor, Tensor]:
    """Eight images of different sizes, zero-padded to the largest; sizes; their numbers in the dataset."""
    sizes = torch.tensor([[28, 28], [40, 31], [25, 48], [33, 33], [48, 20], [30, 47], [21, 22], [45, 45]])
    images = torch.zeros(8, 3, 48, 48, dtype=torch.uint8)
    for image, (height, width) in zip(images, sizes.tolist(), strict=True):
        image[:, :height, :width] = pictures(1, height, width)[0]
    return images, sizes, torch.tensor([4, 90, 17, 3, 10**9, 55, 56, 0])


def assert_close(got: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=tolerance)
