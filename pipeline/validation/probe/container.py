"""What a file's bytes say about themselves before anything is decoded: its container, and what follows its end.

Only signatures are trusted. The extension is a claim, and holding it against the signature is one of the checks.
"""

import re
from collections.abc import Callable, Iterator

from deploy.images.signatures import EXTENSIONS, sniff

__all__ = ["EXTENSIONS", "sniff"]

TERMINATED = ("jpeg", "png", "gif", "webp")
"""The containers that always tell where they end."""

_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # neither a stuffed byte, fill, nor a restart inside the scan
_TEM, _SOI, _EOI, _SOS = 0x01, 0xD8, 0xD9, 0xDA  # ITU T.81, table B.1; the first three stand alone
_EXTENSION, _IMAGE, GIF_TRAILER = 0x21, 0x2C, 0x3B  # GIF89a, appendix A
GIF_BLOCKS = (_EXTENSION, _IMAGE, GIF_TRAILER)


def trailing_bytes(data: bytes, container: str) -> int | None:
    """How many bytes follow the end that the container declares; None where it declares none, or not well."""
    find_end = _ENDS.get(container)
    try:
        end = find_end(data) if find_end else None
    except IndexError:
        return None
    return len(data) - end if end is not None and end <= len(data) else None


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """The marker code, start and end of every segment from behind SOI to EOI; the coded data belong to their SOS."""
    position = 2
    while marker := _JPEG_MARKER.search(data, position):
        position = marker.end()
        code = data[position - 1]
        if code not in (_TEM, _SOI, _EOI):
            position += int.from_bytes(data[position : position + 2], "big")
        if code == _SOS:
            following = _JPEG_MARKER.search(data, position)
            position = following.start() if following else len(data)
        yield code, marker.start(), position
        if code == _EOI:
            return


def png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """The name, start and end of every complete chunk up to IEND, or to where something else than a chunk stands."""
    position = 8
    while position + 12 <= len(data):
        length, kind = int.from_bytes(data[position : position + 4], "big"), data[position + 4 : position + 8]
        start, position = position, position + 12 + length
        if not kind.isalpha() or position > len(data):
            return
        yield kind, start, position
        if kind == b"IEND":
            return


def gif_blocks(data: bytes) -> Iterator[tuple[int, int, int]]:
    """The first byte, start and end of every complete block up to the trailer.

    Where a block should begin and none does, that byte is the last one yielded.
    """
    position = 13 + _gif_palette_bytes(data[10]) if len(data) > 10 else len(data)
    while position < len(data):
        start, kind = position, data[position]
        try:
            position = _gif_block_end(data, start) if kind in (_IMAGE, _EXTENSION) else start + 1
        except IndexError:
            return
        yield kind, start, position
        if kind not in (_IMAGE, _EXTENSION):
            return


def _jpeg_end(data: bytes) -> int | None:
    return next((end for code, _, end in jpeg_segments(data) if code == _EOI), None)


def _png_end(data: bytes) -> int | None:
    return next((end for kind, _, end in png_chunks(data) if kind == b"IEND"), None)


def _gif_end(data: bytes) -> int | None:
    return next((end for kind, _, end in gif_blocks(data) if kind == GIF_TRAILER), None)


def _gif_block_end(data: bytes, start: int) -> int:
    """Of an image or an extension: behind the empty one of its sub-blocks."""
    is_image = data[start] == _IMAGE
    position = start + (11 + _gif_palette_bytes(data[start + 9]) if is_image else 2)
    while length := data[position]:
        position += 1 + length
    return position + 1


def _gif_palette_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _webp_end(data: bytes) -> int | None:
    size = int.from_bytes(data[4:8], "little")
    return 8 + size + size % 2 if 8 + size < len(data) else 8 + size


def _bmp_end(data: bytes) -> int | None:
    return int.from_bytes(data[2:6], "little") or None  # some writers leave it 0


_ENDS: dict[str, Callable[[bytes], int | None]] = {
    "jpeg": _jpeg_end,
    "png": _png_end,
    "gif": _gif_end,
    "webp": _webp_end,
    "bmp": _bmp_end,
}
