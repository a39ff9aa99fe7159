"""An unreadable file is refused with a reason and a remedy, before it costs much time or memory."""

import io
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from deploy.errors import ImageError
from deploy.images.image_faults import naming_faults
from deploy.images.preprocess import decode, open_image
from tests.deploy.conftest import RGB, chunk, encoded, noise, png


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty_file"),
        (b"<html><body>404</body></html>", "not_an_image"),
        (b"BMW is a car maker, and this is text", "not_an_image"),
        (b"RIFF\x24\0\0\0WAVEfmt ", "not_an_image"),
        (b"%PDF-1.7", "unsupported_format"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "unsupported_format"),
        (b"8BPS\0\1", "unsupported_format"),
        (b"\x89PNG\r\n\x1a\n", "truncated"),
        (b"\xff\xd8\xff\xe0", "truncated"),
        (encoded(RGB)[:-30], "truncated"),
        (encoded(RGB, "JPEG")[:-30], "truncated"),
        (encoded(RGB, "GIF")[:-30], "truncated"),
        (encoded(RGB, "WEBP")[:-30], "truncated"),
        (encoded(RGB, "BMP")[:-30], "truncated"),
        (encoded(RGB, "AVIF")[:-30], "truncated"),
        (encoded(RGB, "TIFF", compression="tiff_lzw")[:-30], "truncated"),
        (encoded(RGB).replace(b"IDAT", b"IDAT!")[:-1], "corrupt"),
    ],
)
def test_unreadable_files_have_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(ImageError) as refused:
        decode(data)
    assert refused.value.reason == reason


@pytest.mark.parametrize("values", [np.float32([[0.1, 0.9]]), np.int32([[-5, 70_000]])])
def test_depths_without_a_known_range_are_refused(values: NDArray[np.generic]) -> None:
    with pytest.raises(ImageError, match="store 8 or 16 bits") as refused:
        decode(encoded(values, "TIFF"))
    assert refused.value.reason == "unsupported_depth"


def test_a_fully_transparent_image_is_refused() -> None:
    with pytest.raises(ImageError, match="transparent") as refused:
        decode(encoded(np.dstack([RGB, np.zeros((9, 13), np.uint8)])))
    assert refused.value.reason == "fully_transparent"


def cut_files() -> dict[str, bytes]:
    """Make files that lack the data that their headers refer to."""
    bmp, big = encoded(RGB, "BMP"), encoded(RGB, "TIFF", big_tiff=True)
    raw, lzw = encoded(RGB, "TIFF"), encoded(RGB, "TIFF", compression="tiff_lzw")
    tags = {256: 13, 257: 9, 258: 8, 259: 5, 262: 1, 273: 98, 279: 500}  # LZW; a strip after its directory
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return {f"bmp {length}": bmp[:length] for length in (10, 14, 20, 53)} | {
        "directory": lzw[: int.from_bytes(lzw[4:8], "little") + 30],
        "values": raw[: 8 + 2 + 12 * raw[8] + 4],
        "big": big[:50],
        "strip": b"II*\0" + struct.pack("<IH", 8, len(tags)) + directory + bytes(100),
    }


@pytest.mark.parametrize("name", cut_files())
def test_a_file_shorter_than_its_header_declares_is_truncated(name: str) -> None:
    assert outcome(cut_files()[name]) == "truncated"


@pytest.mark.parametrize("format", ["PNG", "WEBP", "BMP", "TIFF"])
def test_messages_contain_no_memory_address(format: str) -> None:
    data, messages = encoded(RGB, format), set()
    for position in range(12, 60):
        try:
            decode(data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :])
        except ImageError as error:
            messages.add(str(error))
    assert messages
    assert not [message for message in messages if " at 0x" in message or "()" in message]


def test_an_exception_without_a_message_is_reported_by_its_type() -> None:
    with pytest.raises(ImageError, match=r"\(AssertionError\)"), naming_faults(encoded(RGB)):
        raise AssertionError
    with pytest.raises(ImageError, match=r"\(no picture in\)"), naming_faults(encoded(RGB)):
        raise ValueError(f"no picture in {io.BytesIO()!r}")


@pytest.mark.parametrize("side", [9000, 9500, 20_000])  # over our limit; Pillow warns; Pillow raises
def test_too_many_pixels_are_refused_from_the_header(side: int) -> None:
    with pytest.raises(ImageError, match="smaller") as refused:
        open_image(png(1, 0, np.zeros((1, 1), np.uint8), size=(side, side)))
    assert refused.value.reason == "bomb"
    with pytest.raises(ImageError, match="13 x 9 pixels are over the limit of 100 pixels; make it smaller"):
        open_image(encoded(RGB), max_pixels=100)
    large = png(1, 0, np.zeros((1, 1), np.uint8), size=(9500, 9500))
    assert open_image(large, max_pixels=100_000_000).size == (9500, 9500)  # over the limit at which Pillow warns
    with pytest.raises(ImageError, match="400,000,000 pixels are over the limit of 178,956,970 pixels") as refused:
        open_image(png(1, 0, np.zeros((1, 1), np.uint8), size=(20_000, 20_000)), max_pixels=500_000_000)
    assert refused.value.reason == "bomb"


@pytest.mark.parametrize("where", ["before", "after"])
def test_text_that_decompresses_to_megabytes_is_refused(where: str) -> None:
    text = chunk(b"zTXt", b"note\0\0" + zlib.compress(b"a" * 5_000_000))
    plain = encoded(RGB)
    data = plain[:33] + text + plain[33:] if where == "before" else plain[:-12] + text + plain[-12:]
    with pytest.raises(ImageError) as refused:
        decode(data)
    assert refused.value.reason == "metadata_bomb"


def test_a_jpeg_with_endless_scans_is_refused_before_it_is_decoded() -> None:
    """Each scan makes the decoder process the whole image; data after the end marker is not part of the image."""
    content = io.BytesIO()
    Image.new("L", (500, 500), 128).save(content, "JPEG", progressive=True)
    progressive = content.getvalue()
    scan = progressive[progressive.rindex(b"\xff\xda") : -2]
    with pytest.raises(ImageError, match="over 100 scans") as caught:
        decode(progressive[:-2] + 100 * scan + progressive[-2:])
    assert caught.value.reason == "bomb"
    assert decode(progressive + 100 * scan).shape == (500, 500, 3)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
def test_damage_anywhere_gives_pixels_or_an_image_error(format: str) -> None:
    random = np.random.default_rng(6)
    data = encoded(noise(6, 24, 24), format)
    outcomes = set()
    for position in random.integers(0, len(data), 120):
        flipped = bytearray(data)
        flipped[position] ^= int(random.integers(1, 256))
        outcomes |= {outcome(bytes(flipped)), outcome(data[:position])}
    assert outcomes <= {"pixels", "truncated", "corrupt", "not_an_image", "bomb", "empty_file", "unsupported_depth"}


def outcome(data: bytes) -> str:
    try:
        return "pixels" if decode(data).dtype == np.uint8 else "other"
    except ImageError as error:
        return error.reason


def test_decoding_in_threads_leaves_the_warning_filters_as_they_were() -> None:
    before = list(warnings.filters)
    data = encoded(noise(1, 64, 64), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(decode, [data] * 200))
    assert list(warnings.filters) == before
