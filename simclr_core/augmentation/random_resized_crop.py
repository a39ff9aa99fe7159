"""Random resized crops of whole uint8 batches, each image with its own box, bilinear or bicubic, with antialiasing.

Two ways to the same pixels: products with one small matrix per image and axis, for small views, and torch's own resize,
image by image, for large ones, where a dense product would mostly multiply by zero. A GPU has a third, without an image
that is not in the batch's own memory: ``batched_views``.
"""

from collections.abc import Sequence
from math import log

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from deploy.images.full_depth import FULL

MATRIX_SIDE = 64  # pixels: on a CPU, larger views are faster without matrix products
TRIES = 10  # crop shapes drawn until one fits the image, as in torchvision's RandomResizedCrop


def crop_boxes(
    areas: NDArray[np.float64],
    ratios: NDArray[np.float64],
    top: NDArray[np.float64],
    left: NDArray[np.float64],
    sizes: NDArray[np.int64],
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> NDArray[np.float64]:
    """Random crops (top, left, height, width), whole numbers [n, 4], of images of ``sizes`` [n, 2], from uniform draws.

    ``areas`` and ``ratios`` [tries, n]: the first shape that fits the image is taken; if none does, the largest crop
    in its middle of an allowed ratio. ``top`` and ``left`` [n] place it.
    """
    height, width = sizes.T
    area = height * width * (scale[0] + (scale[1] - scale[0]) * areas)
    aspect = np.exp(log(ratio[0]) + (log(ratio[1]) - log(ratio[0])) * ratios)
    heights, widths = np.round(np.sqrt(area / aspect)), np.round(np.sqrt(area * aspect))
    fits = (heights >= 1) & (heights <= height) & (widths >= 1) & (widths <= width)
    first = fits.argmax(axis=0), np.arange(len(sizes))
    found = fits[first]
    crop_height = np.where(found, heights[first], np.clip(np.round(width / ratio[0]), 1, height))
    crop_width = np.where(found, widths[first], np.clip(np.round(height * ratio[1]), 1, width))
    crop_top = np.where(found, np.floor(top * (height - crop_height + 1)), (height - crop_height) // 2)
    crop_left = np.where(found, np.floor(left * (width - crop_width + 1)), (width - crop_width) // 2)
    return np.stack([crop_top, crop_left, crop_height, crop_width], axis=1)


def resized_crop(
    images: Tensor,
    boxes: Tensor,
    flipped: Tensor,
    size: int,
    smoothing: Tensor | None = None,
    is_cubic: bool = False,
) -> Tensor:
    """The ``boxes`` [n, 4] of [n, c, H, W], mirrored where ``flipped`` [n], as [n, c, size, size] in [0, 1], or a
    little beyond if bicubic.

    ``smoothing`` [n, size, size] is a further matrix to multiply each axis of each view with: a blur.
    """
    n, channels, height, width = images.shape
    top, left, crop_height, crop_width = boxes.float().T
    vertical = _resampling(top, crop_height, height, size, torch.zeros_like(flipped), is_cubic)
    horizontal = _resampling(left, crop_width, width, size, flipped, is_cubic) / full_scale(images)
    if smoothing is not None:
        vertical, horizontal = torch.bmm(smoothing, vertical), torch.bmm(smoothing, horizontal)
    # Channels between rows and columns: both products then run over all channels of a sample at once.
    pixels = images.transpose(1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    pixels = torch.bmm(vertical, pixels.view(n, height, channels * width))
    pixels = torch.bmm(pixels.view(n, size * channels, width), horizontal.transpose(1, 2))
    return pixels.view(n, size, channels, size).transpose(1, 2).contiguous()


def full_scale(images: Tensor) -> int:
    """The value that counts as 1.0: 255 of uint8, 65,535 of uint16."""
    return 255 if images.dtype == torch.uint8 else FULL


def _resampling(start: Tensor, extent: Tensor, length: int, size: int, flipped: Tensor, is_cubic: bool) -> Tensor:
    """Weights [n, size, length] of an axis of ``length`` pixels in the ``size`` that its part from ``start`` becomes.

    Antialiased: a triangle, or twice as wide the cubic kernel, in units of an output pixel, or of an input pixel where
    that is wider.
    """
    places = torch.arange(size, device=start.device) + 0.5
    places = torch.where(flipped[:, None], size - places, places)
    step = (extent / size)[:, None]
    centers = start[:, None] + step * places
    pixels = torch.arange(length, device=start.device) + 0.5
    weights = (pixels - centers[:, :, None]).abs_().div_(-step.clamp(min=1)[:, :, None])
    weights = cubic(weights.neg_()) if is_cubic else weights.add_(1).clamp_(min=0)
    weights *= ((pixels > start[:, None]) & (pixels < (start + extent)[:, None]))[:, None]
    return weights.div_(weights.sum(dim=2, keepdim=True))


def cubic(distances: Tensor) -> Tensor:
    """The kernel of Keys 1981 with a = -0.5, that of Pillow, at ``distances`` of 0 and more; 0 from 2 on."""
    near = (1.5 * distances - 2.5) * distances.square() + 1
    far = ((-0.5 * distances + 2.5) * distances - 4) * distances + 2
    return torch.where(distances < 1, near, far).mul_(distances < 2)


def interpolated_crop(
    images: Sequence[Tensor], boxes: Tensor, flipped: Tensor, size: int, rounded: bool, is_cubic: bool = False
) -> Tensor:
    """What ``resized_crop`` returns times ``full_scale``, by torch's resize, of images [c, height, width].

    Fastest from images with the channels last in memory.

    With ``rounded``, bytes are resized in fixed point and rounded to whole levels, as in torchvision and Pillow: half a
    level off, in a quarter of the time.
    """
    levels = torch.empty(len(images), len(images[0]), size, size)
    mode, full = ("bicubic" if is_cubic else "bilinear"), full_scale(images[0])
    for image, box, flip, view in zip(images, boxes.long().tolist(), flipped.tolist(), levels, strict=True):
        top, left, height, width = box
        crop = image[None, :, top : top + height, left : left + width]
        crop = interpolate(crop if rounded else crop.float(), (size, size), mode=mode, antialias=True)
        if is_cubic and not rounded:  # bytes cannot leave the range
            crop.clamp_(0, full)
        view.copy_((crop.flip(3) if flip else crop)[0])
    return levels
