"""Each step equals torchvision's; the affine map equals its steps, written by hand for every pixel."""

from collections.abc import Callable
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as reference

from simclr_core.augmentation.color_jitter import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    jitter_maps,
    jittered,
    luminance,
    mapped,
)
from tests.simclr_core.pictures import LEVEL, assert_close, colors

torch.set_num_threads(1)

Step = Callable[[Tensor, Any], Tensor]

YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])


@pytest.mark.parametrize(
    ("ours", "torchvisions", "values"),
    [
        (adjust_brightness, reference.adjust_brightness, [0.0, 0.2, 1.0, 1.8]),
        (adjust_contrast, reference.adjust_contrast, [0.0, 0.2, 1.0, 1.8]),
        (adjust_saturation, reference.adjust_saturation, [0.0, 0.2, 1.0, 1.8]),
        (adjust_hue, reference.adjust_hue, [-0.5, -0.2, 0.0, 0.13, 0.5]),
    ],
)
def test_color_steps_are_torchvisions(ours: Step, torchvisions: Step, values: list[float]) -> None:
    pixels = colors(len(values))
    got = ours(pixels, torch.tensor(values))
    for image, value, view in zip(pixels, values, got, strict=True):
        assert_close(view, torchvisions(image, value), LEVEL)


def test_grayscale_is_torchvisions() -> None:
    pixels = colors(2)
    assert_close(luminance(pixels), reference.rgb_to_grayscale(pixels), LEVEL)


def test_jitter_runs_brightness_contrast_saturation_hue() -> None:
    pixels = colors(3)
    swings = torch.tensor([[0.9, -0.5, 0.2], [-0.7, 0.8, 0.0], [0.3, -1.0, 0.6], [-1.0, 0.4, 0.7]])
    got = jittered(pixels, swings)
    for image, (b, c, s, h), view in zip(pixels, swings.T.tolist(), got, strict=True):
        expected = reference.adjust_contrast(reference.adjust_brightness(image, 1 + 0.8 * b), 1 + 0.8 * c)
        expected = reference.adjust_hue(reference.adjust_saturation(expected, 1 + 0.8 * s), 0.2 * h)
        assert_close(view, expected, LEVEL)


def test_every_image_has_its_own_order() -> None:
    pixels, swings = colors(24), torch.rand(4, 24) * 2 - 1
    orders = np.array(list(permutations(range(4))))
    steps = (
        lambda image, swing: reference.adjust_brightness(image, 1 + 0.8 * swing),
        lambda image, swing: reference.adjust_contrast(image, 1 + 0.8 * swing),
        lambda image, swing: reference.adjust_saturation(image, 1 + 0.8 * swing),
        lambda image, swing: reference.adjust_hue(image, 0.2 * swing),
    )
    got = jittered(pixels, swings, orders)
    for image, order, swing, view in zip(pixels, orders, swings.T.tolist(), got, strict=True):
        expected = image
        for number in order:
            expected = steps[number](expected, swing[number])
        assert_close(view, expected, LEVEL)
    assert torch.equal(pixels, colors(24))


def by_hand(image: np.ndarray, swing: np.ndarray, gray: bool, order: np.ndarray) -> np.ndarray:
    """Step by step, pixel by pixel, in double precision: float64 [3, h, w]."""

    def luma(pixel: np.ndarray) -> float:
        return float(0.299 * pixel[0] + 0.587 * pixel[1] + 0.114 * pixel[2])

    pixels = [image[:, row, column] for row in range(image.shape[1]) for column in range(image.shape[2])]
    for number in order:
        if number == 0:
            pixels = [(1 + 0.8 * swing[0]) * pixel for pixel in pixels]
        elif number == 1:
            mean = sum(map(luma, pixels)) / len(pixels)
            pixels = [mean + (1 + 0.8 * swing[1]) * (pixel - mean) for pixel in pixels]
        elif number == 2:
            pixels = [luma(pixel) + (1 + 0.8 * swing[2]) * (pixel - luma(pixel)) for pixel in pixels]
        else:
            turned = []
            for pixel in pixels:
                y, i, q = YIQ @ pixel
                chroma = complex(i, q) * np.exp(-0.4j * np.pi * swing[3])
                turned.append(np.linalg.solve(YIQ, [y, chroma.real, chroma.imag]))
            pixels = turned
    if gray:
        pixels = [np.full(3, luma(pixel)) for pixel in pixels]
    return np.array(pixels).T.reshape(image.shape)


@pytest.mark.parametrize("shuffled", [False, True])
def test_the_map_is_all_steps_without_a_clamp_between(shuffled: bool) -> None:
    random = np.random.default_rng(5)
    images, swings, gray = random.random((6, 3, 5, 4)), random.uniform(-1, 1, (4, 6)), np.arange(6) % 3 == 0
    swings[:, 5] = 0
    orders = np.stack([random.permutation(4) if shuffled else np.arange(4) for _ in range(6)])
    of_pixel, of_mean = map(torch.from_numpy, jitter_maps(swings, gray, orders if shuffled else None))
    got = mapped(torch.from_numpy(images), of_pixel, of_mean).numpy()
    for image, swing, flag, order, view in zip(images, swings.T, gray, orders, got, strict=True):
        np.testing.assert_allclose(view, by_hand(image, swing, flag, order).clip(0, 1), atol=1e-9)
    assert_close(torch.from_numpy(got[5]), torch.from_numpy(images[5]), 1e-12)


def test_one_channel_is_mapped_as_three_equal_ones() -> None:
    random = np.random.default_rng(6)
    gray = torch.rand(5, 1, 6, 6, dtype=torch.float64)
    maps = [torch.from_numpy(one) for one in jitter_maps(random.uniform(-1, 1, (4, 5)), np.arange(5) > 2)]
    three = mapped(gray.expand(-1, 3, -1, -1).contiguous(), *maps)
    assert_close(mapped(gray, *maps).expand(-1, 3, -1, -1), three, 1e-9)


def test_the_map_turns_hue_in_the_direction_and_about_as_far_as_hsv() -> None:
    """Red, yellow, green, ... go where HSV sends them, to within a sixth of the circle; gray stays."""
    pure = torch.tensor([[1.0, 0, 0], [1, 1, 0], [0, 1, 0], [0, 1, 1], [0, 0, 1], [1, 0, 1]]).view(6, 3, 1, 1)
    soft = 0.4 + 0.2 * pure  # far from the clamp
    swings = np.zeros((4, 6))
    swings[3] = 1.0  # a fifth of the circle
    maps = (torch.from_numpy(one.astype(np.float32)) for one in jitter_maps(swings, np.zeros(6, bool)))
    got = mapped(soft, *maps)
    for turn in (-0.2, 0.0):  # the other way, and not at all, are further off
        nearest = adjust_hue(soft, torch.full((6,), 0.2)), adjust_hue(soft, torch.full((6,), turn))
        right, wrong = ((got - one).square().sum() for one in nearest)
        assert right < 0.5 * wrong
    gray = torch.full((6, 3, 1, 1), 0.3)
    maps = (torch.from_numpy(one.astype(np.float32)) for one in jitter_maps(swings, np.zeros(6, bool)))
    assert_close(mapped(gray, *maps), gray, 1e-6)
