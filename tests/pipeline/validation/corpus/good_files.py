"""Files that must be accepted: every way to store an image, turned in every way, with harmless oddities around it."""

from collections.abc import Iterator

from PIL import Image

from tests.pipeline.validation.corpus.corpus import Example, exif, picture, with_chunk
from tests.pipeline.validation.corpus.encodings import ENCODINGS, FORMATS, encoded, srgb_profile
from tests.pipeline.validation.corpus.regions import UNSEEN

SIDES = ((8, 8), (8, 80), (80, 8), (65, 49), (333, 251))  # the smallest, the longest, and odd ones


def good_files() -> Iterator[Example]:
    for number, (name, encode) in enumerate(ENCODINGS.items()):
        yield Example(name, encode(picture(5000 + number)), UNSEEN)
    yield from _turned(5100)
    yield from _sized(5200)
    yield from _decorated(5300)


def _turned(seed: int) -> Iterator[Example]:
    for number, extension in enumerate(("jpg", "png", "webp", "tif")):
        for orientation in range(1, 9):
            image = picture(seed + 10 * number + orientation)
            data = encoded(image, FORMATS[extension], exif=exif(orientation=orientation))
            yield Example(f"orientation_{orientation}.{extension}", data, UNSEEN)


def _sized(seed: int) -> Iterator[Example]:
    for number, (extension, format_name) in enumerate(FORMATS.items()):
        for index, (width, height) in enumerate(SIDES):
            image = picture(seed + 10 * number + index, width, height)
            yield Example(f"{width}x{height}.{extension}", encoded(image, format_name), UNSEEN)


def _decorated(seed: int) -> Iterator[Example]:
    """Strange, and no fault of the pixels."""
    jpegs = [encoded(picture(seed + number), "JPEG") for number in range(20)]
    pngs = [encoded(picture(seed + 20 + number), "PNG") for number in range(5)]
    loop = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x69\x87\x04\0\x01\0\0\0\x08\0\0\0\x08\0\0\0"  # its sub-directory is itself
    long = b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x0f\x01\x02\0\xff\xff\xff\x7f\xff\xff\xff\x7f" * 5000
    for name, data in {
        "orientation_9.jpg": encoded(picture(seed + 30), "JPEG", exif=exif(orientation=9)),
        "profile.jpg": encoded(picture(seed + 31), "JPEG", icc_profile=srgb_profile()),
        "broken_profile.jpg": encoded(picture(seed + 32), "JPEG", icc_profile=b"no profile at all"),
        "large_profile.jpg": encoded(picture(seed + 33), "JPEG", icc_profile=bytes(255 * 65_000)),
        "broken_exif.jpg": _segment(jpegs[0], 0xE1, b"Exif\0\0II*\0\xff\xff\0\0\0\0"),
        "exif_in_a_loop.jpg": _segment(jpegs[1], 0xE1, loop),
        "exif_without_end.jpg": _segment(jpegs[2], 0xE1, long),
        "thousand_comments.jpg": _segment(jpegs[3], 0xFE, b"again", 1000),
        "script.jpg": jpegs[4] + b"<script>alert(1)</script>",
        "archive.jpg": jpegs[5] + b"PK\x03\x04" + bytes(100),
        "padded.jpg": jpegs[6] + bytes(4096),
        "twice.jpg": jpegs[7] + jpegs[7],
        "jpeg_named.png": jpegs[8],
        "without_extension": jpegs[9],
        "UPPER.JPG": jpegs[10],
        "profile.png": encoded(picture(seed + 34), "PNG", icc_profile=srgb_profile()),
        "unknown_chunk.png": with_chunk(pngs[0], b"wORD", b"what no one knows"),
        "late_exif.png": pngs[1][:-12] + with_chunk(bytes(33), b"eXIf", b"II*\0\x08\0\0\0\0\0")[33:] + pngs[1][-12:],
        "endless_chunk.png": pngs[4][:33] + b"\xff\xff\xff\xff" + pngs[4][37:],  # its length; its pixels are all there
        "without_end.png": pngs[2][:-12],
        "trailing.png": pngs[3] + b"\n",
        "commented.gif": encoded(picture(seed + 35), "GIF", comment=b"<?php system($_GET[0]) ?>" * 40),
        "pale.png": encoded(_pale(), "PNG"),
    }.items():
        yield Example(name, data, UNSEEN)


def _segment(jpeg: bytes, marker: int, body: bytes, times: int = 1) -> bytes:
    """The JPEG with one more segment behind its beginning."""
    return jpeg[:2] + (bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2, "big") + body) * times + jpeg[2:]


def _pale() -> Image.Image:
    """A white page with a little mark on it: hardly anything, and yet a picture."""
    page = Image.new("RGB", (64, 64), "white")
    page.paste("black", (30, 30, 33, 33))
    return page
