"""Image files of every kind, made with Pillow and a knife, and raw batches that hold them."""

import hashlib
import io
import json
import struct
import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from PIL import Image

from deploy.images import heif
from pipeline.ingest.layout import place
from pipeline.ingest.raw import OCCURRENCES, Occurrence, batches, read_occurrences
from pipeline.validation.probe import scan as scans
from pipeline.validation.tables import FACTS
from tests.pipeline.validation.corpus.encodings import encoded, png_chunk, srgb_profile

DAMAGED_HEIC = "corrupt" if heif.is_installed() else "unsupported_format"


@dataclass(frozen=True)
class Kind:
    """A file, and what must come of it: its reasons (none: accepted), operations and warnings."""

    name: str
    data: bytes
    reasons: tuple[str, ...] = ()
    operations: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


class Example(NamedTuple):
    """A file, and the primary reasons that are right for it, separated by spaces; ``accepted`` stands for none."""

    name: str
    data: bytes
    expected: str


def picture(seed: int = 0, width: int = 64, height: int = 48) -> Image.Image:
    """A colorful RGB image with smooth parts and noise; every seed gives another one."""
    y, x = np.mgrid[:height, :width]
    smooth = np.stack([x * 4 % 256, y * 5 % 256, (x + y + seed) * 3 % 256], axis=-1) // 2
    noise = np.random.default_rng(seed).integers(0, 100, smooth.shape)
    return Image.fromarray((smooth + noise).astype(np.uint8))


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises this many 1-bit pixels and holds none."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + png_chunk(b"IEND", b"")


def with_chunk(png: bytes, kind: bytes, body: bytes) -> bytes:
    """The PNG with one more chunk behind its header."""
    return png[:33] + png_chunk(kind, body) + png[33:]


def flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :]


def exif(**tags: int) -> Image.Exif:
    block = Image.Exif()
    if "orientation" in tags:
        block[274] = tags["orientation"]
    if "latitude" in tags:
        block[0x8825] = {1: "N", 2: (float(tags["latitude"]), 0.0, 0.0)}
    return block


@cache
def good_kinds() -> tuple[Kind, ...]:
    """Files that are used, each with other pixels."""
    gray16 = Image.fromarray(np.asarray(picture(10).convert("L")).astype(np.uint16) * 257)
    faded = picture(11).convert("RGBA")
    faded.putalpha(Image.linear_gradient("L").resize(faded.size))
    jpeg = encoded(picture(20), "JPEG")
    corrupt_exif = b"\xff\xd8\xff\xe1\x00\x12Exif\0\0II*\0\xff\xff\0\0\0\0"[:22]
    return (
        Kind("plain.jpg", encoded(picture(1), "JPEG")),
        Kind("progressive.JPEG", encoded(picture(2), "JPEG", progressive=True)),
        Kind("plain.png", encoded(picture(3), "PNG")),
        Kind("plain.webp", encoded(picture(4), "WEBP")),
        Kind("plain.bmp", encoded(picture(5), "BMP")),
        Kind("plain.gif", encoded(picture(6).quantize(64), "GIF"), operations=("palette_to_rgb",)),
        Kind("plain.tiff", encoded(picture(7), "TIFF", compression="tiff_lzw")),
        Kind("gray.png", encoded(picture(8).convert("L"), "PNG"), operations=("gray_to_rgb",)),
        Kind("cmyk.jpg", encoded(picture(9).convert("CMYK"), "JPEG"), operations=("cmyk_to_rgb",)),
        Kind("gray16.png", encoded(gray16, "PNG"), operations=("uint16_to_uint8", "gray_to_rgb")),
        Kind("faded.png", encoded(faded, "PNG"), operations=("alpha_on_white",)),
        Kind("turned.jpg", encoded(picture(12), "JPEG", exif=exif(orientation=6)), operations=("exif_transpose",)),
        Kind("located.jpg", encoded(picture(13), "JPEG", exif=exif(latitude=52)), warnings=("gps_present",)),
        Kind("profile.png", encoded(picture(14), "PNG", icc_profile=srgb_profile())),
        Kind("png_named.jpg", encoded(picture(15), "PNG"), warnings=("extension_mismatch",)),
        Kind("polyglot.jpg", encoded(picture(16), "JPEG") + b"<?php ?>", warnings=("trailing_bytes",)),
        Kind("long.png", encoded(picture(17, 200, 40), "PNG"), warnings=("elongated",)),
        Kind("night.png", encoded(picture(18).point(lambda value: value // 6), "PNG"), warnings=("dark",)),
        Kind("snow.png", encoded(picture(19).point(lambda value: 255 - value // 21), "PNG"), warnings=("light",)),
        Kind("exif.jpg", corrupt_exif + jpeg[2:], warnings=("exif_unreadable",)),
        Kind("stopped.png", encoded(picture(23), "PNG")[:-5], warnings=("unterminated",)),
        Kind("no_extension", encoded(picture(21), "PNG")),
        Kind("small.png", encoded(picture(22, 8, 8), "PNG")),
    )


@cache
def bad_kinds() -> tuple[Kind, ...]:
    """Files that are quarantined for what they are, each with its reasons."""
    jpeg, png = encoded(picture(30), "JPEG"), encoded(picture(31), "PNG")
    frames = [picture(32 + index).quantize(32) for index in range(3)]
    several = {"save_all": True, "append_images": frames[1:]}
    in_color = {"save_all": True, "append_images": [picture(36), picture(37)]}
    metadata = zlib.compress(b"\0" * 100_000_000)
    html = b"<!DOCTYPE html><html><body>404 Not Found</body></html>"
    return (
        Kind("empty.jpg", b"", ("empty_file",)),
        Kind("page.jpg", html, ("not_an_image",)),
        Kind("error.png", b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', ("not_an_image",)),
        Kind("error.jpeg", b'{"error": "rate limited"}', ("not_an_image",)),
        Kind("noise.jpg", np.random.default_rng(0).bytes(5000), ("not_an_image",)),
        Kind("pointer.jpg", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", ("io_error",)),
        Kind("archive.png", b"PK\x03\x04" + bytes(100), ("not_an_image",)),
        Kind("paper.pdf", b"%PDF-1.7\n" + bytes(100), ("unsupported_format",)),
        Kind("drawing.svg", b"<svg xmlns='http://www.w3.org/2000/svg'></svg>", ("unsupported_format",)),
        Kind("phone.heic", b"\0\0\0\x18ftypheic\0\0\0\0" + bytes(100), (DAMAGED_HEIC,)),
        Kind("modern.avif", b"\0\0\0\x18ftypavif\0\0\0\0" + bytes(100), ("corrupt",)),
        Kind("modern.jxl", b"\xff\x0a" + bytes(100), ("unsupported_format",)),
        Kind("layers.psd", b"8BPS\0\x01" + bytes(100), ("unsupported_format",)),
        Kind("half.jpg", jpeg[: len(jpeg) // 2], ("truncated",)),
        Kind("no_end.jpg", jpeg[:-2], ("truncated",)),
        Kind("half.png", png[: len(png) // 2], ("truncated",)),
        Kind("flipped.png", flipped(png, len(png) // 2), ("corrupt",)),
        Kind("bomb.png", png_header(20_000, 20_000), ("bomb",)),
        Kind("flat_bomb.png", png_header(10_000, 9_000), ("bomb",)),
        Kind("text_bomb.png", with_chunk(png, b"zTXt", b"Comment\0\0" + metadata), ("metadata_bomb",)),
        Kind("float.tif", encoded(Image.fromarray(np.ones((20, 20), np.float32)), "TIFF"), ("unsupported_depth",)),
        Kind("ghost.png", encoded(Image.new("RGBA", (20, 20)), "PNG"), ("fully_transparent",)),
        Kind("moving.gif", encoded(frames[0], "GIF", **several), ("animated",)),
        Kind("moving.png", encoded(picture(35), "PNG", **in_color), ("animated",)),
        Kind("moving.webp", encoded(picture(35), "WEBP", **in_color), ("animated",)),
        Kind("pages.tif", encoded(picture(38), "TIFF", **in_color), ("multi_page",)),
        Kind("dot.png", encoded(picture(39, 1, 1), "PNG"), ("too_small", "low_information")),
        Kind("strip.png", encoded(picture(40, 300, 12), "PNG"), ("extreme_aspect",)),
        Kind("thread.png", encoded(picture(41, 300, 4), "PNG"), ("too_small", "extreme_aspect")),
        Kind("blank.png", encoded(Image.new("RGB", (64, 64), (90, 10, 10)), "PNG"), ("low_information",)),
    )


def write_batch(raw: Path, name: str, files: Sequence[tuple[str, bytes]]) -> None:
    """Write ``raw/<name>`` as ingest does: equal bytes once, with all their occurrences.

    ``files``: (path, bytes) with split and label as the folders say. Bytes that an earlier batch holds are left out.
    """
    earlier = {sha256 for batch in batches(raw) for sha256 in read_occurrences(batch)}
    (raw / name).mkdir(parents=True)
    occurrences: dict[str, list[Occurrence]] = {}
    with tarfile.open(raw / name / "images.tar", "w") as tar:
        for path, data in files:
            sha256 = hashlib.sha256(data).hexdigest()
            if sha256 not in occurrences | dict.fromkeys(earlier):
                member = tarfile.TarInfo(f"{sha256}.bin")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
            occurrences.setdefault(sha256, []).append(Occurrence(path, *place(path)[:2]))
    lines = [
        json.dumps({"sha256": sha256, "occurrences": [vars(one) for one in seen]}) + "\n"
        for sha256, seen in occurrences.items()
    ]
    (raw / name / OCCURRENCES).write_text("".join(lines), encoding="utf-8")


def scan(raw: Path, cache: Path, **options: Any) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The files, and FACTS by SHA-256."""
    files, known = scans.scan(raw, cache, **options)
    return files, known.select(list(FACTS)).sort("sha256")
