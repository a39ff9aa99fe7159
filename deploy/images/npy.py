"""Read the ``.npy`` file of an image: the header first, held against what an image may be, then the samples.

The format is numpy's (numpy.lib.format): a header with type, order and shape, then the numbers as they are in memory.
Nothing is unpickled.
"""

import math
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.errors import ImageError
from deploy.plural import counted

SHAPES = "[height, width] for one channel, [height, width, channels] or [channels, height, width]"
LONGEST = (1 << 63) - 1  # of a side of an array of numpy
SCALE = "(65535 * (a - low) / (high - low)).round().astype('uint16')"


@dataclass(frozen=True)
class ArrayHeader:
    """What the header says, in the order [height, width, channels] once ``axes`` are moved; ``data`` is the file."""

    data: bytes
    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    is_fortran: bool
    channels_first: bool

    @property
    def sides(self) -> tuple[int, int, int]:
        """Height, width and channels."""
        shape = self.shape[1:] if len(self.shape) == 4 else self.shape
        if len(shape) == 2:
            return shape[0], shape[1], 1
        return (shape[1], shape[2], shape[0]) if self.channels_first else (shape[0], shape[1], shape[2])

    def read(self) -> NDArray[np.unsignedinteger[Any]]:
        """The samples, [height, width, channels], as the file stores them.

        Raises:
            ImageError: ``truncated`` or ``corrupt``: the file has fewer or more bytes than its header says.
        """
        has, needs = len(self.data) - self.offset, math.prod(self.shape) * self.dtype.itemsize
        if has < needs:
            raise ImageError("truncated", f"the file has {has:,} of {needs:,} bytes; copy it again from its source")
        if has > needs:
            raise ImageError("corrupt", f"{counted(has - needs, 'byte')} too many: store one image in each file")
        flat = np.frombuffer(self.data, self.dtype, offset=self.offset)
        array = flat.reshape(self.shape, order="F" if self.is_fortran else "C")
        array = np.moveaxis(array, 0, 2) if self.channels_first else array
        return array.reshape(self.sides)


def read_array_header(data: bytes, channels: int | None) -> ArrayHeader:
    """Read the header of an ``.npy`` file, and find the axis of the channels; ``channels`` None takes the last one.

    Raises:
        ImageError: ``corrupt``, ``unsupported_depth``, ``unsupported_layout``, ``wrong_channels``.
    """
    file = BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = read_header(file)
    except Exception as error:  # noqa: BLE001  a header is a Python literal: whatever Python's parser raises
        raise ImageError(
            "corrupt", f"its header is not one of numpy ({error}); store it again with numpy.save"
        ) from None
    if dtype not in (np.uint8, np.dtype("<u2"), np.dtype(">u2")):
        raise ImageError(
            "unsupported_depth", f"an array of {dtype} has an unknown range; store uint8 or uint16, such as {SCALE}"
        )
    return ArrayHeader(data, file.tell(), dtype, shape, is_fortran, _channels_first(shape, channels))


def stored_samples(data: bytes) -> NDArray[np.uint16]:
    """Read what ``array_bytes`` has written, of any number of channels: uint16 [height, width, channels].

    Raises:
        ImageError: it is something else, or damaged.
    """
    header = read_array_header(data, None)
    if len(header.shape) != 4 or header.dtype != np.dtype("<u2"):
        what = f"an array of {header.dtype}, {list(header.shape)}"
        raise ImageError(
            "unsupported_layout", f"{what}, was not stored by prepare; it needs uint16 [1, h, w, channels]"
        )
    return np.ascontiguousarray(header.read(), np.uint16)


def array_bytes(samples: NDArray[np.uint16]) -> bytes:
    """An ``.npy`` file of uint16 [height, width, channels], as [1, height, width, channels], which has one reading."""
    file = BytesIO()
    np.lib.format.write_array(file, np.ascontiguousarray(samples[np.newaxis], "<u2"), version=(1, 0))
    return file.getvalue()


def _channels_first(shape: tuple[int, ...], channels: int | None) -> bool:
    """Whether the channels are the first axis.

    Raises:
        ImageError: ``corrupt``, ``unsupported_layout``, ``wrong_channels``.
    """
    if not all(type(side) is int and 0 <= side <= LONGEST for side in shape):
        raise ImageError("corrupt", "its header gives sides that no array has; store it again with numpy.save")
    if len(shape) not in (2, 3, 4) or 0 in shape or (len(shape) == 4 and shape[0] != 1):
        raise ImageError("unsupported_layout", f"an array {list(shape)} is not an image; store {SHAPES}")
    if channels is None:
        return False
    last = 1 if len(shape) == 2 else shape[-1]
    first = shape[0] if len(shape) == 3 else None
    if channels not in (first, last):
        found = last if first is None else min(first, last)
        raise ImageError(
            "wrong_channels", f"an array {list(shape)} has {counted(found, 'channel')}; it has to have {channels}"
        )
    if len(shape) == 3 and first == last and channels > 1:
        raise ImageError(
            "unsupported_layout", f"an array {list(shape)} has its channels first or last; store it as {[1, *shape]}"
        )
    return len(shape) == 3 and last != channels
