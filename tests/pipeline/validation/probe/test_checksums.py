"""Whole files of every kind pass; each kind of damage that Pillow does not see is named."""

import struct
import zlib
from collections.abc import Callable
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from deploy.errors import ImageError
from pipeline.validation.probe.checksums import ADAM7, check
from tests.pipeline.validation.corpus.corpus import exif, flipped, picture
from tests.pipeline.validation.corpus.encodings import ENCODINGS, encoded, png, png_chunk, tiff

SIZES = [(1, 1), (1, 9), (9, 1), (3, 5), (8, 8), (13, 7), (64, 48)]
BLACK = Image.new("RGB", (64, 48))


def verdict(data: bytes) -> str:
    image = Image.open(BytesIO(data))
    image.load()  # a test whose file Pillow refuses tests nothing
    try:
        check(image, data)
    except ImageError as error:
        return error.reason
    return "whole"


@pytest.mark.parametrize("name", ENCODINGS)
def test_intact_files_of_every_kind_pass(name: str) -> None:
    assert verdict(ENCODINGS[name](picture(1))) == "whole"
    assert verdict(ENCODINGS[name](BLACK)) == "whole"  # where the rows of a PNG are counted
    assert verdict(ENCODINGS[name](picture(1)) + b"behind the end") == "whole"


@pytest.mark.parametrize("size", SIZES)
def test_intact_images_of_every_shape_pass(size: tuple[int, int]) -> None:
    for image in (picture(1, *size), Image.new("RGB", size)):
        for data in (png(image), png(image, interlaced=True), png(image, interlaced=True, deep=True)):
            assert verdict(data) == "whole"
        for mode in ("1", "L", "LA", "P", "RGBA"):
            assert verdict(encoded(image.convert(mode), "PNG")) == "whole"
        for orientation in range(1, 9):
            turned = encoded(image, "TIFF", compression="tiff_adobe_deflate", exif=exif(orientation=orientation))
            assert verdict(turned) == "whole"


def test_the_passes_of_an_interlaced_image_hold_each_pixel_once() -> None:
    seen = np.zeros((8, 8), int)
    for left, across, top, down in ADAM7:
        seen[top::down, left::across] += 1
    assert (seen == 1).all()


def test_the_checksum_of_every_chunk_is_checked() -> None:
    data = encoded(picture(2), "PNG", exif=exif(orientation=6))
    late = data[:-12] + png_chunk(b"tEXt", b"Comment\0late") + data[-12:]
    assert verdict(late) == "whole"
    for position in (late.index(b"tEXt") - 6, late.index(b"late"), len(late) - 1):
        assert verdict(flipped(late, position)) == "corrupt"


def test_a_png_with_half_of_its_bytes_zeroed_is_corrupt() -> None:
    data = encoded(picture(3), "PNG")
    assert verdict(data[: len(data) // 2].ljust(len(data), b"\0")) == "corrupt"


def short_png(image: Image.Image, missing_rows: int, *, interlaced: bool) -> bytes:
    """Its stream lacks the last rows, and is perfect otherwise."""
    data = png(image, interlaced=interlaced)
    pixels = zlib.decompress(data[data.index(b"IDAT") + 4 : -16])
    left = zlib.compress(pixels[: -missing_rows * (1 + 3 * image.width)])  # those of the last pass are of full width
    return data[: data.index(b"IDAT") - 4] + png_chunk(b"IDAT", left) + png_chunk(b"IEND", b"")


@pytest.mark.parametrize("interlaced", [False, True])
def test_a_stream_with_too_few_rows_is_truncated(interlaced: bool) -> None:
    for image in (picture(4), BLACK, picture(4, 13, 7)):
        for missing_rows in (1, 2):
            assert verdict(short_png(image, missing_rows, interlaced=interlaced)) == "truncated"


def test_only_the_end_of_the_file_is_missing() -> None:
    for image in (picture(5), BLACK):
        for data in (png(image), png(image, interlaced=True)):
            for left in range(len(data) - 18, len(data)):  # from within the Adler-32 on
                assert verdict(data[:left]) == "whole"


GIF = encoded(picture(6).quantize(200), "GIF")


def test_a_gif_is_a_chain_of_blocks() -> None:
    image = GIF.index(b"\x2c\0\0\0\0" + GIF[6:10])
    assert verdict(GIF[: image + 10] + bytes(40) + GIF[image + 50 :]) == "corrupt"
    assert verdict(GIF[:-1] + bytes(20) + b";") == "corrupt"
    for end in (b"", b"\0", b"\xc4"):  # none, or damaged: the warning ``unterminated`` is all that it deserves
        assert verdict(GIF[:-1] + end) == "whole"


DEFLATED: list[Callable[[Image.Image], bytes]] = [
    lambda image: encoded(image, "TIFF", compression="tiff_adobe_deflate"),
    lambda image: tiff(image.size, [zlib.compress(image.tobytes())], ">", compression=32946),
    lambda image: tiff(image.size, [zlib.compress(one.tobytes()) for one in image.split()], planar=2, compression=8),
    lambda image: tiff(
        image.size,
        [
            zlib.compress(image.crop((x, y, x + 32, y + 32)).tobytes())
            for y in range(0, image.height, 32)
            for x in range(0, image.width, 32)
        ],
        tile_width=32,
        tile_height=32,
        compression=8,
    ),
    lambda image: tiff(
        image.size,
        [zlib.compress(image.crop((0, y, image.width, y + 10)).tobytes()) for y in range(0, image.height, 10)],
        rows=10,  # the last strip is filled up
        compression=8,
    ),
]


@pytest.mark.parametrize("encode", DEFLATED)
def test_zeros_in_a_deflated_tiff_are_found(encode: Callable[[Image.Image], bytes]) -> None:
    data = encode(picture(7))
    assert verdict(data) == "whole"
    pixels = np.asarray(Image.open(BytesIO(data)))
    found, unseen = set(), 0
    for position in np.linspace(600, len(data) - 300, 100).astype(int):
        damaged = data[:position] + bytes(40) + data[position + 40 :]
        try:
            unseen += not np.array_equal(np.asarray(Image.open(BytesIO(damaged))), pixels)
        except OSError:
            continue
        found.add(verdict(damaged))
    assert unseen >= 5  # pictures that Pillow gives out as sound
    assert found <= {"corrupt", "truncated"}


def test_a_strip_without_checksum_or_with_extra_bytes_is_reported() -> None:
    raw = picture(8).tobytes()
    assert verdict(tiff((64, 48), [zlib.compress(raw)[:-4]], compression=8)) == "truncated"
    assert verdict(tiff((64, 48), [zlib.compress(raw + raw)], compression=8)) == "corrupt"


@pytest.mark.seconds
def test_decompression_stops_at_the_size_of_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    unpacked: list[int] = []
    original = zlib.decompressobj

    class Counting:
        def __init__(self) -> None:
            self.stream = original()

        def decompress(self, data: bytes) -> bytes:
            part = self.stream.decompress(data)
            unpacked.append(len(part))
            return part

        @property
        def eof(self) -> bool:
            return self.stream.eof

    zeros = zlib.compress(bytes(200_000_000), 9)
    black = encoded(BLACK, "PNG")
    bomb = black[:33] + png_chunk(b"IDAT", zeros) + black[-12:]
    files = {tiff((64, 48), [zeros], compression=8): "corrupt", bomb: "whole"}
    monkeypatch.setattr("pipeline.validation.probe.checksums.zlib.decompressobj", Counting)
    for data, expected in files.items():
        unpacked.clear()
        assert verdict(data) == expected
        assert 64 * 48 * 3 < sum(unpacked) < 18_000_000


def test_nonsensical_tags_do_not_crash_the_check() -> None:
    data = tiff((64, 48), [zlib.compress(picture(9).tobytes())], compression=8)
    for entry in range(10, 10 + 12 * struct.unpack_from("<H", data, 8)[0], 12):
        for kind in (1, 2, 5, 7, 12):
            damaged = data[: entry + 2] + struct.pack("<H", kind) + data[entry + 4 :]
            try:
                assert verdict(damaged) in ("whole", "corrupt", "truncated")
            except (OSError, SyntaxError, TypeError, ValueError):
                continue  # Pillow's
