"""Why an image file cannot be read: every fault of Pillow's readers gets one of a few reasons and a way out."""

import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from deploy.errors import ImageError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
"""Pillow has over forty readers; most of its vulnerabilities were in those for rare formats (PSD, EPS, FITS ...)."""

PARSER_FAULTS = (
    *(OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError),
    *(AssertionError, RuntimeError, EOFError, struct.error, zlib.error),
)
"""What Pillow's readers raise on damaged files. A MemoryError passes: it is about the machine, not about the file."""

_OTHER_FORMATS = {
    b"8BPS": "Photoshop",
    b"%PDF": "PDF",
    b"%!PS": "PostScript",
    b"<svg": "SVG",
    b"SIMPLE  =": "FITS",
    b"v/1\x01": "OpenEXR",
    b"\0\0\1\0": "icon",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\xff\x0a": "JPEG XL",
}
_HEIF_BRANDS = (b"heic", b"heix", b"mif1", b"avif", b"avis")

_filters_lock = threading.Lock()
_filters_users = 0
_filters = warnings.catch_warnings()


@contextmanager
def naming_faults(data: bytes) -> Iterator[None]:
    """Raise whatever Pillow raises in this block as an ImageError with a reason.

    ``data`` is the file; empty when it is not at hand and Pillow has recognised it before.
    """
    from PIL import Image

    try:
        with _pillow_warnings():
            yield
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError("bomb", f"{error} Make the image smaller.") from error
    except PARSER_FAULTS as error:
        raise _named(error, data) from error


def _named(error: Exception, data: bytes) -> ImageError:
    if "MAX_TEXT" in str(error):
        return ImageError("metadata_bomb", f"its text or profile is too large ({error}); save it without metadata")
    if not data or _has_known_signature(data):
        if "runcated" in str(error) or _is_cut_short(data):
            return ImageError("truncated", "the file ends too early; copy it again from its source")
        return ImageError("corrupt", f"the file is damaged, or of a kind that Pillow does not read ({error})")
    allowed = ", ".join(FORMATS)
    if other := _other_format(data):
        return ImageError("unsupported_format", f"{other} files are not read; convert it to one of {allowed}")
    return ImageError("not_an_image", f"it begins with {data[:16]!r}; allowed are {allowed}")


def _other_format(data: bytes) -> str | None:
    if data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS:
        return "HEIC or AVIF"
    return next((name for start, name in _OTHER_FORMATS.items() if data.startswith(start)), None)


def _has_known_signature(data: bytes) -> bool:
    starts = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
    is_webp = data[:4] == b"RIFF" and data[8:12] == b"WEBP"
    is_bmp = data[:2] == b"BM" and data[6:10] == b"\0\0\0\0"
    return data.startswith(starts) or is_webp or is_bmp


def _is_cut_short(data: bytes) -> bool:
    """Does the file end before its container says so? Asked only about files of a known format that do not open."""
    if data[:2] == b"\xff\xd8":
        return b"\xff\xd9" not in data
    if data[:4] == b"\x89PNG":
        return b"IEND" not in data
    if data[:3] == b"GIF":
        return not data.endswith(b";")
    if data[:4] == b"RIFF":
        return int.from_bytes(data[4:8], "little") + 8 > len(data)
    if data[:4] in (b"II*\0", b"MM\0*"):
        order: Literal["little", "big"] = "little" if data[:1] == b"I" else "big"
        directory = int.from_bytes(data[4:8], order)
        entries = int.from_bytes(data[directory : directory + 2], order)
        return directory + 2 + 12 * entries + 4 > len(data)
    return False


@contextmanager
def _pillow_warnings() -> Iterator[None]:
    """Silence what Pillow warns about metadata, and raise its DecompressionBombWarning, in this block.

    warnings.catch_warnings alone would leave wrong filters behind when blocks overlap in several threads, so the first
    block to begin changes the filters, and the last one to end restores them.
    """
    global _filters, _filters_users
    from PIL.Image import DecompressionBombWarning

    with _filters_lock:
        _filters_users += 1
        if _filters_users == 1:
            _filters = warnings.catch_warnings()
            _filters.__enter__()
            warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
            warnings.filterwarnings("error", category=DecompressionBombWarning)
    try:
        yield
    finally:
        with _filters_lock:
            _filters_users -= 1
            if _filters_users == 0:
                _filters.__exit__(None, None, None)
