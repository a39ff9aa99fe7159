"""Why an image file cannot be read: translates every error of Pillow's readers into a reason and a remedy."""

import re
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from deploy.errors import ImageError
from deploy.images import heif
from deploy.images.signatures import DECODED, NOT_DECODED, sniff
from deploy.images.tiff_layout import why_unopened

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")
"""Pillow has more than forty readers; most vulnerabilities were in those for rare formats (PSD, EPS, FITS ...).
HEIC comes by an extra."""

PARSER_FAULTS = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError,
    AssertionError, RuntimeError, EOFError, struct.error, zlib.error,
)  # fmt: skip
"""What Pillow's readers raise for damaged files. MemoryError is not included: it concerns the machine, not the file."""

_PIXELS = re.compile(r"Image size \((\d+) pixels\)")  # in Pillow's words about a bomb
_ADDRESS = re.compile(r" *<[^<>]* at 0x[0-9a-fA-F]+>")  # of an object in memory: it differs in each process
_TIFF_TYPES = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}  # bytes; others have 1
_TIFF_PIECES = (273, 279, 324, 325)  # tags: offsets and lengths of strips, and of tiles

_filters_lock = threading.Lock()
_filters_users = 0
_filters = warnings.catch_warnings()


@contextmanager
def naming_faults(data: bytes, max_pixels: int | None = None) -> Iterator[None]:
    """Translate every error that Pillow raises in this block into an ImageError with a reason.

    Args:
        data: the bytes of the file; empty if they are not available and Pillow has already recognized the format.
        max_pixels: the limit to name if the image is too large for Pillow; by default Pillow's own.
    """
    from PIL import Image

    try:
        with _pillow_warnings():
            yield
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        found = _PIXELS.search(str(error))
        given = f"{int(found[1]):,} pixels are" if found else "the image is"
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        limit = min(max_pixels or most, most)
        raise ImageError("bomb", f"{given} over the limit of {limit:,} pixels; make it smaller") from error
    except PARSER_FAULTS as error:
        raise _translate(error, data) from error


def _translate(error: Exception, data: bytes) -> ImageError:
    from PIL import UnidentifiedImageError

    if "MAX_TEXT" in str(error):
        return ImageError("metadata_bomb", f"its text or profile is too large ({error}); save it without metadata")
    container = sniff(data)
    if not data or container in DECODED:
        if "runcated" in str(error) or _is_cut_short(data):
            return ImageError("truncated", "the file ends too early; copy it again from its source")
        if isinstance(error, UnidentifiedImageError) and (refusal := why_unopened(BytesIO(data))):
            return refusal
        detail = _ADDRESS.sub("", str(error)) or type(error).__name__
        return ImageError("corrupt", f"the file is damaged, or Pillow does not support this variant ({detail})")
    allowed = ", ".join(FORMATS)
    if other := NOT_DECODED.get(container):
        return ImageError("unsupported_format", f"{other} files are not supported; convert it to one of {allowed}")
    return ImageError("not_an_image", f"it begins with {data[:16]!r}; supported formats are {allowed}")


def _is_cut_short(data: bytes) -> bool:
    """Return whether the file is shorter than its container declares; for files of a known format that do not open."""
    if data[:2] == b"\xff\xd8":
        return b"\xff\xd9" not in data
    if data[:4] == b"\x89PNG":
        return b"IEND" not in data
    if data[:3] == b"GIF":
        return not data.endswith(b";")
    if data[:4] == b"RIFF":
        return int.from_bytes(data[4:8], "little") + 8 > len(data)
    if data[:2] == b"BM":
        return len(data) < 14 or int.from_bytes(data[10:14], "little") > len(data)  # offset of the pixels
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return _tiff_end(data) > len(data)
    return data[4:8] == b"ftyp" and heif.is_cut_short(data)


def _tiff_end(data: bytes) -> int:
    """Return where the last item ends that the first directory of a TIFF or BigTIFF refers to (TIFF 6.0, section 2)."""
    order: Literal["little", "big"] = "little" if data[:1] == b"I" else "big"

    def number(position: int, size: int) -> int:
        return int.from_bytes(data[position : position + size], order)

    word, counter = (8, 8) if b"+" in data[2:4] else (4, 2)
    first = number(word, word) + counter
    entries = range(first, first + number(first - counter, counter) * (4 + 2 * word), 4 + 2 * word)
    ends = [entries.stop + word]
    if ends[0] > len(data):
        return ends[0]
    pieces: dict[int, NDArray[np.float64]] = {}
    for entry in entries:
        tag, size, count = number(entry, 2), _TIFF_TYPES.get(number(entry + 2, 2), 1), number(entry + 4, word)
        start = entry + 4 + word if size * count <= word else number(entry + 4 + word, word)
        ends.append(start + size * count)
        if tag in _TIFF_PIECES and ends[-1] <= len(data):
            pieces[tag] = np.frombuffer(data, f"{'<' if order == 'little' else '>'}u{size}", count, start).astype(float)
    for offsets, lengths in (_TIFF_PIECES[:2], _TIFF_PIECES[2:]):
        if offsets in pieces and lengths in pieces and pieces[offsets].shape == pieces[lengths].shape:
            ends.append(int((pieces[offsets] + pieces[lengths]).max(initial=0)))
    return max(ends)


@contextmanager
def _pillow_warnings() -> Iterator[None]:
    """In this block, silence Pillow's warnings about metadata, and about sizes that our own limit judges.

    With overlapping blocks in several threads, warnings.catch_warnings would restore the wrong filters. Therefore the
    first block to begin changes the filters, and the last one to end restores them.
    """
    global _filters, _filters_users
    from PIL.Image import DecompressionBombWarning

    with _filters_lock:
        _filters_users += 1
        if _filters_users == 1:
            _filters = warnings.catch_warnings()
            _filters.__enter__()
            warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
            warnings.filterwarnings("ignore", category=DecompressionBombWarning)
    try:
        yield
    finally:
        with _filters_lock:
            _filters_users -= 1
            if _filters_users == 0:
                _filters.__exit__(None, None, None)
