"""Damage that Pillow passes over because it stops at the last row: sums, lengths and blocks that no decoder has looked
at.

Each chunk of a PNG ends in a checksum, and so does each deflated strip of a TIFF. Pillow has its pixels before it comes
to the last one, and so takes an interrupted download, filled up with zeros, for a whole image. The same bytes are read
once more here, and never unpacked to more than the picture holds.
"""

import zlib
from collections.abc import Iterable, Iterator

from PIL import Image, TiffImagePlugin

from deploy.errors import ImageError
from deploy.images.image_faults import naming_faults
from pipeline.validation.probe.container import GIF_BLOCKS, gif_blocks, png_chunks

PACKED_BYTES = 1 << 14  # unpacked at a time: to 17 MB, since nothing shrinks to less than a 1032nd

# ISO/IEC 15948: the samples of a pixel of each color type (11.2.2), and where each pass of an interlaced image begins
# and how far it steps, in columns and in rows (8.2).
PNG_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
ADAM7 = ((0, 8, 0, 8), (4, 8, 0, 8), (0, 4, 4, 8), (2, 4, 0, 4), (0, 2, 2, 4), (1, 2, 0, 2), (0, 1, 1, 2))
IN_ORDER = ((0, 1, 0, 1),)

# TIFF 6.0
WIDTH, HEIGHT, BITS, FILL_ORDER, SAMPLES, STRIP_ROWS = 256, 257, 258, 266, 277, 278
STRIPS, TILES, TILE_SIZE = (273, 279), (324, 325), (322, 323)  # offsets and lengths; width and height
DEFLATE = ("tiff_adobe_deflate", "tiff_deflate")  # compression 8 and 32946, as Pillow calls them
LARGEST_BLOCK = 4  # pixels that share their chroma, across or down; strips are filled up to whole blocks


def check(image: Image.Image, data: bytes) -> None:
    """Refuse the file of an image that Pillow has decoded, if it contradicts itself.

    Raises:
        ImageError: ``corrupt`` or ``truncated``.
    """
    with naming_faults(data):
        if image.format == "PNG":
            _check_sums(data)
            _check_rows(image, data)
        elif image.format == "GIF":
            _check_blocks(data)
        elif isinstance(image, TiffImagePlugin.TiffImageFile) and image.info.get("compression") in DEFLATE:
            _check_strips(image, data)


def _check_sums(data: bytes) -> None:
    view = memoryview(data)
    for name, start, end in png_chunks(data):
        if zlib.crc32(view[start + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
            raise _damaged(f"the checksum of its {name.decode()} chunk at byte {start} is wrong")


def _check_rows(image: Image.Image, data: bytes) -> None:
    """Is there a row for each that the header promises?

    In any mode, a row that is not in the stream stays 0, and so the rows are counted only where the last one is.
    """
    is_interlaced = "interlace" in image.info
    last_row = image.crop((0, image.height - 1, image.width, image.height))
    if not is_interlaced and any(last_row.tobytes()):
        return
    promised = _png_bytes(data, image.size, ADAM7 if is_interlaced else IN_ORDER)
    held, _ = _unpacked(_png_pixels(data), promised)
    if held < promised:
        raise _cut(f"its pixels are {held:,} bytes, and should be {promised:,}")


def _png_pixels(data: bytes) -> Iterator[memoryview]:
    """What the IDAT chunks hold, with one that the file ends in."""
    view, end = memoryview(data), 8
    for name, start, end in png_chunks(data):
        if name == b"IDAT":
            yield view[start + 8 : end - 4]
    if data[end + 4 : end + 8] == b"IDAT":
        yield view[end + 8 :]


def _png_bytes(data: bytes, size: tuple[int, int], passes: Iterable[tuple[int, int, int, int]]) -> int:
    """Of the filtered rows of all passes, each row with one byte for its filter."""
    header = data.index(b"IHDR") + 4
    pixel_bits = data[header + 8] * PNG_SAMPLES[data[header + 9]]
    total = 0
    for left, across, top, down in passes:
        columns, rows = len(range(left, size[0], across)), len(range(top, size[1], down))
        total += rows * (1 + -(-columns * pixel_bits // 8)) if columns else 0
    return total


def _check_blocks(data: bytes) -> None:
    """Another byte in the very place of the trailer costs nothing but the trailer."""
    for first, start, end in gif_blocks(data):
        if first not in GIF_BLOCKS and end < len(data):
            raise _damaged(f"no block begins at byte {start}, where one is expected")


def _check_strips(image: TiffImagePlugin.TiffImageFile, data: bytes) -> None:
    """Zlib checks the sum at the end of each strip or tile, which libtiff never reads."""
    tags, view = image.tag_v2, memoryview(data)
    if tags.get(FILL_ORDER, 1) != 1:
        return  # stored with the bits of each byte turned round; no writer does that with this compression
    if TILES[0] in tags:
        (width, height), pieces = (tags[tag] for tag in TILE_SIZE), TILES
    else:  # not the size of the image, which Pillow has turned upright
        width, height, pieces = tags[WIDTH], min(tags.get(STRIP_ROWS, tags[HEIGHT]), tags[HEIGHT]), STRIPS
    pixel_bits = tags.get(SAMPLES, 1) * tags.get(BITS, (1,))[0]
    most = _filled_up(height) * -(-_filled_up(width) * pixel_bits // 8)
    for offset, length in zip(*(tags.get(tag, ()) for tag in pieces), strict=False):
        held, has_ended = _unpacked([view[offset : offset + length]], most)
        if held > most:
            raise _damaged(f"the strip at byte {offset} holds more than {most:,} bytes")
        if not has_ended:
            raise _cut(f"the strip at byte {offset} has no end")


def _filled_up(pixels: int) -> int:
    return -(-pixels // LARGEST_BLOCK) * LARGEST_BLOCK


def _unpacked(pieces: Iterable[memoryview], most: int) -> tuple[int, bool]:
    """How many bytes a zlib stream unpacks to, or a number over ``most``; and whether its end and sum have been read.

    Raises:
        zlib.error: it is damaged.
    """
    stream, held = zlib.decompressobj(), 0
    for piece in pieces:
        for start in range(0, len(piece), PACKED_BYTES):
            held += len(stream.decompress(piece[start : start + PACKED_BYTES]))
            if stream.eof or held > most:
                return held, stream.eof
    return held, False


def _damaged(what: str) -> ImageError:
    return ImageError("corrupt", f"the file is damaged ({what}); copy it again from its source")


def _cut(what: str) -> ImageError:
    return ImageError("truncated", f"the file ends too early ({what}); copy it again from its source")
