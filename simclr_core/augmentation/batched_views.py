"""The views of ``augmentations`` on a GPU: all rows of a batch in every kernel, so that a step starts few of them.

Where a draw leaves a row alone, the row takes part with the numbers of no change, which change no bit of it. Crops are
read from where the images lie. The numbers of all rows reach the GPU in one copy that nothing waits for, and nothing is
read back. A part of the views is in work at a time, whose crops, each as large as the largest, take ``DEVICE_BYTES``.

It runs on a CPU too, where the tests compare it with ``augmentations``. (It has never run on a GPU.)
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import conv2d, pad

from simclr_core.augmentation.color_jitter import (
    BRIGHTNESS,
    CONTRAST,
    HUE,
    IN_ORDER,
    SATURATION,
    TO_YIQ,
    jitter_maps,
    mapped,
)
from simclr_core.augmentation.draws import Draws, Floats, ViewDraws
from simclr_core.augmentation.random_resized_crop import MATRIX_SIDE, cubic, full_scale
from simclr_core.data.ragged import RaggedImages
from simclr_core.data.transfer import send

DEVICE_BYTES = 2**31  # of the float pixels of crops that are in work at once
KEEP = -1  # a place in the order of the jitter at which a row is not changed
SECTORS = (5.0, 3.0, 1.0)  # sixths of the hue circle, counted back from red, at which red, green and blue begin

Kinds = frozenset[int]
Numbers = Mapping[str, Tensor]  # of the rows of a part, by name, and only of the steps that a row takes


@dataclass(frozen=True)
class Recipe:
    """What all rows have in common: ``size`` and ``kernel`` of the blur in pixels, and how colors change."""

    size: int
    kernel: int
    is_fused: bool
    in_random_order: bool
    is_cubic: bool = False


def batched_views(images: RaggedImages, views: Sequence[ViewDraws], recipe: Recipe) -> Iterator[tuple[slice, Tensor]]:
    """All views, one after the other, in parts: which rows of them, and float32 [m, distinct, size, size] in [0, 1]."""
    sources = np.concatenate([np.arange(view.first, view.first + view.count) for view in views])
    draws = Draws._make(map(np.concatenate, zip(*(view.draws for view in views), strict=True)))
    steps: list[Kinds] = []
    numbers = _crop_numbers(images, sources, draws, recipe.size) | _other_numbers(draws, images.distinct, recipe)
    if draws.jitter.any() and not recipe.is_fused:
        steps, numbers["jitter"] = _jitter_numbers(draws, images.distinct, recipe.in_random_order)
    arrays = {
        name: np.ascontiguousarray(array, np.int64 if name == "places" else np.float32)
        for name, array in numbers.items()
    }
    sent = send(arrays, images.samples.device)
    samples = _with_room(images)
    for rows in _parts(draws.boxes[:, 2:], images.distinct, recipe.size):
        part = {name: values[rows] for name, values in sent.items()}
        largest = draws.boxes[rows, 2:].max(axis=0).astype(int).tolist()
        pixels = _crop(samples, images, part, largest, recipe)
        if "transposed" in part:
            pixels = pixels.lerp(pixels.transpose(2, 3), part["transposed"])
        pixels = _fused(pixels, part, recipe) if recipe.is_fused else _exact(pixels, part, steps)
        yield rows, _solarized(pixels, part)


def _parts(extents: Floats, channels: int, size: int) -> Iterator[slice]:
    """Rows whose crops, as high and as wide as the highest and widest of them, take DEVICE_BYTES as floats."""
    most = DEVICE_BYTES // (4 * channels)
    first, height, width = 0, 0, 0
    for row, (high, wide) in enumerate(np.maximum(extents, size).astype(int).tolist()):
        if row > first and (row + 1 - first) * max(height, high) * max(width, wide) > most:
            yield slice(first, row)
            first, height, width = row, 0, 0
        height, width = max(height, high), max(width, wide)
    yield slice(first, len(extents))


def _with_room(images: RaggedImages) -> Tensor:
    """The samples, and enough after the last image that a row as long as the widest begins anywhere in it."""
    samples = images.samples if images.samples.dtype == torch.uint8 else images.samples.view(torch.int16)
    height, width = images.sizes[-1].tolist()
    end = int(images.starts[-1]) + images.channels * height * width
    lacking = end + images.channels * int(images.sizes[:, 1].max()) - len(samples)
    return pad(samples, (0, lacking)) if lacking > 0 else samples


def _crop_numbers(images: RaggedImages, sources: NDArray[np.int64], draws: Draws, size: int) -> dict[str, NDArray[Any]]:
    """``places`` [m, 4]: where a crop begins, the way to its next row, its last row, and the way to the next channel.
    ``axes`` [m, 4, 2], vertical and horizontal, in units of the reach of a pixel of the view: where the view begins,
    its step, one pixel of the image; and the extent of the crop, in pixels.

    A flip is a step back from the end, and so are two quarter turns; one is a transposition as well.
    """
    top, left, heights, _ = draws.boxes.astype(np.int64).T
    pixel = images.channels if images.channels_last else 1
    strides = images.sizes[sources, 1] * pixel
    starts = images.starts[sources] + top * strides + left * pixel
    places = np.stack([starts, strides, heights - 1, images.sizes[sources].prod(axis=1)], axis=1)
    extents = draws.boxes[:, 2:]
    back = np.stack([draws.turns >= 2, draws.flip ^ np.isin(draws.turns, (1, 2))], axis=1)
    steps, reach = extents / size, 1 / np.maximum(extents / size, 1)
    axes = np.stack([np.where(back, extents, 0) * reach, np.where(back, -steps, steps) * reach, reach, extents], axis=1)
    turned = draws.turns % 2 == 1
    return {"places": places, "axes": axes} | ({"transposed": _per_row(turned)} if turned.any() else {})


def _crop(samples: Tensor, images: RaggedImages, numbers: Numbers, largest: Sequence[int], recipe: Recipe) -> Tensor:
    """The crops of all rows in the size of the view, float32 [m, distinct, size, size] in [0, 1]; bicubic ones that are
    blurred before anything else changes them may be a little beyond."""
    height, width, size = *largest, recipe.size
    start, stride, last, plane = numbers["places"].unbind(1)
    device, rows, channels = samples.device, len(start), images.distinct
    lines = torch.minimum(torch.arange(height, device=device), last[:, None])
    lines = torch.addcmul(start[:, None], lines, stride[:, None])
    if not images.channels_last and channels > 1:
        lines = torch.addcmul(lines[:, :, None], torch.arange(channels, device=device), plane[:, None, None])
    window = width * (images.channels if images.channels_last else 1)
    windows = samples.as_strided((len(samples) - window + 1, window), (1, 1))
    found = windows.index_select(0, lines.reshape(-1)).view(images.samples.dtype)
    if images.channels_last:
        found = found.view(rows, height, width, images.channels)[..., :channels].transpose(2, 3)
    pixels = found.to(torch.float32, memory_format=torch.contiguous_format)
    weights = _resampling(numbers["axes"], max(largest), full_scale(images.samples), recipe)
    vertical, horizontal = weights.unbind(1)
    pixels = torch.bmm(vertical[:, :, :height], pixels.view(rows, height, channels * width))
    pixels = torch.bmm(pixels.view(rows, size * channels, width), horizontal[:, :, :width].transpose(1, 2))
    pixels = pixels.view(rows, size, channels, size).transpose(1, 2)
    is_final = recipe.is_cubic and not (recipe.is_fused and size <= MATRIX_SIDE)
    return pixels.clamp_(0, 1) if is_final else pixels


def _resampling(axes: Tensor, length: int, full: int, recipe: Recipe) -> Tensor:
    """Weights [m, 2, size, length] as those of ``random_resized_crop``, of crops that begin at 0; the horizontal ones
    over ``full``."""
    begin, step, pixel, extent = axes.unbind(1)
    places = torch.arange(0.5, recipe.size, device=axes.device)
    centers = torch.addcmul(begin[..., None], step[..., None], places)
    pixels = torch.arange(0.5, length, device=axes.device)
    distances = torch.addcmul(centers[..., None], pixels, pixel[..., None, None], value=-1).abs_()
    kernel = cubic(distances) if recipe.is_cubic else torch.rsub(distances, 1).relu_()
    weights = kernel.mul_(pixels < extent[..., None, None])
    total = weights.sum(dim=3, keepdim=True)
    total[:, 1].mul_(full)
    return weights.div_(total)


def _other_numbers(draws: Draws, channels: int, recipe: Recipe) -> dict[str, NDArray[Any]]:
    """Of the steps that some row takes, numbers that change nothing for the others."""
    numbers: dict[str, NDArray[Any]] = {"luma": np.tile(TO_YIQ[0].reshape(1, 3, 1, 1), (len(draws.flip), 1, 1, 1))}
    if recipe.is_fused:
        orders = draws.orders if recipe.in_random_order else None
        swings = np.where(draws.jitter, draws.swings.T, 0)
        numbers["of_pixel"], numbers["of_mean"] = jitter_maps(swings, draws.gray, orders)
    elif channels == 3 and draws.gray.any():
        numbers["colorful"] = _per_row(~draws.gray)
    if draws.blur.any():
        offsets = np.arange(recipe.kernel) - recipe.kernel // 2
        taps = np.exp(-0.5 * (offsets / draws.sigmas[:, None]) ** 2)
        taps /= taps.sum(axis=1, keepdims=True)
        numbers["taps"] = np.where(draws.blur[:, None], taps, offsets == 0)
    if draws.solarize.any():
        numbers["dark"] = _per_row(np.where(draws.solarize, 0.5, np.inf))
    return numbers


def _jitter_numbers(draws: Draws, channels: int, in_random_order: bool) -> tuple[list[Kinds], Floats]:
    """The steps of the jitter, which kinds of change there are in each, and [m, steps, 3].

    Hue changes in one step for all rows. Before and after it is a step for each place in the order, in which each row
    is changed in its own way, or kept: brightness mixes a pixel with black, contrast with the mean, saturation with the
    luminance, each by a factor.
    """
    swings = np.where(draws.jitter[:, None], draws.swings, 0)
    orders = draws.orders if in_random_order else np.broadcast_to(IN_ORDER, draws.orders.shape)
    hue = orders.argsort(axis=1)[:, HUE] if channels == 3 else np.full(len(orders), len(IN_ORDER[0]))
    if channels != 3:
        orders = np.where(orders < SATURATION, orders, KEEP)
    places = list(enumerate(orders.T))
    before = [np.where(place < hue, kinds, KEEP) for place, kinds in places]
    after = [np.where(place > hue, kinds, KEEP) for place, kinds in places]
    turns = np.array(SECTORS) + 6 * 0.2 * swings[:, HUE, None]
    steps = [(Kinds(np.unique(kinds).tolist()) - {KEEP}, _mixing(kinds, swings)) for kinds in (*before, *after)]
    if channels == 3:
        steps.insert(len(before), (Kinds({HUE}), turns))
    steps = [(kinds, numbers) for kinds, numbers in steps if kinds]
    return [kinds for kinds, _ in steps], np.stack([numbers for _, numbers in steps], axis=1)


def _mixing(kinds: NDArray[np.int64], swings: Floats) -> Floats:
    """[m, 3]: the factor of each row's change, and its shares of the mean and of the luminance."""
    factors = np.where(kinds == KEEP, 1, 1 + 0.8 * np.take_along_axis(swings, kinds[:, None] % 4, axis=1)[:, 0])
    return np.stack([factors, kinds == CONTRAST, kinds == SATURATION], axis=1)


def _exact(pixels: Tensor, numbers: Numbers, steps: Sequence[Kinds]) -> Tensor:
    luma = numbers["luma"]
    for number, kinds in enumerate(steps):
        pixels = _changed(pixels, kinds, numbers["jitter"][:, number], luma)
    if "colorful" in numbers:
        pixels = _luminance(pixels, luma).lerp(pixels, numbers["colorful"])
    return _blurred(pixels, numbers)


def _fused(pixels: Tensor, numbers: Numbers, recipe: Recipe) -> Tensor:
    maps = numbers["of_pixel"], numbers["of_mean"]
    if recipe.size <= MATRIX_SIDE:
        return mapped(_blurred(pixels, numbers).contiguous(), *maps)
    return _blurred(mapped(pixels.contiguous(), *maps), numbers)


def _changed(pixels: Tensor, kinds: Kinds, numbers: Tensor, luma: Tensor) -> Tensor:
    """One step of the jitter; ``kinds`` are the changes that rows make in it, whose ``numbers`` are [m, 3]."""
    if kinds == {HUE}:
        return _turned(pixels, numbers[:, :, None, None])
    factors, of_mean, of_luminance = numbers[:, :, None, None, None].unbind(1)
    if kinds == {BRIGHTNESS}:
        return pixels.mul(factors).clamp_(0, 1)
    luminance = _luminance(pixels, luma)
    if kinds == {SATURATION}:
        return luminance.lerp(pixels, factors).clamp_(0, 1)
    mean = luminance.mean(dim=(2, 3), keepdim=True)
    if SATURATION in kinds:
        mean = torch.addcmul(mean * of_mean, luminance, of_luminance)
    elif BRIGHTNESS in kinds:
        mean = mean * of_mean
    return mean.lerp(pixels, factors).clamp_(0, 1)


def _luminance(pixels: Tensor, luma: Tensor) -> Tensor:
    """[m, 1, h, w] of colors; of other channels each one itself."""
    return (pixels * luma).sum(dim=1, keepdim=True) if pixels.shape[1] == 3 else pixels


def _turned(pixels: Tensor, sectors: Tensor) -> Tensor:
    """``adjust_hue`` by fewer and larger operations; ``sectors`` [m, 3, 1, 1] are SECTORS and six times the turn."""
    high, highest = pixels.max(dim=1, keepdim=True)
    chroma = high - pixels.amin(dim=1, keepdim=True)
    opposite = pixels.roll(-1, 1).sub_(pixels.roll(-2, 1))
    sixths = opposite.gather(1, highest).div_(chroma.clamp(min=1e-8)).add_(highest, alpha=2)
    behind = (sixths + sectors).remainder_(6)
    return torch.addcmul(high, chroma, torch.minimum(behind, 4 - behind).clamp_(0, 1), value=-1)


def _blurred(pixels: Tensor, numbers: Numbers) -> Tensor:
    """Each row by its taps, as ``gaussian_blur``: one convolution per axis, in which every channel is a group."""
    if "taps" not in numbers:
        return pixels
    rows, channels, size, _ = pixels.shape
    taps = numbers["taps"]
    kernel = taps.shape[1]
    weights = taps[:, None].expand(rows, channels, kernel).reshape(rows * channels, 1, kernel, 1)
    framed = pad(pixels, [kernel // 2] * 4, mode="reflect").reshape(1, rows * channels, *[size + kernel - 1] * 2)
    down = conv2d(framed, weights, groups=rows * channels)
    return conv2d(down, weights.transpose(2, 3), groups=rows * channels).view(rows, channels, size, size)


def _solarized(pixels: Tensor, numbers: Numbers) -> Tensor:
    return torch.where(pixels < numbers["dark"], pixels, 1 - pixels) if "dark" in numbers else pixels


def _per_row(values: NDArray[Any]) -> NDArray[np.float32]:
    return values.astype(np.float32).reshape(-1, 1, 1, 1)
