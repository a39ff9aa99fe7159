"""Files that no one should train on, whole or forged: bombs, strangers, images of the wrong kind, size or content."""

import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from tests.pipeline.validation.corpus.corpus import Example, picture, png_header, with_chunk
from tests.pipeline.validation.corpus.encodings import ENCODINGS, FORMATS, encoded, png_chunk, tiff
from tests.pipeline.validation.corpus.regions import BROKEN

FLAT_ZEROS = zlib.compress(bytes(100_000_000), 9)  # 97 kB


def bad_files() -> Iterator[Example]:
    for number, make in enumerate((bombs, metadata_bombs, strangers, other_formats, forged, depths, frames, contents)):
        yield from make(10_000 + 1000 * number)


def patched(data: bytes, position: int, layout: str, *values: int) -> bytes:
    """The file with these numbers, packed as ``struct`` does, in the place of what is there."""
    new = struct.pack(layout, *values)
    return data[:position] + new + data[position + len(new) :]


def bombs(seed: int) -> Iterator[Example]:
    """A few bytes that promise more pixels than anyone has memory for."""
    jpeg, gif, bmp = (ENCODINGS[name](picture(seed)) for name in ("jpeg.jpg", "gif.gif", "bmp.bmp"))
    progressive, lossy, lossless = (
        ENCODINGS[name](picture(seed)) for name in ("progressive.jpg", "webp.webp", "lossless.webp")
    )
    huge = 65_000
    yield Example("bomb_1_bit.png", png_header(20_000, 20_000), "bomb")
    yield Example("bomb_over_the_limit.png", png_header(10_000, 8_001), "bomb")
    yield Example("bomb_strip.png", png_header(2**31 - 1, 1), "bomb")
    yield Example("bomb_largest.png", png_header(2**31 - 1, 2**31 - 1), "bomb")
    yield Example("bomb.jpg", patched(jpeg, jpeg.index(b"\xff\xc0") + 5, ">HH", huge, huge), "bomb")
    yield Example(
        "bomb_progressive.jpg", patched(progressive, progressive.index(b"\xff\xc2") + 5, ">HH", huge, huge), "bomb"
    )
    yield Example("bomb_screen.gif", patched(gif, 6, "<HH", huge, huge), "bomb")
    yield Example("bomb_frame.gif", patched(gif, gif.index(b"\x2c\0\0\0\0" + gif[6:10]) + 5, "<HH", huge, huge), "bomb")
    yield Example("bomb.bmp", patched(bmp, 18, "<ii", huge, huge), "bomb")
    yield Example("bomb_top_down.bmp", patched(bmp, 18, "<ii", huge, -huge), "bomb")
    yield Example(
        "bomb_run_length.bmp", patched(ENCODINGS["run_length.bmp"](picture(seed)), 18, "<ii", huge, huge), "bomb"
    )
    yield Example("bomb.webp", patched(lossy, lossy.index(b"\x9d\x01\x2a") + 3, "<HH", 16383, 16383), "bomb corrupt")
    yield Example("bomb_lossless.webp", patched(lossless, 21, "<I", 16383 - 1 | (16383 - 1) << 14), "bomb corrupt")
    for order, name in (("<", "intel"), (">", "motorola")):
        yield Example(f"bomb_{name}.tif", tiff((10**6, 10**6), [bytes(100)], order), "bomb")
    yield Example("bomb_tiles.tif", tiff((10**5, 10**5), [bytes(100)], tile_width=10**5, tile_height=10**5), "bomb")
    one_tile = tiff((64, 48), [bytes(100)], tile_width=2**20, tile_height=2**20)
    yield Example("bomb_one_tile.tif", one_tile, "bomb corrupt truncated")
    zeros = zlib.compress(bytes(3 * 2000 * 2000), 9)
    yield Example("flat_unpacked.tif", tiff((2000, 2000), [zeros], compression=8), "low_information")
    longer = tiff((64, 48), [FLAT_ZEROS], compression=8)
    yield Example("strip_unpacks_to_more.tif", longer, "low_information corrupt")


def metadata_bombs(seed: int) -> Iterator[Example]:
    png = encoded(picture(seed), "PNG")
    largest = zlib.compress(bytes(1_000_000), 9)
    texts = png
    for number in range(80):  # each within the limit for one, all of them over that for all
        texts = with_chunk(texts, b"zTXt", b"Comment%d\0\0" % number + largest)
    yield Example("many_texts.png", texts, "metadata_bomb")
    yield Example("text_bomb.png", with_chunk(png, b"zTXt", b"Comment\0\0" + FLAT_ZEROS), "metadata_bomb")
    yield Example("utf8_text_bomb.png", with_chunk(png, b"iTXt", b"Comment\0\1\0\0\0" + FLAT_ZEROS), "metadata_bomb")
    yield Example("profile_bomb.png", with_chunk(png, b"iCCP", b"Profile\0\0" + FLAT_ZEROS), "metadata_bomb")


def strangers(seed: int) -> Iterator[Example]:
    """Files that lie among images and are not images."""
    jpeg = encoded(picture(seed), "JPEG")
    for name, data in {
        "page.jpg": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        "login.png": b"\r\n\r\n<html><head><title>Sign in</title></head></html>",
        "error.xml.jpg": b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
        "error.json.jpg": b'{"error": "rate limited"}',
        "text.jpg": b"The image will be delivered later.\n",
        "base64.jpg": b"/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAgGBgcGBQgHBwcJCQgKDBQNDAsLDBkSEw8",
        "noise.jpg": np.random.default_rng(seed).bytes(5000),
        "zeros.jpg": bytes(5000),
        "archive.png": b"PK\x03\x04" + bytes(100),
        "packed.jpg": b"\x1f\x8b\x08" + bytes(100),
        "tape.jpg": b"images/".ljust(257, b"\0") + b"ustar\x0000" + bytes(248),
        "array.png": b"\x93NUMPY\x01\0v\0{'descr': '<f4'}",
        "program.jpg": b"\x7fELF\x02\x01\x01" + bytes(100),
        "finder.DS_Store": b"\0\0\0\x01Bud1" + bytes(100),
        "thumbnails.db": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(100),
        "fork.jpg": b"\0\x05\x16\x07\0\x02\0\0Mac OS X        " + bytes(100),
        "one_byte.jpg": b"\xff",
        "two_bytes.jpg": b"\xff\xd8",
        "four_bytes.png": b"\x89PNG",
        "behind_a_byte.jpg": b"\0" + jpeg,
        "behind_a_page.jpg": b"<html><!--" + jpeg,
        "reversed.jpg": jpeg[::-1],
    }.items():
        yield Example(name, data, "not_an_image")
    yield Example("nothing.png", b"", "empty_file")
    yield Example("pointer.png", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "io_error")


def other_formats(seed: int) -> Iterator[Example]:
    """Images in formats that Pillow reads, or not, and that are refused before its readers see them."""
    written = dict.fromkeys(("PPM", "TGA", "PCX", "SGI", "DDS"), "not_an_image")
    written |= dict.fromkeys(("ICO", "JPEG2000", "EPS"), "unsupported_format")
    for number, (kind, expected) in enumerate(written.items()):
        data = encoded(picture(seed + number), kind)
        yield Example(f"other.{kind.lower()}", data, expected)
        yield Example(f"{kind.lower()}_named.jpg", data + b"\n", expected)
    for name, data in {
        "paper.pdf": b"%PDF-1.7\n" + bytes(100),
        "drawing.svg": b"<svg xmlns='http://www.w3.org/2000/svg'></svg>",
        "modern.jxl": b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(100),
        "naked.jxl": b"\xff\x0a" + bytes(100),
        "layers.psd": b"8BPS\0\x01" + bytes(100),
        "light.exr": b"v/1\x01\x02\0\0\0" + bytes(100),
        "stars.fits": b"SIMPLE  =                    T".ljust(2880),
    }.items():
        yield Example(name, data, "unsupported_format")


def forged(seed: int) -> Iterator[Example]:
    """Headers that contradict themselves."""
    png, jpeg, gif, bmp = (encoded(picture(seed), name) for name in ("PNG", "JPEG", "GIF", "BMP"))
    frame, screen = jpeg.index(b"\xff\xc0"), gif.index(b"\x2c\0\0\0\0" + gif[6:10])
    raw, size = picture(seed).tobytes(), (64, 48)
    header = struct.pack(">IIBBBBB", 64, 48, 8, 2, 0, 0, 0)
    for name, data in {
        "no_width.png": png[:8] + png_chunk(b"IHDR", patched(header, 0, ">I", 0)) + png[33:],
        "no_such_depth.png": png[:8] + png_chunk(b"IHDR", patched(header, 8, "B", 3)) + png[33:],
        "no_such_color.png": png[:8] + png_chunk(b"IHDR", patched(header, 9, "B", 5)) + png[33:],
        "larger_than_its_pixels.png": png[:8] + png_chunk(b"IHDR", patched(header, 4, ">I", 4800)) + png[33:],
        "no_pixels.png": png[:33] + png_chunk(b"IEND", b""),
        "no_header.png": png[:8] + png[33:],
        "no_palette.png": png[:8] + png_chunk(b"IHDR", patched(header, 9, "B", 3)) + png[33:],
        "no_width.jpg": patched(jpeg, frame + 7, ">H", 0),
        "no_height.jpg": patched(jpeg, frame + 5, ">H", 0),
        "no_components.jpg": patched(jpeg, frame + 9, "B", 0),
        "twelve_bits.jpg": patched(jpeg, frame + 4, "B", 12),
        "no_tables.jpg": jpeg[:2] + jpeg[jpeg.index(b"\xff\xc0") :],
        "headers_only.jpg": jpeg[: jpeg.index(b"\xff\xda")] + b"\xff\xd9",
        "lossless.jpg": patched(jpeg, frame + 1, "B", 0xC3),
        "no_frame.gif": gif[:screen] + b";",
        "no_code.gif": gif[: screen + 10] + b"\x08\0;",
        "no_width.bmp": patched(bmp, 18, "<i", 0),
        "no_such_depth.bmp": patched(bmp, 28, "<H", 13),
        "no_such_compression.bmp": patched(bmp, 30, "<I", 99),
        "no_directory.tif": b"II*\0\0\0\0\0",
        "directory_behind_the_end.tif": b"II*\0\xff\xff\xff\x7f",
        "no_width.tif": tiff((0, 48), [raw]),
        "no_strips.tif": tiff(size, []),
        "strip_behind_the_end.tif": tiff(size, [raw])[:-5000],
        "no_such_compression.tif": tiff(size, [raw], compression=12345),
        "no_such_colors.tif": tiff(size, [raw], photometric=99),
        "empty.webp": b"RIFF\4\0\0\0WEBP",
        "no_such_chunk.webp": b"RIFF\x0c\0\0\0WEBPJUNK\0\0\0\0",
    }.items():
        yield Example(name, data, BROKEN)
    yield Example("arithmetic.jpg", patched(jpeg, frame + 1, "B", 0xC9), f"{BROKEN} suspect_stream")
    yield Example("negative_width.bmp", patched(bmp, 18, "<i", -64), f"{BROKEN} bomb")


def depths(seed: int) -> Iterator[Example]:
    gray = np.asarray(picture(seed).convert("L"))
    for name, kind, sample_format in (
        ("float32", "<f4", 3),
        ("float64", "<f8", 3),
        ("int32", "<i4", 2),
        ("uint32", "<u4", 1),
        ("complex", "<c8", 6),
    ):
        raw = gray.astype(kind)
        tags: dict[str, Any] = {
            "samples": 1,
            "photometric": 1,
            "sample_format": sample_format,
            "bits": 8 * raw.itemsize,
        }
        yield Example(f"{name}.tif", tiff((64, 48), [raw.tobytes()], **tags), "unsupported_depth corrupt")


def frames(seed: int) -> Iterator[Example]:
    """More than one picture in a file, and files that nothing can be seen in."""
    several = [picture(seed + number) for number in range(4)]
    indexed = [image.quantize(32) for image in several]
    for count in (2, 4):
        in_color = {"save_all": True, "append_images": several[1:count]}
        yield Example(
            f"{count}.gif", encoded(indexed[0], "GIF", save_all=True, append_images=indexed[1:count]), "animated"
        )
        yield Example(f"{count}.png", encoded(several[0], "PNG", **in_color), "animated")
        yield Example(f"{count}.webp", encoded(several[0], "WEBP", **in_color), "animated")
        yield Example(f"{count}.tif", encoded(several[0], "TIFF", **in_color), "multi_page")
    pages = encoded(several[0], "TIFF", save_all=True, append_images=several[1:], compression="tiff_lzw")
    yield Example("pages_lzw.tif", pages, "multi_page")
    looped = tiff((64, 48), [several[1].tobytes()])
    end = 10 + 12 * struct.unpack_from("<H", looped, 8)[0]
    yield Example("page_after_itself.tif", patched(looped, end, "<I", 8), "accepted multi_page corrupt")
    nothing = Image.new("RGBA", (20, 20))
    transparent = Image.new("P", (20, 20))
    yield Example("ghost.png", encoded(nothing, "PNG"), "fully_transparent")
    yield Example("colored_ghost.png", encoded(_with_alpha(several[2], 0), "PNG"), "fully_transparent")
    yield Example("gray_ghost.png", encoded(_with_alpha(several[3], 0).convert("LA"), "PNG"), "fully_transparent")
    yield Example("ghost.webp", encoded(nothing, "WEBP", lossless=True), "fully_transparent")
    yield Example("ghost.tif", encoded(nothing, "TIFF"), "fully_transparent")
    yield Example("ghost.gif", encoded(transparent, "GIF", transparency=0), "fully_transparent")
    yield Example("palette_ghost.png", encoded(transparent, "PNG", transparency=0), "fully_transparent")


def _with_alpha(image: Image.Image, alpha: int) -> Image.Image:
    faded = image.convert("RGBA")
    faded.putalpha(alpha)
    return faded


def contents(seed: int) -> Iterator[Example]:
    """Too small, too long, or flat, in every format."""
    for number, (extension, format_name) in enumerate(FORMATS.items()):
        start, shade = seed + 10 * number, 40 * number + 3
        flat = Image.new("RGB", (64, 64), (shade, shade // 2, 255 - shade))
        for name, image, expected in (
            ("dot", picture(start, 1, 1), "too_small"),
            ("narrow", picture(start + 1, 7, 40), "too_small"),
            ("low", picture(start + 2, 40, 7), "too_small"),
            ("panorama", picture(start + 3, 300, 12), "extreme_aspect"),
            ("tower", picture(start + 4, 12, 300), "extreme_aspect"),
            ("flat", flat, "low_information"),
        ):
            yield Example(f"{name}.{extension}", encoded(image, format_name), expected)
    for name, level in (("black", 0), ("white", 255)):
        yield Example(f"{name}.png", encoded(Image.new("L", (64, 64), level), "PNG"), "low_information")
    noise = np.random.default_rng(seed).integers(127, 130, (64, 64, 3)).astype(np.uint8)
    yield Example("nearly_flat.png", encoded(Image.fromarray(noise), "PNG"), "low_information")
    yield Example(
        "flat16.png", encoded(Image.fromarray(np.full((64, 64), 40_000, np.uint16)), "PNG"), "low_information"
    )
