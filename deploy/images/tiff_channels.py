"""Read a TIFF of several channels at full depth with tifffile, the extra ``tiff``: next to each other in a pixel, in
separate planes, or one page for each.

What tifffile needs imagecodecs for is refused by name; see ``docs/decisions/tiff-is-refused-by-name.md``.
"""

import logging
import zlib
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.errors import ImageError
from deploy.plural import counted

INSTALL = "pip install tifffile"
ADVICE = f"a TIFF of several channels is read with the extra tiff: install it with `{INSTALL}`, or convert it to .npy"
CONVERT = "convert it with `tiffcp -c zip OLD.tif NEW.tif`, or store it without compression"

NONE, DEFLATE = 1, (8, 32946)
STRIPS, STRIP_SIZES, TILES, TILE_SIZES = 273, 279, 324, 325  # tags of TIFF 6.0: offsets, and numbers of bytes
PREVIEW, UPRIGHT, WHITE_IS_ZERO, PALETTE, YCBCR = 1, 1, 0, 3, 6
MOST_PAGES = 1_000
TILE_PIXELS, TILE_SHARE = 1 << 20, 4  # a tile may have this number of pixels, or this multiple of the picture's

logging.getLogger("tifffile").addHandler(logging.NullHandler())  # what it warns of is refused here, with its reason


@dataclass(frozen=True)
class TiffHeader:
    """``pages`` are those of tifffile that hold the picture: one, or one for each channel."""

    width: int
    height: int
    channels: int
    bits: int
    frames: int
    pages: tuple[Any, ...]

    def read(self) -> NDArray[np.unsignedinteger[Any]]:
        """The samples, [height, width, channels], as the file stores them.

        Raises:
            ImageError: ``truncated`` or ``corrupt``.
        """
        try:
            planes = [_read_page(page) for page in self.pages]
        except ImageError:
            raise
        except Exception as error:  # tifffile and zlib raise whatever damage leads to
            raise ImageError("corrupt", f"the file is damaged ({error or type(error).__name__})") from error
        return planes[0] if len(planes) == 1 else np.concatenate(planes, axis=2)


def is_installed() -> bool:
    """Whether a TIFF of several channels can be read here."""
    from importlib.util import find_spec

    return find_spec("tifffile") is not None


def read_tiff_header(data: bytes, channels: int) -> TiffHeader:
    """Read the tags of a TIFF, and find the pages of its channels.

    Raises:
        ImageError: ``unsupported_format``: tifffile is not installed; ``corrupt``, ``unsupported_depth``,
            ``unsupported_layout``.
    """
    if not is_installed():
        raise ImageError("unsupported_format", ADVICE)
    from tifffile import TiffFile

    try:
        found: list[Any] = [page.aspage() for page in TiffFile(BytesIO(data)).pages[:MOST_PAGES]]
        pages = [page for page in found if not page.subfiletype & PREVIEW]
        page = pages[0]
        same = all(one.shape == page.shape and one.dtype == page.dtype for one in pages)
        samples, depth = page.samplesperpixel, page.imagedepth
    except Exception as error:  # tifffile raises whatever damage leads to
        raise ImageError("corrupt", f"the file is damaged ({error or type(error).__name__})") from error
    stacked = samples == 1 and same and len(pages) == channels
    used = tuple(pages) if stacked else (page,)
    for one in used:
        _require_readable(one)
    if depth > 1:
        raise ImageError("unsupported_layout", f"a TIFF of {depth} slices is not supported; store one file for each")
    return TiffHeader(
        page.imagewidth,
        page.imagelength,
        channels if stacked else samples,
        page.dtype.itemsize * 8,
        1 if stacked else len(pages),
        used,
    )


def _require_readable(page: Any) -> None:
    if page.dtype not in (np.uint8, np.uint16) or page.bitspersample not in (8, 16):
        what = f"a TIFF of samples of type {page.dtype}, {page.bitspersample} bits,"
        raise ImageError("unsupported_depth", f"{what} is not supported; store 8 or 16 bits without sign")
    if page.compression != NONE and page.compression not in DEFLATE:
        name = getattr(page.compression, "name", page.compression)
        raise ImageError("unsupported_format", f"a TIFF of several channels in {name} is not read; {CONVERT}")
    orientation = page.tags.valueof(274, default=UPRIGHT)
    if orientation != UPRIGHT:
        raise ImageError("unsupported_layout", f"it is stored turned (orientation {orientation}); store it upright")
    if page.photometric in (WHITE_IS_ZERO, PALETTE, YCBCR):
        name = getattr(page.photometric, "name", page.photometric)
        raise ImageError("unsupported_layout", f"samples declared as {name} are not read; store them as MINISBLACK")


def _read_page(page: Any) -> NDArray[np.unsignedinteger[Any]]:
    _require_whole(page)
    if page.compression in DEFLATE:
        _require_bounded(page)
    array = page.asarray()
    if array.ndim == 2:
        return array[:, :, np.newaxis]  # type: ignore[no-any-return]
    return np.moveaxis(array, 0, 2) if page.planarconfig == 2 else array


def _require_whole(page: Any) -> None:
    """Raise ImageError unless every strip or tile is there: tifffile leaves what it does not find as memory was."""
    rows, columns = _segment_sides(page)
    planes = page.samplesperpixel if page.planarconfig == 2 else 1
    needs = -(-page.imagelength // rows) * -(-page.imagewidth // columns) * planes
    tags = [page.tags.get(code) for code in ((TILES, TILE_SIZES) if page.is_tiled else (STRIPS, STRIP_SIZES))]
    with_data = sum(offset > 0 < size for offset, size in zip(page.dataoffsets, page.databytecounts, strict=False))
    found = min(with_data, *(tag.count if tag else 0 for tag in tags))
    if found != needs:
        what = f"its tags find {found:,} of {counted(needs, 'tile' if page.is_tiled else 'strip')}"
        raise ImageError("truncated", f"{what}; copy it again from its source")
    if page.is_tiled and rows * columns > max(TILE_PIXELS, TILE_SHARE * page.imagelength * page.imagewidth):
        what = f"its tiles of {columns:,} x {rows:,} pixels are far larger than the picture"
        raise ImageError("bomb", f"{what}; store it without tiles")


def _segment_sides(page: Any) -> tuple[int, int]:
    """Rows and columns of a strip or tile."""
    if page.is_tiled:
        return page.tilelength, page.tilewidth
    return max(1, min(page.rowsperstrip, page.imagelength)), page.imagewidth


def _require_bounded(page: Any) -> None:
    """Raise ImageError if a strip or tile stands for more bytes than it has room for: tifffile inflates all of it."""
    rows, columns = _segment_sides(page)
    samples = 1 if page.planarconfig == 2 else page.samplesperpixel
    most = rows * columns * samples * page.dtype.itemsize
    file = page.parent.filehandle
    for offset, size in zip(page.dataoffsets, page.databytecounts, strict=True):
        file.seek(offset)
        stream = zlib.decompressobj()
        stream.decompress(file.read(size), most + 1)
        if not stream.eof and len(stream.unconsumed_tail):
            raise ImageError("corrupt", "a strip or tile of it is larger than its tags say; store it again")
