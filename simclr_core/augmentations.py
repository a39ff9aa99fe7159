"""The views of SimCLR (Chen et al. 2020, appendix A): crop and resize, flip, colour jitter, grayscale, blur.

Whole uint8 batches in, each sample with parameters of its own, on the device where the batch lies. All randomness comes
from ``order.uniform``: a view is a pure function of (seed, epoch, sample, view), whatever batch the sample sits in.

Crop, resize, flip and blur are products with one small matrix per sample and axis. Every step equals torchvision's
transform of a float image (antialias on) within one level of 255, with two choices of our own:
- the jitter runs in the fixed order brightness, contrast, saturation, hue; torchvision shuffles it per image;
- luminance weighs by 0.299, 0.587, 0.114, which sum to one; torchvision's sum to 0.9999. So saturation, hue and
  grayscale leave a gray image as it is, and a batch without any colour is worked on in one channel.
"""

from dataclasses import dataclass
from math import log
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simclr_core.errors import AugmentationError
from simclr_core.order import uniform

TRIES = 10  # crop shapes drawn until one fits the image, as in torchvision's RandomResizedCrop
SIGMA = (0.1, 2.0)  # of the blur, in pixels of the view whatever its size


@dataclass(frozen=True)
class Augmentation:
    """The recipe of a view of ``size`` x ``size`` pixels.

    ``crop_scale`` is the area of the crop over that of the image, ``crop_ratio`` its width over its height. ``flip``,
    ``jitter_probability``, ``grayscale`` and ``blur`` are probabilities, each drawn per sample. With strength s the
    factors of brightness, contrast and saturation lie in 1 -+ 0.8 s, and hue turns by up to 0.2 s of the circle either
    way. The blur's kernel spans 10 % of the side, rounded down to an odd number: below 20 pixels there is no blur.

    Raises:
        AugmentationError: a value is out of its range.
    """

    size: int
    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter_strength: float = 1.0
    jitter_probability: float = 0.8
    grayscale: float = 0.2
    blur: float = 0.5

    def __post_init__(self) -> None:
        if self.size < 1:
            raise AugmentationError(f"size is {self.size}; a view has at least 1 pixel a side")
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise AugmentationError(f"crop_scale is {self.crop_scale}; give 0 < smallest <= largest <= 1")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise AugmentationError(f"crop_ratio is {self.crop_ratio}; give 0 < smallest <= largest")
        if not 0 <= self.jitter_strength <= 1.25:
            raise AugmentationError(f"jitter_strength is {self.jitter_strength}; give 0 to 1.25, where 1 - 0.8 s is 0")
        for name in ("flip", "jitter_probability", "grayscale", "blur"):
            if not 0 <= getattr(self, name) <= 1:
                raise AugmentationError(f"{name} is {getattr(self, name)}; a probability lies in [0, 1]")

    def view(self, images: Tensor, sizes: Tensor, seed: int, epoch: int, samples: Tensor, view: int) -> Tensor:
        """One view of each image: float32 [n, 3, size, size] in [0, 1].

        ``images`` uint8 [n, 3, H, W] hold each image in the top left corner, ``sizes`` int64 [n, 2] say how high and
        wide it is, ``samples`` int64 [n] which of the dataset; the last two are best left on the CPU.
        """

        def on_device(values: NDArray[Any]) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(values)).to(images.device)

        draws = uniform(seed, epoch, samples.cpu().numpy(), view, 2 * TRIES + 11).T
        areas, ratios, (top, left, flip, jitter, *factors, grayscale, blur, sigma) = np.split(draws, [TRIES, 2 * TRIES])
        boxes = crop_boxes(areas, ratios, top, left, sizes.cpu().numpy(), self.crop_scale, self.crop_ratio)
        colourless = torch.equal(images[:, 0], images[:, 1]) and torch.equal(images[:, 1], images[:, 2])
        with torch.autocast(images.device.type, enabled=False):
            pixels = images[:, :1] if colourless else images
            pixels = resized_crop(pixels, on_device(boxes), on_device(flip < self.flip), self.size)

            rows = on_device(np.flatnonzero((jitter < self.jitter_probability) & (self.jitter_strength > 0)))
            swings = on_device(self.jitter_strength * (2 * np.stack(factors) - 1))
            pixels[rows] = jittered(pixels[rows], swings[:, rows])

            rows = on_device(np.flatnonzero((grayscale < self.grayscale) & (not colourless)))
            pixels[rows] = luminance(pixels[rows]).expand(-1, pixels.shape[1], -1, -1)

            kernel = self.size // 10 // 2 * 2 + 1
            rows = on_device(np.flatnonzero((blur < self.blur) & (kernel > 1)))
            sigmas = on_device(SIGMA[0] + (SIGMA[1] - SIGMA[0]) * sigma)
            pixels[rows] = gaussian_blur(pixels[rows], sigmas[rows], kernel)
        return pixels.expand(-1, 3, -1, -1).contiguous()


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


def resized_crop(images: Tensor, boxes: Tensor, flipped: Tensor, size: int) -> Tensor:
    """The ``boxes`` [n, 4] of uint8 [n, c, H, W], mirrored where ``flipped`` [n], as [n, c, size, size] in [0, 1]."""
    n, channels, height, width = images.shape
    top, left, crop_height, crop_width = boxes.float().T
    vertical = _resampling(top, crop_height, height, size, torch.zeros_like(flipped))
    horizontal = _resampling(left, crop_width, width, size, flipped) / 255
    # Channels between rows and columns: both products then run over all channels of a sample at once.
    pixels = images.transpose(1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    pixels = torch.bmm(vertical, pixels.view(n, height, channels * width))
    pixels = torch.bmm(pixels.view(n, size * channels, width), horizontal.transpose(1, 2))
    return pixels.view(n, size, channels, size).transpose(1, 2).contiguous()


def _resampling(start: Tensor, extent: Tensor, length: int, size: int, flipped: Tensor) -> Tensor:
    """Weights [n, size, length] of an axis of ``length`` pixels in the ``size`` that its part from ``start`` becomes.

    Bilinear, antialiased: a triangle as wide as an output pixel, or as an input pixel where that is wider.
    """
    places = torch.arange(size, device=start.device) + 0.5
    places = torch.where(flipped[:, None], size - places, places)
    step = (extent / size)[:, None]
    centres = start[:, None] + step * places
    pixels = torch.arange(length, device=start.device) + 0.5
    weights = (pixels - centres[:, :, None]).abs_().div_(-step.clamp(min=1)[:, :, None]).add_(1).clamp_(min=0)
    weights *= ((pixels > start[:, None]) & (pixels < (start + extent)[:, None]))[:, None]
    return weights.div_(weights.sum(dim=2, keepdim=True))


def jittered(pixels: Tensor, swings: Tensor) -> Tensor:
    """Change brightness, contrast, saturation, hue of [n, c, h, w], in this order, by ``swings`` [4, n] in [-s, s]."""
    brightness, contrast, saturation = 1 + 0.8 * swings[:3]
    pixels = adjust_contrast(adjust_brightness(pixels, brightness), contrast)
    if pixels.shape[1] == 1:
        return pixels
    return adjust_hue(adjust_saturation(pixels, saturation), 0.2 * swings[3])


def adjust_brightness(pixels: Tensor, factors: Tensor) -> Tensor:
    """Multiply and clamp to [0, 1]; ``factors`` [n]."""
    return (pixels * _per_sample(factors, pixels)).clamp_(0, 1)


def adjust_contrast(pixels: Tensor, factors: Tensor) -> Tensor:
    """Move away from the image's mean luminance by ``factors`` [n] and clamp."""
    mean = luminance(pixels).mean(dim=(1, 2, 3), keepdim=True)
    return mean.lerp(pixels, _per_sample(factors, pixels)).clamp_(0, 1)


def adjust_saturation(pixels: Tensor, factors: Tensor) -> Tensor:
    """Move away from each pixel's luminance by ``factors`` [n] and clamp."""
    return luminance(pixels).lerp(pixels, _per_sample(factors, pixels)).clamp_(0, 1)


def adjust_hue(pixels: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue of HSV by ``turns`` [n] of the circle, keeping value and saturation.

    Along the hue circle, in sixths from red, each channel is a trapezium between a pixel's lowest and highest channel:
    that gives the turned colour without the usual six cases.
    """
    red, green, blue = pixels.unbind(1)
    low, high = pixels.amin(1), pixels.amax(1)
    chroma = high - low
    sixths = torch.where(high == red, green - blue, torch.where(high == green, blue - red, red - green))
    sixths.div_(chroma.clamp(min=1e-8))  # a gray pixel has no hue: its chroma is 0 and any will do
    sixths += torch.where(high == red, 0.0, torch.where(high == green, 2.0, 4.0))
    sixths = sixths.add_(6 * _per_sample(turns, pixels)[:, 0]).remainder_(6)
    shares = ((sixths - 3).abs_().sub_(1), 2 - (sixths - 2).abs_(), 2 - (sixths - 4).abs_())
    return torch.stack([torch.addcmul(low, chroma, share.clamp_(0, 1)) for share in shares], dim=1)


def luminance(pixels: Tensor) -> Tensor:
    """[n, c, h, w] to [n, 1, h, w], by the weights of ITU-R BT.601."""
    if pixels.shape[1] == 1:
        return pixels
    red, green, blue = pixels.unbind(1)
    return (0.299 * red).add_(green, alpha=0.587).add_(blue, alpha=0.114).unsqueeze(1)


def gaussian_blur(pixels: Tensor, sigmas: Tensor, kernel: int) -> Tensor:
    """Blur [n, c, s, s] by ``sigmas`` [n] pixels over an odd ``kernel``, mirrored at the borders, edge pixel once."""
    n, channels, size, _ = pixels.shape
    offsets = torch.arange(kernel, device=pixels.device) - kernel // 2
    taps = torch.softmax(-0.5 * (offsets / sigmas.to(pixels.dtype)[:, None]) ** 2, dim=1)
    last = size - 1
    sources = last - (last - (torch.arange(size, device=pixels.device)[:, None] + offsets).abs()).abs()
    matrix = pixels.new_zeros(n, size, size)
    matrix.scatter_add_(2, sources.expand(n, -1, -1), taps[:, None].expand(-1, size, -1))
    across = torch.bmm(pixels.reshape(n, channels * size, size), matrix.transpose(1, 2))
    return matrix[:, None] @ across.view(n, channels, size, size)


def _per_sample(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like.dtype).view(-1, 1, 1, 1)
