"""A file of a shard as pixels. What `prepare` has written itself is decoded without asking what else it might be.

`prepare` writes 8-bit RGB as PNG, or as baseline JPEG without chroma subsampling, both without a color profile or an
orientation; and full depth as an array. Pillow and libjpeg-turbo give the same pixels for these. Any other file is read
as ``deploy.images.preprocess.decode`` reads those of a user.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from deploy.images.full_depth import Samples
from deploy.images.image_faults import naming_faults
from deploy.images.npy import stored_samples
from deploy.images.preprocess import MAX_PIXELS, decode
from deploy.images.signatures import sniff

JPEG_TABLES = (b"\xff\xe0", b"\xff\xdb")  # the header of JFIF, and quantization: what comes before the frame
JPEG_FRAME = b"\xff\xc0\x00\x11\x08"  # baseline, 17 bytes, 8 bits
JPEG_CHANNELS = b"\x03\x01\x11\x02\x11\x03\x11"  # how many, and of each its number and its sampling
ARRAY = re.compile(
    rb"\x93NUMPY\x01\x00(..){'descr': '<u2', 'fortran_order': False, 'shape': \(1, (\d+), (\d+), (\d+)\), } *\n",
    re.DOTALL,
)
PNG_RGB = b"\x08\x02\x00\x00\x00"  # 8 bits, RGB, deflated, filtered, not interlaced


@dataclass(frozen=True)
class StoredImage:
    """An image whose sides are known; ``decode`` puts the pixels into an array of its ``shape``, [h, w, channels].
    ``jpeg`` is its file, if it is a JPEG as `prepare` writes them.

    ``decode`` raises ImageError: the file is damaged.
    """

    shape: tuple[int, ...]
    decode: Callable[[Samples], None]
    dtype: type[np.unsignedinteger[Any]] = np.uint8
    jpeg: bytes | None = None

    def read(self) -> Samples:
        """The pixels in a new array."""
        pixels: Samples = np.empty(self.shape, self.dtype)
        self.decode(pixels)
        return pixels


def open_stored(data: bytes) -> StoredImage:
    """Read the header of a file of a shard, and of a file that `prepare` does not write the pixels as well.

    Raises:
        ImageError: the file is damaged.
    """
    kind = sniff(data)
    if kind == "npy":
        samples = _plain_array(data)
        samples = stored_samples(data) if samples is None else samples
        return StoredImage(samples.shape, partial(_copy, samples), np.uint16)
    sides = _jpeg_sides(data) if kind == "jpeg" else _png_sides(data) if kind == "png" else None
    if sides is None or not 0 < sides[0] * sides[1] <= MAX_PIXELS:
        pixels = decode(data)
        return StoredImage(pixels.shape, partial(_copy, pixels))
    if kind == "jpeg":
        return StoredImage((*sides, 3), partial(_decode_jpeg, data), jpeg=data)
    return StoredImage((*sides, 3), partial(_decode_png, data))


def _plain_array(data: bytes) -> NDArray[np.uint16] | None:
    """An array as `prepare` writes it, without Python's parser, which in threads may fail (CPython 106905)."""
    header = ARRAY.match(data)
    if header is None or header.end() != 10 + int.from_bytes(header[1], "little"):
        return None
    shape = tuple(map(int, header.groups()[1:]))
    if len(data) - header.end() != 2 * math.prod(shape):
        return None
    return np.frombuffer(data, "<u2", offset=header.end()).reshape(shape)


def _jpeg_sides(data: bytes) -> tuple[int, int] | None:
    """Height and width of a JPEG as `prepare` writes it (ITU-T T.81, annex B); None of others."""
    place = 2
    while data[place : place + 2] in JPEG_TABLES:
        place += 2 + int.from_bytes(data[place + 2 : place + 4])
    frame = data[place : place + 19]
    if frame[:5] != JPEG_FRAME or frame[9:12] + frame[13:15] + frame[16:18] != JPEG_CHANNELS:
        return None
    return int.from_bytes(frame[5:7]), int.from_bytes(frame[7:9])


def _png_sides(data: bytes) -> tuple[int, int] | None:
    """Height and width of a PNG as `prepare` writes it, with nothing between header and pixels; None of others."""
    if data[12:16] != b"IHDR" or data[24:29] != PNG_RGB or data[37:41] != b"IDAT":
        return None
    return int.from_bytes(data[20:24]), int.from_bytes(data[16:20])


def _decode_jpeg(data: bytes, pixels: NDArray[np.uint8]) -> None:
    try:
        if pixels.flags.c_contiguous:
            simplejpeg.decode_jpeg(data, buffer=pixels.reshape(-1))
        else:
            pixels[:] = simplejpeg.decode_jpeg(data)
    except ValueError:
        pixels[:] = decode(data)  # which says what is wrong, if it is more than Pillow makes up for


def _decode_png(data: bytes, pixels: NDArray[np.uint8]) -> None:
    from PIL import Image

    with naming_faults(data), Image.open(BytesIO(data), formats=("PNG",)) as image:
        pixels[:] = np.asarray(image)


def _copy(source: Samples, pixels: Samples) -> None:
    pixels[:] = source
