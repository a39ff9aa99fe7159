"""Where the parts of an image file lie, and what must be said of it when one of them is damaged.

For each region: when one of its bytes is flipped, when a run of bytes from there on is zeroed, and when the file is cut
there. Where several reasons are named, the picture available decides which check sees the damage first.
"""

import re
import struct
from collections.abc import Callable
from typing import NamedTuple

UNSEEN = "accepted"
"""Nothing in the format checks these bytes: other colors, other text, and no one can say that they are wrong."""

STREAM = "suspect_stream accepted"  # a coefficient of a JPEG may become another valid one
ENTROPY = "accepted corrupt truncated"  # codes without a checksum; some bytes lead to codes that do not exist
BROKEN = "corrupt truncated"  # a length or a place that points into the file or behind it
GARBLED = "corrupt truncated bomb"  # blocks out of step: anything may be read as a header


class Region(NamedTuple):
    """Where a part of a file is, and what must be said when it is damaged."""

    name: str
    offset: int
    flipped: str
    zeroed: str
    cut: str = "truncated"


def _jpeg_regions(data: bytes) -> list[Region]:
    frame, scan = re.search(rb"\xff[\xc0\xc2]\0[\x11\x14]", data), data.index(b"\xff\xda")
    assert frame
    return [
        Region("signature", 0, "not_an_image", "not_an_image", "empty_file"),
        Region("metadata", data.index(b"Exif") + 30, UNSEEN, UNSEEN),
        Region("quantization", data.index(b"\xff\xdb") + 20, UNSEEN, UNSEEN),
        Region("height", frame.start() + 5, "suspect_stream corrupt", "corrupt"),
        Region("width", frame.start() + 7, "suspect_stream corrupt", "corrupt"),
        Region("sampling", frame.start() + 11, "corrupt", "corrupt"),
        Region("huffman", data.index(b"\xff\xc4") + 8, "corrupt", "corrupt"),
        Region("scan_header", scan + 4, "corrupt", "corrupt"),
        Region("early_pixels", scan + 40, STREAM, f"{STREAM} corrupt"),
        Region("pixels", (scan + len(data)) // 2, STREAM, STREAM),
        Region("late_pixels", len(data) - 60, f"{STREAM} corrupt", STREAM),
        Region("end", len(data) - 1, "truncated", "truncated suspect_stream", "truncated suspect_stream"),
    ]


def _png_regions(data: bytes) -> list[Region]:
    """``unterminated``, a warning, is all that is said when nothing but the end is missing."""
    pixels, end = data.index(b"IDAT"), data.rindex(b"IEND")
    palette = data.find(b"PLTE")
    return [
        Region("signature", 0, "not_an_image", "not_an_image", "empty_file"),
        Region("header_length", 11, "corrupt", "corrupt"),
        Region("width", 17, "corrupt", "corrupt"),
        Region("depth", 24, "corrupt", "corrupt"),
        Region("header_sum", 30, "corrupt", "corrupt"),
        *([Region("palette", palette + 50, "corrupt", "corrupt")] if palette > 0 else []),
        Region("metadata", data.index(b"tEXt") + 20, "corrupt", "corrupt"),
        Region("pixels_name", pixels + 1, "corrupt", "corrupt"),
        Region("early_pixels", pixels + 8, "corrupt", "corrupt"),
        Region("pixels", (pixels + end) // 2, "corrupt", "corrupt"),
        Region("adler", end - 10, "corrupt", "corrupt truncated", UNSEEN),
        Region("pixels_sum", end - 6, "corrupt", "corrupt", UNSEEN),
        Region("end", end + 2, UNSEEN, UNSEEN, UNSEEN),
    ]


def _gif_regions(data: bytes) -> list[Region]:
    screen = data[6:10]
    image = data.index(b"\x2c\0\0\0\0" + screen)
    return [
        Region("signature", 0, "not_an_image", "not_an_image", "empty_file"),
        Region("width", 7, "extreme_aspect", GARBLED),  # a screen may be larger than its picture
        Region("flags", 10, GARBLED, GARBLED),
        Region("palette", 40, UNSEEN, UNSEEN),
        Region("metadata", data.index(b"\x21\xfe") + 10, UNSEEN, UNSEEN),
        Region("frame_width", image + 6, GARBLED, GARBLED),
        Region("code_size", image + 10, GARBLED, GARBLED),
        Region("block_length", image + 11, GARBLED, GARBLED),
        Region("early_pixels", image + 20, ENTROPY, ENTROPY),
        Region("pixels", (image + len(data)) // 2, ENTROPY, ENTROPY),
        Region("end", len(data) - 1, UNSEEN, UNSEEN, UNSEEN),
    ]


def _webp_regions(data: bytes) -> list[Region]:
    """VP8 and VP8L have no checksum, and nearly every sequence of bits means something."""
    pixels = data.index(b"VP8 " if b"VP8 " in data else b"VP8L")
    size = struct.unpack_from("<I", data, pixels + 4)[0]
    return [
        Region("signature", 0, "not_an_image", "not_an_image", "empty_file"),
        Region("file_size", 5, "truncated", "not_an_image", "not_an_image"),
        Region("format", 8, "not_an_image", "not_an_image", "not_an_image"),
        Region("canvas", 24, "corrupt", "corrupt"),
        Region("pixels_size", pixels + 5, "corrupt", "corrupt"),
        Region("frame_tag", pixels + 8, "corrupt", "corrupt"),
        Region("frame_start", pixels + 11, "corrupt", "corrupt"),
        Region("early_pixels", pixels + 30, ENTROPY, ENTROPY),
        Region("pixels", pixels + size // 2, ENTROPY, ENTROPY),
        Region("late_pixels", pixels + size - 50, ENTROPY, ENTROPY),
        Region("metadata", data.index(b"EXIF") + 20, UNSEEN, UNSEEN),
        Region("end", len(data) - 1, UNSEEN, UNSEEN),
    ]


def _tiff_regions(data: bytes) -> list[Region]:
    directory = struct.unpack_from("<I", data, 4)[0]
    entries = range(directory + 2, directory + 2 + 12 * struct.unpack_from("<H", data, directory)[0], 12)
    value = {struct.unpack_from("<H", data, entry)[0]: entry + 8 for entry in entries}
    strip, length, text, compression = (struct.unpack_from("<I", data, value[tag])[0] for tag in (273, 279, 270, 259))
    pixels = {1: UNSEEN, 5: ENTROPY, 8: "corrupt truncated"}[compression]  # none; LZW, no checksum; deflate, has one
    directory_faults = f"{BROKEN} accepted" if compression == 1 else BROKEN  # Pillow reads raw strips by their offset
    return [
        Region("signature", 0, "not_an_image", "not_an_image", "empty_file"),
        Region("directory_offset", 5, BROKEN, BROKEN),
        Region("entry_count", directory, directory_faults, BROKEN),
        Region("width", value[256] + 1, BROKEN, BROKEN),
        Region("compression", value[259], "corrupt", BROKEN),
        Region("strip_offset", value[273] + 1, BROKEN, BROKEN),
        Region("strip_length", value[279] + 1, directory_faults, BROKEN),
        Region("metadata", text + 10, UNSEEN, UNSEEN),
        Region("early_pixels", strip + 20, pixels, pixels),
        Region("pixels", strip + length // 2, pixels, pixels),
        Region("late_pixels", strip + length - 60, pixels, pixels),
        Region("end", strip + length - 1, pixels, f"{pixels} corrupt"),
    ]


def _bmp_regions(data: bytes) -> list[Region]:
    """No part of it has a checksum, and some writers leave the file's size 0."""
    pixels = struct.unpack_from("<I", data, 10)[0]
    return [
        Region("signature", 0, "not_an_image", "not_an_image", "empty_file"),
        Region("file_size", 3, UNSEEN, "corrupt", "not_an_image"),
        Region("pixels_offset", 11, "truncated", "corrupt"),
        Region("header_size", 14, "corrupt", "corrupt"),
        Region("width", 19, "truncated", "corrupt"),
        Region("depth", 28, "corrupt", "corrupt"),
        Region("compression", 30, "corrupt", UNSEEN),
        Region("palette", 60, UNSEEN, UNSEEN),
        Region("early_pixels", pixels + 20, UNSEEN, UNSEEN),
        Region("pixels", (pixels + len(data)) // 2, UNSEEN, UNSEEN),
        Region("end", len(data) - 1, UNSEEN, UNSEEN),
    ]


REGIONS: dict[str, Callable[[bytes], list[Region]]] = {
    "jpg": _jpeg_regions,
    "png": _png_regions,
    "gif": _gif_regions,
    "webp": _webp_regions,
    "tif": _tiff_regions,
    "bmp": _bmp_regions,
}
"""By extension, for files as ``damaged_files.SUBJECTS`` are."""
