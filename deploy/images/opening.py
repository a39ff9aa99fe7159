"""Open an image file: its header is read and held against the limits, and no pixel is decoded."""

from io import BytesIO
from typing import TYPE_CHECKING, Any

from deploy.errors import ImageError
from deploy.images import heif
from deploy.images.image_faults import FORMATS, PARSER_FAULTS, naming_faults
from deploy.images.jpeg_scans import check_scans

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 80_000_000
"""Largest width times height that is decoded: 240 MB as RGB."""

MOST_PIXELS = 178_000_000
"""The largest ``max_pixels`` that has an effect: Pillow itself opens no image of over 178,956,970 pixels."""

TRANSPOSE = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}
"""EXIF orientation (the sides of row 0 and column 0; TIFF 6.0, tag 274) → the PIL.Image.Transpose that undoes it."""


def open_image(data: bytes, max_pixels: int = MAX_PIXELS) -> "Image":
    """Read the header of an image file without decoding any pixel.

    Args:
        data: the bytes of the file.
        max_pixels: largest width times height, up to MOST_PIXELS.

    Raises:
        ImageError: ``empty_file``, ``not_an_image``, ``unsupported_format``, ``truncated``, ``corrupt``, ``bomb``,
            ``metadata_bomb``.
    """
    from PIL import Image

    if not data:
        raise ImageError("empty_file", "the file has no bytes; copy it again from its source")
    check_scans(data)
    with naming_faults(data, max_pixels):
        image = heif.open_heic(data) if heif.is_heic(data) else Image.open(BytesIO(data), formats=FORMATS)
    if image.width * image.height > max_pixels:
        size = f"{image.width} x {image.height} pixels"
        raise ImageError("bomb", f"{size} are over the limit of {max_pixels:,} pixels; make it smaller")
    return image


def orientation_of(image: "Image") -> int:
    """Return the EXIF orientation, 1 to 8; 1 if it is absent or the EXIF block is damaged."""
    try:
        orientation = image.getexif().get(274, 1)
    except PARSER_FAULTS:
        return 1
    return orientation if orientation in TRANSPOSE else 1


def transposition(orientation: int) -> Any:
    """Return the PIL.Image.Transpose that undoes an orientation of 2 to 8."""
    from PIL.Image import Transpose

    return Transpose(TRANSPOSE[orientation])
