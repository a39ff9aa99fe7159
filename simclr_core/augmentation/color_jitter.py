"""Color jitter of SimCLR (Chen et al. 2020, appendix A), each image with its own changes.

Two forms. Step by step (``jittered``): every step equals torchvision's of a float image and clamps to [0, 1]. As one
affine map (``jitter_maps``): all steps and grayscale composed, nothing clamped between, and hue turned in the YIQ
plane, which keeps a pixel's luminance, where HSV keeps its largest channel.

Images that have not three channels have no saturation and no hue. Their brightness and contrast change by one factor
for all channels, whose ratios say what is seen, and contrast is about the mean of each channel, whose levels may be far
apart.

Luminance weighs by 0.299, 0.587, 0.114 (ITU-R BT.601), which sum to one; torchvision's sum to 0.9999. So saturation,
hue and grayscale leave a gray image as it is, and one channel is enough for it.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Matrices = NDArray[np.float64]  # [n, 3, 3]
Step = Callable[[Tensor, Tensor], Tensor]

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)  # the fixed order; torchvision shuffles it per image
IN_ORDER = np.array([[BRIGHTNESS, CONTRAST, SATURATION, HUE]])

TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])  # NTSC 1953
TO_LUMINANCE = np.tile(TO_YIQ[0], (3, 1))
GRAIN = 32_768  # numbers; torch divides longer sums among threads
QUARTER_TURN = np.linalg.inv(TO_YIQ) @ [[0, 0, 0], [0, 0, 1], [0, -1, 0]] @ TO_YIQ  # of I and Q, red towards green


def jittered(pixels: Tensor, swings: Tensor, orders: NDArray[np.int64] | None = None) -> Tensor:
    """Change brightness, contrast, saturation, hue of [n, c, h, w] by ``swings`` [4, n] in [-s, s].

    In this order, or image by image in that of ``orders`` [n, 4], permutations of 0..3.
    """
    factors = 1 + 0.8 * swings
    factors[HUE] = 0.2 * swings[HUE]
    steps: tuple[Step, ...] = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)
    if pixels.shape[1] != 3:
        steps = steps[:SATURATION]  # the others leave gray as it is, and need colors
    if orders is None:
        for change, step in zip(factors, steps, strict=False):
            pixels = step(pixels, change)
        return pixels
    pixels = pixels.clone()
    for place in orders.T:
        for number, step in enumerate(steps):
            rows = torch.from_numpy(np.flatnonzero(place == number)).to(pixels.device)
            if len(rows):
                pixels[rows] = step(pixels[rows], factors[number, rows])
    return pixels


def adjust_brightness(pixels: Tensor, factors: Tensor) -> Tensor:
    """Multiply and clamp to [0, 1]; ``factors`` [n]."""
    return (pixels * _per_sample(factors, pixels)).clamp_(0, 1)


def adjust_contrast(pixels: Tensor, factors: Tensor) -> Tensor:
    """Move away from the image's mean luminance by ``factors`` [n] and clamp; without colors, each channel from its
    own mean."""
    mean = _mean(luminance(pixels), (1, 2, 3)) if pixels.shape[1] in (1, 3) else _mean(pixels, (2, 3))
    return mean.lerp(pixels, _per_sample(factors, pixels)).clamp_(0, 1)


def adjust_saturation(pixels: Tensor, factors: Tensor) -> Tensor:
    """Move away from each pixel's luminance by ``factors`` [n] and clamp."""
    return luminance(pixels).lerp(pixels, _per_sample(factors, pixels)).clamp_(0, 1)


def adjust_hue(pixels: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue of HSV by ``turns`` [n] of the circle, keeping value and saturation.

    Along the hue circle, in sixths from red, each channel is a trapezium between a pixel's lowest and highest channel:
    that gives the turned color without the usual six cases.
    """
    red, green, blue = pixels.unbind(1)
    low, high = torch.minimum(red, green).minimum(blue), torch.maximum(red, green).maximum(blue)
    reddest, greenest = high == red, high == green
    chroma = high.sub_(low)
    sixths = torch.where(reddest, green - blue, torch.where(greenest, blue - red, red - green))
    sixths.div_(chroma.clamp(min=1e-8))  # a gray pixel has no hue: its chroma is 0 and any will do
    sixths += torch.where(reddest, 0.0, torch.where(greenest, 2.0, 4.0))
    sixths.add_(6 * _per_sample(turns, pixels)[:, 0])
    sixths.sub_(sixths.div(6).floor_(), alpha=6)  # remainder_ takes five times as long
    shares = ((sixths - 3).abs_().sub_(1), (sixths - 2).abs_().neg_().add_(2), (sixths - 4).abs_().neg_().add_(2))
    turned = torch.empty_like(pixels)
    for share, channel in zip(shares, turned.unbind(1), strict=True):
        torch.addcmul(low, chroma, share.clamp_(0, 1), out=channel)
    return turned


def luminance(pixels: Tensor) -> Tensor:
    """[n, c, h, w] to [n, 1, h, w]."""
    if pixels.shape[1] == 1:
        return pixels
    red, green, blue = pixels.unbind(1)
    return (0.299 * red).add_(green, alpha=0.587).add_(blue, alpha=0.114).unsqueeze(1)


def jitter_maps(
    swings: NDArray[np.float64], gray: NDArray[np.bool_], orders: NDArray[np.int64] | None = None
) -> tuple[Matrices, Matrices]:
    """The steps of ``jittered``, then grayscale where ``gray`` [n], as a pair of matrices (L, P) per image.

    A pixel x of an image whose mean is m becomes L x + P m: contrast alone looks at the mean, and linearly.
    ``swings`` [4, n], with 0 for no change, and ``orders`` as in ``jittered``.
    """
    brightness, contrast, saturation = 1 + 0.8 * swings[:HUE, :, None, None]
    angle = 2 * np.pi * 0.2 * swings[HUE, :, None, None]
    same = np.eye(3)
    steps = np.stack(
        [
            brightness * same,
            contrast * same,
            TO_LUMINANCE + saturation * (same - TO_LUMINANCE),
            TO_LUMINANCE + np.cos(angle) * (same - TO_LUMINANCE) + np.sin(angle) * QUARTER_TURN,
        ]
    )
    pivots = np.zeros((4, *contrast.shape))
    pivots[CONTRAST] = 1 - contrast
    rows = np.arange(len(gray))
    of_pixel, of_mean = np.broadcast_to(same, (len(gray), 3, 3)), np.zeros((len(gray), 3, 3))
    for place in (IN_ORDER if orders is None else orders).T:
        step, pivot = steps[place, rows], pivots[place, rows]
        of_mean = step @ of_mean + pivot * TO_LUMINANCE @ (of_pixel + of_mean)
        of_pixel = step @ of_pixel
    last = np.where(gray[:, None, None], TO_LUMINANCE, same)
    return last @ of_pixel, last @ of_mean


def mapped(pixels: Tensor, of_pixel: Tensor, of_mean: Tensor) -> Tensor:
    """Apply maps [n, 3, 3] of ``jitter_maps`` to [n, c, h, w] and clamp.

    Where c is not 3, each channel is changed as gray is, whose three channels are equal.
    """
    n, channels, height, width = pixels.shape
    if channels != 3:  # the rows of a map have equal sums
        same = torch.eye(channels, device=pixels.device)
        of_pixel, of_mean = (values[:, :1].sum(2, keepdim=True) * same for values in (of_pixel, of_mean))
    flat = pixels.view(n, channels, height * width)
    offset = torch.bmm(of_mean, _mean(flat, (2,)))
    return torch.baddbmm(offset, of_pixel, flat).clamp_(0, 1).view_as(pixels)


def _mean(pixels: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Over ``dims``, which are kept. A single long sum is that of its halves, as torch's own on two threads: the
    whole would have other last digits on another number of them."""
    count = math.prod(pixels.shape[dim] for dim in dims)
    if count < pixels.numel() or count <= GRAIN:
        return pixels.mean(dim=dims, keepdim=True)
    as_in_memory = pixels.permute(sorted(range(pixels.ndim), key=lambda dim: -pixels.stride()[dim]))
    halves = as_in_memory.reshape(-1).chunk(2)
    return torch.stack([half.sum() for half in halves]).sum().div(count).view([1] * pixels.ndim)


def _per_sample(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like.dtype).view(-1, 1, 1, 1)
