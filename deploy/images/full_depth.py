"""Images of 1 to 16 channels at full depth: from a file to uint16 samples, which no conversion of colors has touched.

Samples of 8 bits become samples of 16 by a factor of 257, so that 255 becomes 65,535: nothing is lost, and a pixel
from 0 to 1 is a sample over FULL, whatever the file. ``Preprocessing`` reads files here if it has ``channels``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deploy.errors import ImageError
from deploy.images import heif
from deploy.images.image_faults import naming_faults
from deploy.images.npy import read_array_header
from deploy.images.opening import MAX_PIXELS, open_image, orientation_of, transposition
from deploy.images.signatures import sniff
from deploy.images.tiff_channels import read_tiff_header
from deploy.images.tiff_layout import (
    BITS,
    GRAY,
    PHOTOMETRIC,
    SAMPLES,
    Tags,
    check_layout,
    directories,
    first,
    has_pages,
)

if TYPE_CHECKING:
    from PIL.Image import Image

MOST_CHANNELS = 16
FULL = 65_535
"""The largest sample, which counts as 1.0."""

Samples = NDArray[np.unsignedinteger[Any]]
"""uint8 [height, width, 3], or uint16 [height, width, channels] at full depth."""

BANDS = {"L": 1, "I;16": 1, "I;16B": 1, "I;16L": 1, "LA": 2, "RGB": 3, "RGBA": 4}
"""Pillow's modes whose samples are those of the file → how many a pixel has."""

STORE_DEEP = "store it as .npy, or as TIFF, which is read with the extra tiff"


@dataclass(frozen=True)
class FullDepth:
    """A file whose header is read: width and height as it is stored, in pixels; ``picture`` if Pillow decodes it."""

    width: int
    height: int
    format: str
    mode: str
    bits: int
    frames: int
    decode: Callable[[], tuple[NDArray[np.uint16], list[str]]]
    picture: "Image | None" = None

    def read(self) -> tuple[NDArray[np.uint16], list[str]]:
        """Decode to uint16 [height, width, channels], upright; and what was done to the samples of the file.

        Raises:
            ImageError: ``truncated`` or ``corrupt``.
        """
        samples, operations = self.decode()
        return samples, [*(["first_frame"] if self.frames > 1 else []), *operations]


def open_full_depth(data: bytes, channels: int, max_pixels: int = MAX_PIXELS) -> FullDepth:
    """Read the header of an image file without decoding any pixel.

    Args:
        channels: how many the image must have, 1 to MOST_CHANNELS.
        max_pixels: largest width times height, of an image of at most three channels; the others have fewer.

    Raises:
        ImageError: ``wrong_channels`` if it has others; else as ``deploy.images.preprocess.open_image``.
    """
    container = sniff(data)
    if container == "npy":
        opened = _open_array(data, channels)
    elif container == "tiff" and not _is_for_pillow(data, channels):
        opened = _open_tiff(data, channels)
    else:
        opened = _open_picture(data, channels, max_pixels)
    require_size(opened.width, opened.height, channels, max_pixels)
    return opened


def read_full_depth(data: bytes, channels: int, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint16]:
    """Decode an image file: uint16 [height, width, channels], upright.

    Raises:
        ImageError: as ``open_full_depth``; ``truncated`` or ``corrupt``.
    """
    return open_full_depth(data, channels, max_pixels).read()[0]


def require_channels(found: int, channels: int, what: str) -> None:
    """Raise ImageError unless an image has this number of channels."""
    if found != channels:
        raise ImageError("wrong_channels", f"{what} of {found} channel{'s' * (found != 1)}; it has to have {channels}")


def require_size(width: int, height: int, channels: int, max_pixels: int) -> None:
    """Raise ImageError if there are more samples than an RGB image of ``max_pixels`` has, or more pixels."""
    most = max_pixels * 3 // max(3, channels)
    if width * height > most:
        size = f"{width} x {height} pixels of {channels} channel{'s' * (channels != 1)}"
        raise ImageError("bomb", f"{size} are over the limit of {most:,} pixels; make it smaller")


def widened(samples: Samples) -> NDArray[np.uint16]:
    """Samples of 8 or 16 bits as samples of 16, in this machine's byte order."""
    if samples.dtype == np.uint8:
        return samples.astype(np.uint16) * np.uint16(257)
    return np.ascontiguousarray(samples, np.uint16)


def resize_samples(
    samples: NDArray[np.uint16], size: tuple[int, int], box: tuple[float, float, float, float] | None = None
) -> NDArray[np.uint16]:
    """Resize each channel to ``size`` (width, height) from ``box`` (left, top, right, bottom), by default from all.

    Bilinear with antialiasing, computed by Pillow in float and rounded to whole samples.
    """
    from PIL import Image

    resized = np.empty((size[1], size[0], samples.shape[2]), np.uint16)
    for channel in range(samples.shape[2]):
        plane = Image.fromarray(samples[:, :, channel].astype(np.float32))
        plane = plane.resize(size, Image.Resampling.BILINEAR, box=box)
        resized[:, :, channel] = np.asarray(plane).round().clip(0, FULL)
    return resized


def _open_array(data: bytes, channels: int) -> FullDepth:
    header = read_array_header(data, channels)
    height, width, _ = header.sides
    bits = 8 * header.dtype.itemsize
    return FullDepth(width, height, "NPY", f"uint{bits}", bits, 1, lambda: _widened(header.read()))


def _open_tiff(data: bytes, channels: int) -> FullDepth:
    header = read_tiff_header(data, channels)
    require_channels(header.channels, channels, "a TIFF")
    bits = header.bits
    return FullDepth(
        header.width, header.height, "TIFF", f"uint{bits}", bits, header.frames, lambda: _widened(header.read())
    )


def _widened(samples: Samples) -> tuple[NDArray[np.uint16], list[str]]:
    return widened(samples), ["uint8_to_uint16"] if samples.dtype == np.uint8 else []


def _is_for_pillow(data: bytes, channels: int) -> bool:
    """Whether a TIFF is gray: Pillow decodes those of 8 and 16 bits as they are, in every compression."""
    tags = next(directories(BytesIO(data)), {})
    one = first(tags, SAMPLES, 1) == 1 and first(tags, PHOTOMETRIC, 0) in GRAY and first(tags, BITS, 1) in (8, 16)
    return one and (channels == 1 or not has_pages(BytesIO(data)))


def _open_picture(data: bytes, channels: int, max_pixels: int) -> FullDepth:
    image = open_image(data, max_pixels)
    bits = _check_picture(image, channels, heif.bit_depth(data) if image.format in ("AVIF", "HEIF") else 8)
    frames = 1 if image.format == "MPO" else int(getattr(image, "n_frames", 1))
    if image.format == "TIFF" and not has_pages(BytesIO(data)):
        frames = 1
    return FullDepth(
        image.width,
        image.height,
        image.format or "",
        image.mode,
        bits,
        frames,
        lambda: _decode_picture(image, data),
        image,
    )


def as_samples(image: "Image", channels: int) -> NDArray[np.uint16]:
    """The samples of an opened picture, uint16 [height, width, channels], upright.

    Raises:
        ImageError: ``wrong_channels``, ``unsupported_layout``, ``unsupported_depth``, ``truncated``, ``corrupt``.
    """
    _check_picture(image, channels, 8)
    return _decode_picture(image, b"")[0]


def _check_picture(image: "Image", channels: int, bits: int) -> int:
    """Return the bits of a sample; ``bits`` are those that a decoder has reduced to 8."""
    name, bands = f"a {image.format or 'picture'}", BANDS.get(image.mode)
    rawmode = str(getattr(image, "tile", ""))
    if bands is None or "I;12" in rawmode:
        advice = "has no samples to keep as they are; store gray, RGB or RGBA"
        raise ImageError("unsupported_layout", f"{name} with pixels of type {image.mode} {advice}")
    require_channels(bands, channels, name)
    if image.mode.startswith("I;16"):
        return 16
    bits = 16 if ";16" in rawmode else bits
    if bits > 8:
        raise ImageError("unsupported_depth", f"{name} of {bits}-bit color would lose its lower bits; {STORE_DEEP}")
    return bits


def _decode_picture(image: "Image", data: bytes) -> tuple[NDArray[np.uint16], list[str]]:
    with naming_faults(data):
        is_tiff = image.format == "TIFF"
        tags: Tags = getattr(image, "tag_v2", {}) if is_tiff else {}
        check_layout(tags)
        orientation = orientation_of(image) if is_tiff else 1
        image.load()
        orientation = orientation if is_tiff else orientation_of(image)
        done = ["icc_ignored"] if "icc_profile" in image.info else []
        if orientation != 1:
            done.append("exif_transpose")
            image = image if is_tiff else image.transpose(transposition(orientation))
        samples = np.asarray(image)
    samples, operations = _widened(samples[:, :, np.newaxis] if samples.ndim == 2 else samples)
    if first(tags, PHOTOMETRIC, 1) == 0 and image.mode.startswith("I;16"):
        samples = FULL - samples  # 0 is white, which Pillow heeds at 8 bits only
    return samples, operations + done
