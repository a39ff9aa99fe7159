"""Gaussian blur with its own standard deviation for each image, mirrored at the borders, edge pixel once."""

from math import ceil, exp

import torch
from torch import Tensor
from torch.nn.functional import pad

REACH = 3.5  # standard deviations; what is beyond weighs 0.0005, an eighth of a level at most


def gaussian_blur(pixels: Tensor, sigmas: Tensor, kernel: int) -> Tensor:
    """Blur [n, c, s, s] by ``sigmas`` [n] pixels over an odd ``kernel``: one matrix product per axis."""
    n, channels, size, _ = pixels.shape
    matrix = blur_matrix(sigmas, kernel, size)
    across = torch.bmm(pixels.reshape(n, channels * size, size), matrix.transpose(1, 2))
    return matrix[:, None] @ across.view(n, channels, size, size)


def blur_matrix(sigmas: Tensor, kernel: int, size: int) -> Tensor:
    """float32 [n, size, size]: an axis of ``size`` pixels times this is blurred."""
    offsets = torch.arange(kernel, device=sigmas.device) - kernel // 2
    taps = torch.softmax(-0.5 * (offsets / sigmas.float()[:, None]) ** 2, dim=1)
    last = size - 1
    sources = last - (last - (torch.arange(size, device=sigmas.device)[:, None] + offsets).abs()).abs()
    matrix = taps.new_zeros(len(sigmas), size, size)
    return matrix.scatter_add_(2, sources.expand(len(sigmas), -1, -1), taps[:, None].expand(-1, size, -1))


def separable_blur(pixels: Tensor, sigmas: Tensor, kernel: int) -> Tensor:
    """``gaussian_blur`` for large images on a CPU, within an eighth of a level: sums of shifts, as wide as needed."""
    blurred = torch.empty_like(pixels)
    for image, sigma, out in zip(pixels, sigmas.tolist(), blurred, strict=True):
        radius = min(kernel // 2, ceil(REACH * sigma))
        weights = [exp(-0.5 * (offset / sigma) ** 2) for offset in range(-radius, radius + 1)]
        taps = [weight / sum(weights) for weight in weights]
        down = _weighed(pad(image, (0, 0, radius, radius), mode="reflect"), taps, 1, torch.empty_like(image))
        _weighed(pad(down, (radius, radius, 0, 0), mode="reflect"), taps, 2, out)
    return blurred


def _weighed(padded: Tensor, taps: list[float], axis: int, out: Tensor) -> Tensor:
    """The sum over shifts along ``axis`` of ``padded``, each times its tap, in ``out``."""
    length = out.shape[axis]
    torch.mul(padded.narrow(axis, 0, length), taps[0], out=out)
    for shift, tap in enumerate(taps[1:], start=1):
        out.add_(padded.narrow(axis, shift, length), alpha=tap)
    return out
