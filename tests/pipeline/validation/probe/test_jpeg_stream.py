import base64
import io
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageDraw
from sklearn.datasets import load_sample_images

from pipeline.validation.probe.jpeg_stream import stream_fault
from tests.pipeline.validation.corpus.corpus import encoded, exif, picture

# The upper left 24 x 16 pixels of picture(0), by cjpeg of libjpeg-turbo 2.1.5: -quality 20 -arithmetic, and
# -quality 20 -optimize -sample 3x1,1x1. Pillow writes neither, and the second is a kind that simplejpeg refuses.
ARITHMETIC = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wCDEAAoABwAHgAjAB4AGQAoACMAIQAjAC0AKwAoADAAPABkAEEAPAA3ADcAPAB7AFgAXQBJAGQAkQCAAJkA"
    "lgCPAIAAjACKAKAAtADmAMMAoACqANoArQCKAIwAyAERAMsA2gDuAPUBAgEEAQIAmwDBARsBLwEYAPoBLADmAP0BAgD4/9sAQwErLS08NTx2QUF2"
    "+KWMpfj4+Pj4+Pj4+Pj4+Pj4+Pj4+Pj4+Pj4+Pj4+Pj4+Pj4+Pj4+Pj4+Pj4+Pj4+Pj4+Pj4/8kAEQgAEAAYAwEiAAIRAQMRAf/MAAoAEBAFARAR"
    "Bf/aAAwDAQACEQMRAD8A/nSZpgnGjD+qaShAGPWa+DFrdrtbznMFjASObc1GHD333ZnQ/9k="
)
ODD_SUBSAMPLING = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wCDEAAoABwAHgAjAB4AGQAoACMAIQAjAC0AKwAoADAAPABkAEEAPAA3ADcAPAB7AFgAXQBJAGQAkQCAAJkA"
    "lgCPAIAAjACKAKAAtADmAMMAoACqANoArQCKAIwAyAERAMsA2gDuAPUBAgEEAQIAmwDBARsBLwEYAPoBLADmAP0BAgD4/9sAQwErLS08NTx2QUF2"
    "+KWMpfj4+Pj4+Pj4+Pj4+Pj4+Pj4+Pj4+Pj4+Pj4+Pj4+Pj4+Pj4+Pj4+Pj4+Pj4+Pj4+Pj4/8EAEQgAEAAYAwExAAIRAQMRAf/EABcAAQADAAAA"
    "AAAAAAAAAAAAAAEAAgT/xAAdEAACAgIDAQAAAAAAAAAAAAABEQAxAiFBYXGB/8QAFQEBAQAAAAAAAAAAAAAAAAAAAQD/xAAVEQEBAAAAAAAAAAAA"
    "AAAAAAAAAf/aAAwDAQACEQMRAD8AxDEhr6ZMQHQPsuK5UTKFaGlFAgpl3E6PZlBH/9k="
)
BASELINE: dict[str, dict[str, Any]] = {
    "plain": {},
    "full_chroma": {"quality": 95, "subsampling": 0},
    "optimized": {"quality": 85, "optimize": True},
    "restarts": {"quality": 85, "restart_marker_rows": 1},
}
OPTIONS = BASELINE | {"progressive": {"quality": 85, "progressive": True}}


def photographs() -> list[Image.Image]:
    return [Image.fromarray(image).resize((500, 375)) for image in load_sample_images().images]


def drawings() -> Iterator[Image.Image]:
    """What is flat, or repeats every block, so that its codes are few and short."""
    y, x = np.mgrid[:96, :128]
    for pattern in (x * 0, x % 256, (x // 8 + y // 8) % 2 * 255, (x + y) % 2 * 255, (x % 8 + y % 8 == 0) * 255):
        yield Image.fromarray(pattern.astype(np.uint8))
        yield Image.fromarray(np.dstack([pattern, 255 - pattern, pattern // 2]).astype(np.uint8))
    page = Image.new("RGB", (128, 96), "white")
    ImageDraw.Draw(page).text((10, 40), "nothing to see here", "navy")
    yield page


def scan(jpeg: bytes) -> range:
    """The positions of the coded data of the last scan."""
    header = jpeg.rindex(b"\xff\xda")
    return range(header + 2 + int.from_bytes(jpeg[header + 2 : header + 4], "big"), len(jpeg) - 2)


def is_read(jpeg: bytes) -> bool:
    try:
        Image.open(io.BytesIO(jpeg)).load()
    except OSError:
        return False
    return True


def segment(jpeg: bytes, marker: int, body: bytes) -> bytes:
    """The JPEG with one more segment behind its beginning."""
    return jpeg[:2] + struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body + jpeg[2:]


def good_jpegs() -> dict[str, bytes]:
    image, pixels = picture(0, 123, 77), np.ascontiguousarray(picture(0, 123, 77))
    plain = encoded(image, "JPEG")
    cmyk = bytearray(encoded(image.convert("CMYK"), "JPEG"))
    adobe = cmyk.index(b"Adobe")
    return {
        **{name: encoded(image, "JPEG", **options) for name, options in OPTIONS.items()},
        **{f"subsampled {kind}": simplejpeg.encode_jpeg(pixels, colorsubsampling=kind) for kind in ("440", "411")},
        "gray": encoded(image.convert("L"), "JPEG"),
        "rgb": encoded(image, "JPEG", keep_rgb=True),
        "cmyk": bytes(cmyk),
        "progressive_cmyk": encoded(image.convert("CMYK"), "JPEG", progressive=True),
        "ycck": bytes(cmyk[: adobe + 11]) + b"\2" + bytes(cmyk[adobe + 12 :]),
        "unmarked_cmyk": bytes(cmyk[: adobe - 4] + cmyk[adobe + 12 :]),
        "arithmetic": ARITHMETIC,
        "odd_subsampling": ODD_SUBSAMPLING,
        "one_pixel": encoded(picture(0, 1, 1), "JPEG"),
        "two_pictures": encoded(image, "MPO", save_all=True, append_images=[picture(1)]),
        "behind_the_end": plain + b"\xff\xd8<?php ?>" * 100,
        "padded_with_zeros": plain[:-2] + bytes(100) + plain[-2:],
        "padded_with_fill": plain[:-2] + b"\xff" * 100 + plain[-2:],
        "strange_version": plain.replace(b"JFIF\0\1\1", b"JFIF\0\0\0"),
        "bad_profile": segment(plain, 0xE2, b"ICC_PROFILE\0\5\3abc"),
        "between_segments": plain[:20] + b"what is this" + plain[20:],
        "comment": segment(plain, 0xFE, b"\xff\xd9\xff\xd8" + bytes(100)),
        "turned": encoded(image, "JPEG", exif=exif(orientation=6)),
    }


@pytest.mark.parametrize("name", good_jpegs())
def test_good_jpegs_have_no_fault(name: str) -> None:
    jpeg = good_jpegs()[name]
    assert is_read(jpeg)
    assert stream_fault(jpeg) is None


@pytest.mark.parametrize("quality", [1, 50, 75, 100])
def test_flat_and_drawn_pictures_have_no_fault(quality: int) -> None:
    zeros = 0
    for image in drawings():
        for options in OPTIONS.values():
            jpeg = encoded(image, "JPEG", **options | {"quality": quality})
            zeros += bytes(32) in jpeg
            assert stream_fault(jpeg) is None
    assert zeros, "no drawing is of zeros, as the flat ones ought to be"


@pytest.mark.parametrize("options", BASELINE)
@pytest.mark.parametrize("length", [40, 512])
def test_zeros_anywhere_in_a_photograph_are_found(options: str, length: int) -> None:
    for photograph in photographs():
        jpeg = encoded(photograph, "JPEG", **BASELINE[options])
        positions = scan(jpeg)
        for position in np.linspace(positions[20], positions[-20 - length], 60).astype(int):
            damaged = jpeg[:position] + bytes(length) + jpeg[position + length :]
            assert stream_fault(damaged), position


@pytest.mark.seconds
@pytest.mark.parametrize("options", OPTIONS)
def test_most_missing_and_foreign_bytes_are_found(options: str) -> None:
    random, silent, found = np.random.default_rng(0), 0, 0
    for photograph in photographs():
        jpeg = encoded(photograph, "JPEG", **OPTIONS[options])
        start, stop = jpeg.index(b"\xff\xda") + 30, len(jpeg) - 600
        for position in random.integers(start, stop, 40):
            for damaged in (
                jpeg[:position] + jpeg[position + 512 :],
                jpeg[:position] + random.bytes(512) + jpeg[position + 512 :],
                jpeg[:position] + jpeg[position - 40 : position] + jpeg[position:],
            ):
                if is_read(damaged):
                    silent += 1
                    found += stream_fault(damaged) is not None
    assert silent > 80
    assert found > 0.75 * silent


def test_bytes_missing_before_the_final_padding_are_found() -> None:
    for photograph in photographs():
        jpeg = encoded(photograph, "JPEG")
        cut = jpeg[: -len(jpeg) // 4]
        for end in (b"\xff\xd9", bytes(4096) + b"\xff\xd9"):
            assert stream_fault(cut + end)


def test_damage_is_found_despite_strange_metadata() -> None:
    jpeg = encoded(photographs()[0], "JPEG").replace(b"JFIF\0\1\1", b"JFIF\0\0\0")
    middle = len(jpeg) // 2
    assert stream_fault(jpeg[:middle] + bytes(600) + jpeg[middle + 600 :])


def test_any_bytes_give_an_answer() -> None:
    random, jpeg = np.random.default_rng(0), encoded(picture(1), "JPEG")
    for _ in range(500):
        damaged = bytearray(jpeg[: random.integers(2, len(jpeg))])
        for position in random.integers(0, len(damaged), random.integers(4)):
            damaged[position] = random.integers(256)
        fault = stream_fault(bytes(damaged))
        assert fault is None or fault


@pytest.mark.seconds
def test_too_little_memory_is_not_a_fault_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "large.jpg").write_bytes(encoded(Image.new("L", (8000, 8000)), "JPEG", progressive=True))
    script = """
import resource, sys
from pathlib import Path
from pipeline.validation.probe.jpeg_stream import stream_fault
jpeg = Path(sys.argv[1]).read_bytes()
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (40 << 20), used + (40 << 20)))
try:
    print(stream_fault(jpeg))
except MemoryError:
    print("no memory")
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "large.jpg")], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "no memory"
