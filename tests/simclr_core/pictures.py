"""Pictures that the tests of the augmentations share."""

import torch
from torch import Tensor

LEVEL = 1 / 255


def pictures(n: int, height: int, width: int) -> Tensor:
    """Smooth color pictures with some noise, uint8 [n, 3, height, width]."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(n, 3, 5, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return (255 * (0.9 * smooth + 0.1 * torch.rand(smooth.shape, generator=generator))).to(torch.uint8)


def colors(n: int) -> Tensor:
    """Pictures in [0, 1] with the corners of the color cube, black, white and grays among them."""
    cube = torch.cartesian_prod(*[torch.tensor([0.0, 0.5, 1.0])] * 3).T.reshape(3, 27)
    pixels = pictures(n, 30, 30) / 255
    pixels[:, :, 0, :27] = cube
    return pixels


def assert_close(got: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=tolerance)
