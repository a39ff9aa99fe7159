"""From samples of up to 16 bits to 8: what Pillow would clip is scaled, and what it has scaled is named."""

import re
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deploy.errors import ImageError
from deploy.images.srgb import ALPHA_MODES
from deploy.images.tiff_layout import MAX_SAMPLE, PHOTOMETRIC, Tags, first

if TYPE_CHECKING:
    from PIL.Image import Image

_DECLARED_BITS = {(1 << bits) - 1: bits for bits in range(9, 16)}
"""Largest sample that a 16-bit file may declare (TIFF 6.0, tag 281) → the bits of its data."""


def to_8_bits(image: "Image", rawmode: str, tags: Tags, bits: int, operations: list[str]) -> "Image":
    """Reduce to 8 bits, and add what was done to ``operations``.

    Args:
        rawmode: how the decoder read the samples, as Pillow names it.
        tags: of a TIFF.
        bits: of a sample in an AVIF or HEIC file, which its decoder has reduced.

    Raises:
        ImageError: ``unsupported_depth``, ``unsupported_layout``.
    """
    from PIL import Image

    if image.mode in ("I", "F") or "I;12" in rawmode:
        raise ImageError("unsupported_depth", f"pixels of type {image.mode} have an unknown range; store 8 or 16 bits")
    key = image.info.get("transparency")  # of a PNG without a palette: samples as the file stores them
    if image.mode.startswith("I;16"):
        samples = np.asarray(image).astype(np.uint32)
        gray = Image.fromarray(_scale_16_bits(samples, tags, operations))
        if key is None:
            return gray
        return Image.merge("LA", (gray, Image.fromarray(np.where(samples == key, 0, 255).astype(np.uint8))))
    if (narrow := re.search("'L;([24])'", rawmode)) and key is not None:
        image.info["transparency"] = key * 255 // ((1 << int(narrow[1])) - 1)  # Pillow compares it with 8 bits
    if ";16" in rawmode and "BGR;16" not in rawmode:  # BGR;16 is a BMP with 5, 6 and 5 bits
        if key is not None:
            what = "a PNG of 16-bit color with a transparent color"
            raise ImageError("unsupported_layout", f"{what} is not supported; store an alpha channel instead")
        operations.append("uint16_to_uint8")
        extrema = np.reshape(image.getextrema(), (-1, 2))[: len(image.getbands()) - (image.mode in ALPHA_MODES)]
        _note_range(256 * int(extrema.max()) + 255, operations)
    if bits > 8:
        operations.append(f"uint{bits}_to_uint8")  # the decoders of AVIF and HEIC did it
    return image  # of 16-bit color, Pillow has kept the high bytes


def _scale_16_bits(samples: NDArray[np.uint32], tags: Tags, operations: list[str]) -> NDArray[np.uint8]:
    """Scale gray samples to 8 bits. Pillow's conversion would clip at 255, which makes them white."""
    highest, declared = int(samples.max()), first(tags, MAX_SAMPLE, 0)
    bits = _DECLARED_BITS.get(declared, 16) if highest <= declared else 16
    full = (1 << bits) - 1
    operations.append(f"uint{bits}_to_uint8")
    if bits == 16 and highest:
        _note_range(highest, operations)
    if first(tags, PHOTOMETRIC, 1) == 0:  # 0 is white, which Pillow heeds at 8 bits only
        samples = full - samples
    return ((samples * 255 + full // 2) // full).astype(np.uint8)


def _note_range(highest: int, operations: list[str]) -> None:
    """Note that samples of 16 bits leave the upper bits unused, as data of a camera with 10, 12 or 14 bits does."""
    if highest < 1 << 14:
        operations.append("uses_12_of_16_bits" if highest < 1 << 12 else "uses_14_of_16_bits")
