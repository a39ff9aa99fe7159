import io

import pytest
from PIL import Image

from pipeline.validation.probe.container import EXTENSIONS, gif_blocks, jpeg_segments, png_chunks, sniff, trailing_bytes
from tests.pipeline.validation.corpus.corpus import encoded, picture

FORMATS = {"jpeg": "JPEG", "png": "PNG", "gif": "GIF", "webp": "WEBP", "bmp": "BMP", "tiff": "TIFF"}


@pytest.mark.parametrize("container", FORMATS)
def test_containers_that_are_decoded(container: str) -> None:
    assert container in EXTENSIONS
    data = encoded(picture(), FORMATS[container])
    assert sniff(data) == container
    assert Image.open(io.BytesIO(data)).format == FORMATS[container]


@pytest.mark.parametrize(
    ("start", "container"),
    [
        (b"", "empty"),
        (b"hello", "unknown"),
        (b"BM in the beginning of a text", "unknown"),
        (b"RIFF\x24\0\0\0WAVEfmt ", "unknown"),
        (b"\0\0\0\x18ftypheic", "heif"),
        (b"\0\0\0\x18ftypavif", "avif"),
        (b"\0\0\0\x18ftypisom", "mp4"),
        (b"\xff\x0a", "jpeg_xl"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "jpeg_2000"),
        (b"8BPS", "photoshop"),
        (bytes(128) + b"DICM", "dicom"),
        (b"%PDF-1.7", "pdf"),
        (b"PK\x03\x04", "zip"),
        (b"\n\n  <!doctype HTML>", "html"),
        (b"\xef\xbb\xbf<html>", "html"),
        (b"<!-- hello -->\n<svg>", "svg"),
        (b"<?xml version='1.0'?><svg>", "svg"),
        (b"<?xml version='1.0'?><Error>", "xml"),
        (b' {"error": 1}', "json"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git_lfs_pointer"),
    ],
)
def test_signatures(start: bytes, container: str) -> None:
    assert sniff(start) == container


@pytest.mark.parametrize("container", ["jpeg", "png", "gif", "webp", "bmp"])
@pytest.mark.parametrize("trailing", [b"", b"x", b"<?php ?>" * 100, encoded(picture(1), "JPEG")])
def test_bytes_after_the_end_are_counted(container: str, trailing: bytes) -> None:
    data = encoded(picture(), FORMATS[container])
    assert trailing_bytes(data + trailing, container) == len(trailing)


@pytest.mark.parametrize("options", [{"progressive": True}, {"restart_marker_blocks": 2}, {"comment": b"\xff\xd9" * 9}])
def test_end_markers_inside_a_jpeg_are_not_taken_for_its_end(options: dict[str, object]) -> None:
    embedded = Image.Exif()
    embedded[37510] = encoded(picture(2, 16, 16), "JPEG")  # a picture inside the EXIF block, as thumbnails are
    data = encoded(picture(), "JPEG", exif=embedded, **options)
    assert trailing_bytes(data, "jpeg") == 0
    assert trailing_bytes(data + b"xyz", "jpeg") == 3


def test_an_animation_ends_after_its_last_frame() -> None:
    data = encoded(picture(), "GIF", save_all=True, append_images=[picture(1), picture(2)], comment=b"; " * 300)
    assert trailing_bytes(data + b"xyz", "gif") == 3


def test_a_file_cut_anywhere_has_no_end() -> None:
    for container, name in FORMATS.items():
        data = encoded(picture(), name)
        for length in range(0, len(data), 37):
            assert trailing_bytes(data[:length], container) is None


def test_the_segments_of_a_jpeg_cover_the_whole_file() -> None:
    data = encoded(picture(), "JPEG", progressive=True, comment=b"\xff\xd9 not the end")
    segments = list(jpeg_segments(data + b"behind"))
    assert data == data[:2] + b"".join(data[start:end] for _, start, end in segments)
    assert all(data[start : start + 2] == bytes([0xFF, code]) for code, start, _ in segments)
    codes = [code for code, _, _ in segments]
    assert codes[-1] == 0xD9
    assert codes.count(0xDA) == 10  # the scans of libjpeg's progressive script for color


def test_segments_end_where_the_file_does() -> None:
    data = encoded(picture(), "JPEG", restart_marker_blocks=1)
    for length in range(2, len(data)):
        segments = list(jpeg_segments(data[:length]))
        assert all(start < end for _, start, end in segments)
        assert [start for _, start, _ in segments[1:]] == [end for _, _, end in segments[:-1]]


def test_the_chunks_of_a_png_cover_the_whole_file() -> None:
    data = encoded(picture(1, 300, 200), "PNG", exif=Image.Exif())
    chunks = list(png_chunks(data + b"behind"))
    assert data == data[:8] + b"".join(data[start:end] for _, start, end in chunks)
    assert [name for name, _, _ in chunks] == [b"IHDR", *[b"IDAT"] * (len(chunks) - 2), b"IEND"]
    assert len(chunks) > 3
    for length in range(len(data) - 30, len(data)):
        assert all(end <= length for _, _, end in png_chunks(data[:length]))
    assert list(png_chunks(data[: chunks[2][1]] + bytes(100))) == chunks[:2]  # zeros are not a chunk


def test_the_blocks_of_a_gif_cover_the_whole_file() -> None:
    data = encoded(picture(2), "GIF", save_all=True, append_images=[picture(3)], comment=b"; " * 300)
    blocks = list(gif_blocks(data + b"behind"))
    begin = blocks[0][1]
    assert begin == 13 + 3 * 256  # header, screen and palette
    assert data[begin:] == b"".join(data[start:end] for _, start, end in blocks)
    assert [first for first, _, _ in blocks if first != 0x21] == [0x2C, 0x2C, 0x3B]
    for length in range(len(data)):
        cut = list(gif_blocks(data[:length]))
        assert cut == blocks[: len(cut)]
    assert [first for first, _, _ in gif_blocks(data[:-1] + b"\0;")][-1] == 0  # where the walk ends
