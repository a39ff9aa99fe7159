import io

import pytest
from PIL import Image

from pipeline.validation.container import EXTENSIONS, sniff, trailing_bytes
from tests.pipeline.validation.corpus import encoded, picture

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
def test_bytes_behind_the_end_are_counted(container: str, trailing: bytes) -> None:
    data = encoded(picture(), FORMATS[container])
    assert trailing_bytes(data + trailing, container) == len(trailing)


@pytest.mark.parametrize("options", [{"progressive": True}, {"restart_marker_blocks": 2}, {"comment": b"\xff\xd9" * 9}])
def test_the_end_of_a_jpeg_is_not_mistaken(options: dict[str, object]) -> None:
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
