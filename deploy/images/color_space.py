"""Color spaces that a file declares otherwise than by a profile, which Pillow reads none of: is one of them not sRGB?

PNG (third edition, 11.3.2), TIFF 6.0 (sections 20 and 22), BMP (BITMAPV4HEADER), Exif 2.32 (ColorSpace and the
interoperability index of Adobe RGB), the profile in a GIF (ICCRGBG1012), and the
color property of AVIF and HEIC.
"""

import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from deploy.images.heif import is_other_than_srgb
from deploy.images.image_faults import PARSER_FAULTS

if TYPE_CHECKING:
    from PIL.Image import Image

SRGB_PRIMARIES = (0.64, 0.33, 0.30, 0.60, 0.15, 0.06)  # x and y of red, green, blue; IEC 61966-2-1
SRGB_WHITE = (0.3127, 0.3290)
SRGB_GAMMA = 1 / 2.2
CHROMATICITY_TOLERANCE, GAMMA_TOLERANCE, CURVE_TOLERANCE = 0.01, 0.02, 0.03
SRGB_CODES = bytes([1, 13, 0, 1])  # ITU-T H.273: primaries of BT.709, transfer of sRGB, RGB, full range

_GRAY_CURVE, _TRANSFER, _WHITE, _PRIMARIES = 291, 301, 318, 319  # tags of TIFF
_EXIF_BLOCK, _INTEROPERABILITY, _COLOR_SPACE, _ADOBE_RGB = 0x8769, 0xA005, 0xA001, 2
_CALIBRATED, _EMBEDDED, _LINKED = 0, b"DEBM", b"KNIL"  # color space types of BMP


def ignores_color_space(image: "Image", data: bytes) -> bool:
    """Return whether the file says that its values are not sRGB in a way that is not read.

    Args:
        image: opened; its ``info`` and tags are read, and no pixel.
        data: the bytes of the file; empty if they are not available.
    """
    has_profile = bool(image.info.get("icc_profile"))
    if image.format == "PNG" and (codes := _codes(data)):
        return codes != SRGB_CODES  # it comes before a profile
    if has_profile:
        return False  # it comes before all others
    if image.format == "PNG" and "srgb" not in image.info:
        return _png_differs(image.info)
    if image.format == "BMP":
        return _bmp_differs(data)
    if image.format == "GIF":
        return b"\x21\xff\x0bICCRGBG1012" in data
    if image.format in ("AVIF", "HEIF"):
        return is_other_than_srgb(data)
    tags = getattr(image, "tag_v2", None) if image.format == "TIFF" else None
    return (tags is not None and _tiff_differs(tags)) or _is_adobe_rgb(image)


def _codes(data: bytes) -> bytes:
    return next((data[start + 8 : end - 4] for name, start, end in _chunks_before_pixels(data) if name == b"cICP"), b"")


def _chunks_before_pixels(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    position = 8
    while position + 12 <= len(data) and data[position + 4 : position + 8] != b"IDAT":
        start, position = position, position + 12 + int.from_bytes(data[position : position + 4], "big")
        yield data[start + 4 : start + 8], start, position


def _png_differs(info: dict[Any, Any]) -> bool:
    gamma, chromaticity = info.get("gamma"), info.get("chromaticity")
    if gamma and abs(gamma - SRGB_GAMMA) > GAMMA_TOLERANCE:
        return True
    return chromaticity is not None and _are_other(chromaticity, (*SRGB_WHITE, *SRGB_PRIMARIES))


def _tiff_differs(tags: Any) -> bool:
    if _GRAY_CURVE in tags:
        return True
    for tag, values in ((_WHITE, SRGB_WHITE), (_PRIMARIES, SRGB_PRIMARIES)):
        if tag in tags and _are_other(tags[tag], values):
            return True
    return _TRANSFER in tags and _is_other_curve(np.ravel(tags[_TRANSFER]).astype(float) / 65535)


def _are_other(found: Any, expected: tuple[float, ...]) -> bool:
    values = np.ravel(found).astype(float)
    return values.shape != (len(expected),) or bool(np.abs(values - expected).max() > CHROMATICITY_TOLERANCE)


def _is_other_curve(curves: Any) -> bool:
    """One curve, or one for each of three channels, from 0 to 1."""
    channels = 3 if len(curves) % 3 == 0 else 1
    values = np.linspace(0, 1, len(curves) // channels)
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return bool(np.abs(curves.reshape(channels, -1) - linear).max() > CURVE_TOLERANCE)


def _bmp_differs(data: bytes) -> bool:
    if len(data) < 122 or int.from_bytes(data[14:18], "little") < 108:
        return False
    kind = data[70:74]
    if kind in (_EMBEDDED, _LINKED):
        return True
    ends = np.array(struct.unpack_from("<9i", data, 74)).reshape(3, 3) / 2**30  # X, Y and Z of red, green, blue
    if int.from_bytes(kind, "little") != _CALIBRATED or not ends.sum(axis=1).all():
        return False
    return _are_other((ends / ends.sum(axis=1, keepdims=True))[:, :2], SRGB_PRIMARIES)


def _is_adobe_rgb(image: "Image") -> bool:
    if "exif" not in image.info and image.format != "TIFF":
        return False
    with suppress(*PARSER_FAULTS):  # a damaged block, or none
        exif = image.getexif()
        is_adobe = exif.get_ifd(_EXIF_BLOCK).get(_COLOR_SPACE) == _ADOBE_RGB
        return is_adobe or exif.get_ifd(_INTEROPERABILITY).get(1) == "R03"
    return False
