"""The views of SimCLR (Chen et al. 2020, appendix A): crop and resize, flip, color jitter, grayscale, blur.

Whole uint8 batches in, each sample with its own parameters, on the device where the batch is: this module on a CPU,
``batched_views`` on a GPU. All randomness comes from ``order.uniform``: a view is a pure function of (seed, epoch,
sample, view), whatever batch the sample sits in.

Images at full depth have 1 to 16 channels of uint16. All steps are theirs too, but what needs colors: without three
channels there is no saturation, no hue and no grayscale (``color_jitter``).

Two modes. ``exact``: every step equals torchvision's transform of a float image (antialias on) within one level of 255,
with the weights of luminance and the order of the jitter as ``color_jitter`` says. ``fused``: crop, flip and blur are
one pair of matrices, jitter and grayscale one affine map of the colors, so that hue turns in YIQ and nothing is
clamped before the end; above ``MATRIX_SIDE`` the blur comes after the colors, and on a CPU the crop is resized in whole
levels.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deploy.images.full_depth import FULL, MOST_CHANNELS, Samples
from simclr_core.augmentation.batched_views import Recipe, batched_views
from simclr_core.augmentation.color_jitter import jitter_maps, jittered, luminance, mapped
from simclr_core.augmentation.draws import Draws, Flags, Floats, ViewDraws
from simclr_core.augmentation.gaussian_blur import blur_matrix, gaussian_blur, separable_blur
from simclr_core.augmentation.processor_threads import share_out
from simclr_core.augmentation.random_resized_crop import (
    MATRIX_SIDE,
    TRIES,
    crop_boxes,
    full_scale,
    interpolated_crop,
    resized_crop,
)
from simclr_core.data.order import uniform
from simclr_core.data.ragged import RaggedImages
from simclr_core.errors import AugmentationError

SIGMA = (0.1, 2.0)  # of the blur, in pixels of the view whatever its size
MAIN_VIEWS = 2  # views 0 and 1 are the pair of SimCLR; later ones are extra crops
PROBABILITIES = (
    "flip",
    "jitter_probability",
    "grayscale",
    "blur",
    "rotation",
    "solarize",
    "second_blur",  # or None, as the next
    "second_solarize",
)
CHOICES = {"mode": ("exact", "fused"), "jitter_order": ("fixed", "random"), "interpolation": ("bilinear", "bicubic")}
CHUNK_BYTES = 2**20  # of float pixels that a CPU works on at once, so that they stay in its cache


@dataclass(frozen=True)
class Augmentation:
    """The recipe of a view of ``size`` x ``size`` pixels.

    ``crop_scale`` is the area of the crop over that of the image, ``crop_ratio`` its width over its height. ``flip``,
    ``jitter_probability``, ``grayscale``, ``blur``, ``rotation`` and ``solarize`` are probabilities, each drawn per
    sample. With strength s the factors of brightness, contrast and saturation lie in 1 -+ 0.8 s, and hue turns by up to
    0.2 s of the circle either way; ``jitter_order`` is brightness, contrast, saturation, hue, or random per sample. The
    blur's kernel spans 10 % of the side, in whole pixels (22 of 224), and one more where that is even (23), as in the
    authors' code; the paper has 10 % alone. Below 20 pixels there is no blur. A rotation is by 90, 180 or 270 degrees.
    Solarization inverts the pixels from 0.5 up (Grill et al. 2020, BYOL). View 1 takes ``second_blur`` and
    ``second_solarize`` where they are not None, as the views of BYOL differ. ``interpolation`` is how crops are
    resized: by a triangle, or by the cubic kernel of Pillow, and clamped. Views from number 2 on, ``extra_crops`` of
    them, take ``extra_crop_scale`` and ``extra_crop_size``, or ``size``: multi-crop (Caron et al. 2020, SwAV). Without
    ``pair`` an image has view 0 alone, and no extra crops.

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
    mode: Literal["exact", "fused"] = "exact"
    jitter_order: Literal["fixed", "random"] = "fixed"
    rotation: float = 0.0
    solarize: float = 0.0
    extra_crops: int = 0
    extra_crop_scale: tuple[float, float] = (0.05, 0.14)
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    second_blur: float | None = None
    second_solarize: float | None = None
    extra_crop_size: int | None = None
    pair: bool = True

    def __post_init__(self) -> None:
        for name, least in (("size", 1), ("extra_crops", 0), ("extra_crop_size", 1)):
            number = getattr(self, name)
            if number is not None and number < least:
                raise AugmentationError(f"{name} is {number}; give {least} or more")
        for name, most in (("crop_scale", 1.0), ("extra_crop_scale", 1.0), ("crop_ratio", float("inf"))):
            low, high = given = getattr(self, name)
            if not 0 < low <= high <= most:
                limit = "" if most > 1 else " <= 1"
                raise AugmentationError(f"{name} is {given}; give 0 < smallest <= largest{limit}")
        if not 0 <= self.jitter_strength <= 1.25:
            raise AugmentationError(f"jitter_strength is {self.jitter_strength}; give 0 to 1.25, where 1 - 0.8 s is 0")
        for name in PROBABILITIES:
            if getattr(self, name) is not None and not 0 <= getattr(self, name) <= 1:
                raise AugmentationError(f"{name} is {getattr(self, name)}; a probability is in [0, 1]")
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise AugmentationError(f"{name} is {getattr(self, name)!r}; give {' or '.join(allowed)}")

    @property
    def views(self) -> int:
        """How many views an image has."""
        return MAIN_VIEWS + self.extra_crops if self.pair else 1

    @property
    def is_of_two_sizes(self) -> bool:
        return self.extra_crops > 0 and self.extra_crop_size not in (None, self.size)

    def of_view(self, view: int) -> "Augmentation":
        """The recipe of one view: extra crops are of another size, and from smaller parts."""
        if view < MAIN_VIEWS:
            return self
        return replace(self, size=self.extra_crop_size or self.size, crop_scale=self.extra_crop_scale)

    def view(self, images: Tensor, sizes: Tensor, seed: int, epoch: int, samples: Tensor, view: int) -> Tensor:
        """One view of each image: float32 [n, 3, size, size] in [0, 1]; of extra crops [n, 3, extra_crop_size, ...].

        ``images`` uint8 [n, 3, H, W] hold each image in the top left corner, ``sizes`` int64 [n, 2] say how high and
        wide it is, ``samples`` int64 [n] which of the dataset; the last two are best left on the CPU. Of uint16
        [n, channels, H, W], views have the same channels.

        Raises:
            AugmentationError: the batch is not of this form.

        Examples:
            >>> images = torch.randint(256, (4, 3, 40, 40), dtype=torch.uint8)
            >>> sizes, samples = torch.full((4, 2), 40), torch.arange(4)
            >>> augmentation = Augmentation(size=28)
            >>> first = augmentation.view(images, sizes, seed=0, epoch=0, samples=samples, view=0)
            >>> tuple(first.shape), first.dtype
            ((4, 3, 28, 28), torch.float32)
            >>> again = augmentation.view(images, sizes, seed=0, epoch=0, samples=samples, view=0)
            >>> torch.equal(first, again)
            True
        """
        _check(images, sizes, samples)
        ragged = RaggedImages.of(images, sizes)
        draws = self.draws(ragged.sizes, seed, epoch, samples.cpu().numpy(), view)
        return self.of_view(view).ragged_view(ragged, ViewDraws(0, draws))

    def ragged_view(self, images: RaggedImages, view: ViewDraws) -> Tensor:
        """One view of each of some images: float32 [n, channels, size, size] in [0, 1]; extra crops by ``of_view``."""
        shape = (view.count, images.channels, self.size, self.size)
        views = torch.empty(shape, device=images.samples.device)
        self.make(images, [view], views.__setitem__)
        return views

    def make(self, images: RaggedImages, views: Sequence[ViewDraws], put: Callable[[slice, Tensor], None]) -> None:
        """Give ``put`` all views, one after the other, in parts: which rows of them, and float32 [m, channels, size,
        size] in [0, 1], with one channel if the images are colorless. Extra crops are made by their ``of_view``.

        On a CPU a part is as large as its cache holds; parts are made, and put, on several threads. On a GPU it is all
        views, as far as its memory allows.
        """
        if images.samples.device.type == "cpu":
            share_out(lambda part: put(part.place, self._pixels(images, part)), list(self._parts(images, views)))
            return
        with torch.autocast(images.samples.device.type, enabled=False):
            for rows, pixels in batched_views(images, views, self._recipe):
                put(rows, pixels)

    def draws(self, sizes: NDArray[np.int64], seed: int, epoch: int, samples: NDArray[np.int64], view: int) -> Draws:
        """The random choices for each of ``samples`` [n]. New ones go to the end: the others stay what they were."""
        numbers = uniform(seed, epoch, samples, view, 2 * TRIES + 18).T
        areas, ratios, numbers = np.split(numbers, [TRIES, 2 * TRIES])
        top, left, flip, jitter, *swings, gray, blur, sigma, rotate, turn, solarize = numbers[:14]
        own = self.of_view(view)
        return Draws(
            boxes=crop_boxes(areas, ratios, top, left, sizes, own.crop_scale, self.crop_ratio),
            flip=flip < self.flip,
            turns=np.where(rotate < self.rotation, 1 + (3 * turn).astype(np.int64), 0),
            jitter=(jitter < self.jitter_probability) & (self.jitter_strength > 0),
            swings=self.jitter_strength * (2 * np.stack(swings, axis=1) - 1),
            orders=numbers[14:].argsort(axis=0).T,
            gray=gray < self.grayscale,
            blur=(blur < self._probability(view, self.second_blur, self.blur)) & (own.kernel > 1),
            sigmas=SIGMA[0] + (SIGMA[1] - SIGMA[0]) * sigma,
            solarize=solarize < self._probability(view, self.second_solarize, self.solarize),
        )

    def _probability(self, view: int, second: float | None, others: float) -> float:
        return others if view != 1 or second is None else second

    @property
    def _is_cubic(self) -> bool:
        return self.interpolation == "bicubic"

    @property
    def kernel(self) -> int:
        """Taps of the blur; with 1 there is no blur. It names no run: another number would change views of old ones."""
        return self.size // 10 // 2 * 2 + 1

    @property
    def _recipe(self) -> Recipe:
        return Recipe(self.size, self.kernel, self.mode == "fused", self.jitter_order == "random", self._is_cubic)

    def _parts(self, images: RaggedImages, views: Sequence[ViewDraws]) -> Iterator["_Part"]:
        begun = 0
        for view in views:
            maps = self._maps(view.draws) if self.mode == "fused" else None
            for part in _chunks(images, view.count, self.size):
                rows = slice(view.first + part.start, view.first + part.stop)
                draws = Draws._make(values[part] for values in view.draws)
                place = slice(begun + part.start, begun + part.stop)
                yield _Part(place, rows, draws, maps and [values[part] for values in maps])
            begun += view.count

    def _pixels(self, images: RaggedImages, part: "_Part") -> Tensor:
        with torch.autocast("cpu", enabled=False):
            if part.maps is None:
                return self._exact(images, part.rows, part.draws)
            return self._fused(images, part.rows, part.draws, part.maps)

    def _maps(self, draws: Draws) -> tuple[Floats, Floats]:
        """What happens to the colors of each sample, as ``jitter_maps``."""
        orders = draws.orders if self.jitter_order == "random" else None
        return jitter_maps(np.where(draws.jitter, draws.swings.T, 0), draws.gray, orders)

    def _exact(self, images: RaggedImages, rows: slice, draws: Draws) -> Tensor:
        boxes, flip, swings, sigmas = map(_tensor, (draws.boxes, draws.flip, draws.swings.T, draws.sigmas))
        if self.size <= MATRIX_SIDE:
            pixels = resized_crop(images.padded(rows), boxes, flip, self.size, is_cubic=self._is_cubic)
            pixels, blur = pixels.clamp_(0, 1) if self._is_cubic else pixels, gaussian_blur
        else:
            pixels = interpolated_crop(_pictures(images, rows), boxes, flip, self.size, False, self._is_cubic)
            pixels, blur = pixels.div_(full_scale(images.samples)), separable_blur
        orders = draws.orders[draws.jitter] if self.jitter_order == "random" else None
        pixels = _rotated(pixels, draws.turns)
        pixels = _changed(pixels, draws.jitter, lambda some, rows: jittered(some, swings[:, rows], orders))
        if images.distinct == 3:
            pixels = _changed(pixels, draws.gray, lambda some, _: luminance(some).repeat(1, 3, 1, 1))
        pixels = _changed(pixels, draws.blur, lambda some, rows: blur(some, sigmas[rows], self.kernel))
        return _changed(pixels, draws.solarize, _solarized)

    def _fused(self, images: RaggedImages, rows: slice, draws: Draws, maps: Sequence[Floats]) -> Tensor:
        boxes, flip, sigmas = map(_tensor, (draws.boxes, draws.flip, draws.sigmas))
        of_pixel, of_mean = (_tensor(values.astype(np.float32)) for values in maps)
        if self.size <= MATRIX_SIDE:
            blur = None
            if draws.blur.any():
                blur = blur_matrix(sigmas, self.kernel, self.size)
                blur[_tensor(np.flatnonzero(~draws.blur))] = torch.eye(self.size)
            crops = resized_crop(images.padded(rows), boxes, flip, self.size, blur, self._is_cubic)
            pixels = mapped(crops, of_pixel, of_mean)
        else:
            rounded = images.samples.dtype == torch.uint8
            levels = interpolated_crop(_pictures(images, rows), boxes, flip, self.size, rounded, self._is_cubic)
            full = full_scale(images.samples)
            pixels = mapped(levels, of_pixel.div_(full), of_mean.div_(full))
            pixels = _changed(pixels, draws.blur, lambda some, rows: separable_blur(some, sigmas[rows], self.kernel))
        return _changed(_rotated(pixels, draws.turns), draws.solarize, _solarized)


class _Part(NamedTuple):
    place: slice  # among all views
    rows: slice  # of the images
    draws: Draws
    maps: Sequence[Floats] | None  # of the colors, in fused views


def as_pixels(views: Tensor, dtype: torch.dtype) -> Samples:
    """Views [n, channels, s, s] in [0, 1] as pixels [n, s, s, channels]: uint8, or uint16 of full depth."""
    full, kind = (255, np.uint8) if dtype == torch.uint8 else (FULL, np.uint16)
    rounded = views.mul(full).round().permute(0, 2, 3, 1).cpu().contiguous().numpy()
    return rounded.astype(kind)


def _check(images: Tensor, sizes: Tensor, samples: Tensor) -> None:
    fits = {torch.uint8: (3,), torch.uint16: range(1, MOST_CHANNELS + 1)}
    if images.ndim != 4 or images.shape[1] not in fits.get(images.dtype, ()):
        raise AugmentationError(
            f"images are {str(images.dtype).removeprefix('torch.')} {list(images.shape)}; give uint8 [n, 3, H, W], one "
            "channel repeated three times: images.expand(-1, 3, -1, -1); or uint16 [n, channels, H, W]"
        )
    n, _, height, width = images.shape
    if sizes.shape != (n, 2) or samples.shape != (n,):
        raise AugmentationError(
            f"sizes are {list(sizes.shape)} and samples {list(samples.shape)} for {n} images; give [{n}, 2] and [{n}]"
        )
    if n and not (sizes.min() >= 1 and sizes[:, 0].max() <= height and sizes[:, 1].max() <= width):
        raise AugmentationError(
            f"sizes go from {sizes.amin(0).tolist()} to {sizes.amax(0).tolist()}; the images have room for 1 pixel to "
            f"{[height, width]} (height, width)"
        )


def _chunks(images: RaggedImages, count: int, size: int) -> Iterator[slice]:
    """``count`` images in parts that a CPU's cache holds."""
    height, width = images.sizes.max(axis=0).tolist()
    step = max(1, CHUNK_BYTES // (4 * images.distinct * max(size * size, height * width)))
    return (slice(first, min(first + step, count)) for first in range(0, count, step))


def _pictures(images: RaggedImages, rows: slice) -> list[Tensor]:
    return [images.image(row) for row in range(rows.start, rows.stop)]


def _tensor(values: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))


def _changed(pixels: Tensor, chosen: Flags, change: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """``change(pixels[rows], rows)`` in the ``chosen`` [n] rows of ``pixels``; no copies where it is all or none."""
    rows = _tensor(np.flatnonzero(chosen))
    if chosen.all():
        return change(pixels, rows)
    if chosen.any():
        pixels.index_copy_(0, rows, change(pixels.index_select(0, rows), rows))
    return pixels


def _rotated(pixels: Tensor, turns: NDArray[np.int64]) -> Tensor:
    for count in (1, 2, 3):
        pixels = _changed(pixels, turns == count, partial(_turned, count))
    return pixels


def _turned(count: int, pixels: Tensor, _: Tensor) -> Tensor:
    return pixels.rot90(count, (2, 3))


def _solarized(pixels: Tensor, _: Tensor) -> Tensor:
    return torch.where(pixels < 0.5, pixels, 1 - pixels)
