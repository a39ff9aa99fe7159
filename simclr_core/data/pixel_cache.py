"""Decoded small images in memory: one array, so that a batch of equal sizes is gathered in one go."""

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Pixels = NDArray[np.unsignedinteger[Any]]


class PixelCache:
    """Up to ``max_bytes`` of images [channels, h, w] of at most ``max_side`` pixels a side, by position in [0, images).

    Memory is taken as images come. Positions cost 10 bytes each, also as they come.
    """

    def __init__(
        self,
        images: int,
        max_bytes: int,
        max_side: int,
        channels: int = 3,
        dtype: type[np.unsignedinteger[Any]] = np.uint8,
    ) -> None:
        assert max_side < 256, max_side
        self._max_side, self._channels = max_side, channels
        self._samples = np.empty(min(max_bytes // np.dtype(dtype).itemsize, images * channels * max_side**2), dtype)
        self._used = 0
        self._starts = np.zeros(images, np.int64)
        self._sizes = np.zeros((images, 2), np.uint8)  # 0 for an image that is not here

    def sizes(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Height and width [n, 2] of the images, 0 of those that are not here."""
        return self._sizes[positions].astype(np.int64)

    def add(self, position: int, image: Pixels) -> None:
        """Keep a copy of ``image``, if it is small and there is room."""
        if max(image.shape[1:]) > self._max_side or self._used + image.size > len(self._samples):
            return
        self._samples[self._used : self._used + image.size] = image.ravel()
        self._starts[position] = self._used
        self._sizes[position] = image.shape[1:]
        self._used += image.size

    def get(self, position: int) -> Pixels:
        height, width = map(int, self._sizes[position])
        start = self._starts[position]
        shape = (self._channels, height, width)
        return self._samples[start : start + self._channels * height * width].reshape(shape)

    def batch(self, positions: NDArray[np.int64]) -> Pixels | None:
        """A copy of the images [n, channels, h, w], or None if they are not all here and of one size."""
        height, width = map(int, self._sizes[positions[0]])
        if not height or (self._sizes[positions] != (height, width)).any():
            return None
        windows = sliding_window_view(self._samples[: self._used], self._channels * height * width)
        return windows[self._starts[positions]].reshape(-1, self._channels, height, width)
