"""Hashes of pixels: one that equal images share, and two of 64 bits that nearly equal ones share but for a few bits.

And a sketch of 384 bytes, which tells apart what the hashes cannot.
"""

import base64
import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.validation.probe.facts import SKETCH_BYTES, SKETCH_CELLS

STRIP_PIXELS = 1 << 16  # hashed at a time: fits the processor's cache, and an image of 80 megapixels needs no copy

CELLS, FREQUENCIES = 32, 8
MIN_SIDE = 64  # pixels: pHash calls 7 of 100 different images of 28 x 28 (Fashion-MNIST) near copies
MIN_MARGIN = 1.0
"""Measured on 616 photographs and drawings, and parts of them from 64 pixels on. With this margin, no image is over 3
bits from itself resized or saved as JPEG of quality 90; 1 of 400 is when saved with quality 50, 1 of 90 as WebP of
quality 75, and 1 of 40 when halved and then saved with quality 60. Of photographs, 86 of 100 have it. Half of it lets
three times as many go astray; with 2.5 none does, and a third of all photographs cannot be compared."""

GRID = 32  # cells a side, from which those of the sketch are averaged


def pixel_hash(image: Image.Image) -> str:
    """128 bits of an RGB image, hexadecimal: equal for the same pixels in the same shape, however they were stored."""
    digest = hashlib.sha256(f"{image.width}x{image.height}:".encode())
    rows = max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        digest.update(image.crop((0, top, image.width, min(top + rows, image.height))).tobytes())
    return digest.hexdigest()[:32]


def sample_hash(samples: NDArray[np.uint16]) -> str:
    """``pixel_hash`` of an image at full depth [height, width, channels]."""
    height, width, channels = samples.shape
    digest = hashlib.sha256(f"{width}x{height}x{channels}:".encode())
    digest.update(np.ascontiguousarray(samples, "<u2").data)
    return digest.hexdigest()[:32]


def perceptual_hashes(luma: Image.Image, short_side: int) -> dict[str, Any]:
    """``phash``, ``dhash`` and ``hash_trusted`` of a gray image; ``short_side`` is what it had before reduction."""
    frequencies = low_frequencies(luma)
    trusted = short_side >= MIN_SIDE and margin(frequencies) >= MIN_MARGIN
    return {"phash": phash(frequencies), "dhash": dhash(luma), "hash_trusted": trusted}


def sketch(image: Image.Image) -> str:
    """Brightness in 16 x 16 cells, then blue and red chroma in 8 x 8 (ITU-R BT.601, as in JPEG): 384 bytes, Base64."""
    grid = image.resize((GRID, GRID), Image.Resampling.BILINEAR).convert("YCbCr")
    planes = zip(grid.split(), SKETCH_CELLS, strict=True)
    return base64.b64encode(b"".join(plane.reduce(GRID // cells).tobytes() for plane, cells in planes)).decode()


def sketch_planes(sketches: Iterable[str]) -> list[NDArray[np.uint8]]:
    """Brightness, blue and red of sketches: [n, 16, 16], [n, 8, 8], [n, 8, 8]."""
    levels = np.frombuffer(b"".join(map(base64.b64decode, sketches)), np.uint8).reshape(-1, SKETCH_BYTES)
    planes = np.split(levels, np.cumsum([cells**2 for cells in SKETCH_CELLS[:-1]]), axis=1)
    return [plane.reshape(-1, cells, cells) for plane, cells in zip(planes, SKETCH_CELLS, strict=True)]


def low_frequencies(luma: Image.Image) -> NDArray[np.float64]:
    """The lowest 8 x 8 coefficients of the orthonormal cosine transform (DCT-II) of 32 x 32 cells, [64]."""
    frequencies = _COSINES @ _cells(luma, CELLS, CELLS) @ _COSINES.T
    return np.asarray(frequencies.round(2).ravel())  # so that no bit hangs on the order in which a processor adds


def phash(frequencies: NDArray[np.float64]) -> int:
    """Which of the 64 coefficients lie above the median of those but the mean brightness; the first is the highest bit.

    After Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010.
    """
    return _bits(frequencies > np.median(frequencies[1:]))


def dhash(luma: Image.Image) -> int:
    """Where brightness falls to the right, in 8 rows of 9 cells; the first is the highest bit."""
    cells = _cells(luma, 9, 8).round(2)
    return _bits(cells[:, :-1] > cells[:, 1:])


def margin(frequencies: NDArray[np.float64]) -> float:
    """How far two coefficients below the median are from two above it.

    Half of the bits of a pHash are always set, so that they change in pairs. For more than one pair to change, two
    coefficients must pass two others: noise below half of this margin changes at most 2 bits.
    """
    ranked = np.sort(frequencies[1:])
    middle = ranked.size // 2
    return float(ranked[middle + 2] - ranked[middle - 1])


def _cells(luma: Image.Image, width: int, height: int) -> NDArray[np.float64]:
    """Brightness in a grid. The triangle filter makes it depend least on the size of the image it is made of."""
    cells = luma.convert("F").resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(cells, dtype=np.float64)


def _bits(flags: NDArray[np.bool_]) -> int:
    return int.from_bytes(np.packbits(flags).tobytes(), "big")


def _cosine_transform() -> NDArray[np.float64]:
    """[8, 32], its rows orthonormal."""
    frequency, cell = np.ogrid[:FREQUENCIES, :CELLS]
    cosines = np.cos(np.pi * frequency * (2 * cell + 1) / (2 * CELLS)) * np.sqrt(2 / CELLS)
    cosines[0] /= np.sqrt(2)
    return np.asarray(cosines)


_COSINES = _cosine_transform()
