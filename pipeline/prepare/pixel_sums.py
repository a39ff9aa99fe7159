"""Mean and standard deviation of the training pixels, from sums that add up exactly, in any order."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from deploy.images.full_depth import FULL, Samples


@dataclass(frozen=True)
class PixelSums:
    """Of the pixels of some images, their number; by channel the sums of their values and of the squares; the smallest
    and largest side in pixels. ``full`` is the value that stands for 1. All are integers, so that a sum of parts is the
    sum of the whole, to the bit."""

    pixels: int = 0
    total: tuple[int, ...] = ()
    squares: tuple[int, ...] = ()
    min_side: int = 1 << 30
    max_side: int = 0
    full: int = 255

    def __add__(self, other: "PixelSums") -> "PixelSums":
        if not (self.pixels and other.pixels):
            return self if self.pixels else other
        return PixelSums(
            self.pixels + other.pixels,
            tuple(map(sum, zip(self.total, other.total, strict=True))),
            tuple(map(sum, zip(self.squares, other.squares, strict=True))),
            min(self.min_side, other.min_side),
            max(self.max_side, other.max_side),
            self.full,
        )

    def mean(self) -> tuple[float, ...]:
        """By channel, of values from 0 to 1."""
        return self._rounded(one / (self.pixels * self.full) for one in self.total)

    def std(self) -> tuple[float, ...]:
        """By channel, of values from 0 to 1; an all-black data set must not divide by zero."""
        least = 1e-12 if self._is_deep else 1e-8
        scale = (self.pixels * self.full) ** 2
        variances = (
            (self.pixels * squares - total**2) / scale for total, squares in zip(self.total, self.squares, strict=True)
        )
        return self._rounded(math.sqrt(max(one, least)) for one in variances)

    @property
    def _is_deep(self) -> bool:
        return self.full == FULL

    def _rounded(self, values: Iterable[float]) -> tuple[float, ...]:
        digits = 9 if self._is_deep else 6  # a camera may use little of its range
        return tuple(round(value, digits) for value in values)


def sum_pixels(image: Samples) -> PixelSums:
    """The sums of an image [height, width, channels] of uint8, or of uint16 at full depth."""
    height, width, channels = image.shape
    values = image.reshape(-1, channels)
    squares = np.square(values, dtype=np.uint64 if image.dtype == np.uint16 else np.uint32)
    return PixelSums(
        len(values),
        tuple(values.sum(axis=0, dtype=np.uint64).tolist()),
        tuple(squares.sum(axis=0, dtype=np.uint64).tolist()),
        min(height, width),
        max(height, width),
        255 if image.dtype == np.uint8 else FULL,
    )
