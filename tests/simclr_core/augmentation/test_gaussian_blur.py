"""Both ways to blur equal torchvision's."""

import pytest
import torch
from torchvision.transforms.v2 import functional as reference

from simclr_core.augmentation.gaussian_blur import gaussian_blur, separable_blur
from tests.simclr_core.pictures import LEVEL, assert_close, colors, pictures

torch.set_num_threads(1)


@pytest.mark.parametrize("kernel", [3, 9, 23])
def test_blur_is_torchvisions(kernel: int) -> None:
    pixels = colors(4)
    sigmas = [0.1, 0.7, 1.3, 2.0]
    got = gaussian_blur(pixels, torch.tensor(sigmas), kernel)
    for image, sigma, view in zip(pixels, sigmas, got, strict=True):
        assert_close(view, reference.gaussian_blur(image, [kernel, kernel], [sigma, sigma]), 1e-5)


@pytest.mark.parametrize(("size", "kernel"), [(30, 3), (96, 9), (224, 23)])
def test_the_separable_blur_is_torchvisions_too(size: int, kernel: int) -> None:
    pixels = pictures(5, size, size) / 255
    pixels[4] = (torch.rand(3, size, size) > 0.5).float()  # the hardest picture
    sigmas = [0.1, 0.7, 1.3, 2.0, 1.1]
    got = separable_blur(pixels, torch.tensor(sigmas), kernel)
    for image, sigma, view in zip(pixels, sigmas, got, strict=True):
        assert_close(view, reference.gaussian_blur(image, [kernel, kernel], [sigma, sigma]), LEVEL / 8)
