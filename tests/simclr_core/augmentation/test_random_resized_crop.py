"""Crops equal torchvision's, by both ways to them, and are distributed as its crops are."""

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.v2 import functional as reference

from simclr_core.augmentation.random_resized_crop import crop_boxes, interpolated_crop, resized_crop
from tests.simclr_core.pictures import LEVEL, assert_close, pictures

torch.set_num_threads(1)


@pytest.mark.parametrize("is_cubic", [False, True], ids=["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [7, 28, 64])
def test_crop_resize_and_flip_are_torchvisions(size: int, is_cubic: bool) -> None:
    mode = InterpolationMode.BICUBIC if is_cubic else InterpolationMode.BILINEAR
    images = pictures(6, 40, 31)
    boxes = torch.tensor(
        [[0, 0, 40, 31], [3, 5, 30, 20], [39, 30, 1, 1], [10, 0, 7, 28], [2, 2, 28, 7], [12, 11, 9, 20]]
    )
    flipped = torch.tensor([False, True, False, True, True, False])
    got = resized_crop(images, boxes, flipped, size, is_cubic=is_cubic)
    for image, box, flip, view in zip(images, boxes.tolist(), flipped, got, strict=True):
        expected = reference.resized_crop(image / 255, *box, [size, size], mode, antialias=True)
        assert_close(view, reference.horizontal_flip(expected) if flip else expected, 1e-5)
    channels_last = images.contiguous(memory_format=torch.channels_last)
    for form in (images, channels_last):
        for rounded, tolerance in ((False, 1e-5), (True, LEVEL * (1 + is_cubic))):
            crops = interpolated_crop(form, boxes, flipped, size, rounded, is_cubic) / 255
            assert_close(crops, got.clamp(0, 1), tolerance)


def test_a_smoothing_matrix_acts_on_both_axes_of_the_view() -> None:
    images, smoothing = pictures(2, 20, 30), torch.rand(2, 16, 16)
    box, flipped = torch.tensor([[2, 3, 15, 20], [0, 0, 20, 30]]), torch.tensor([True, False])
    plain = resized_crop(images, box, flipped, 16)
    expected = torch.einsum("nij,ncjk,nlk->ncil", smoothing, plain, smoothing)
    assert_close(resized_crop(images, box, flipped, 16, smoothing), expected, 1e-4)


@pytest.mark.seconds
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
