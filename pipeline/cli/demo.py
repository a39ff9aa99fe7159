"""``simclr demo``: the whole graph on 10,000 small images and some of the other files that real folders hold."""

import io
import os
import struct
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline import workspace as workspaces
from pipeline.cli import summary
from pipeline.run import run
from pipeline.sample.make import ARCHIVE
from pipeline.workspace import Workspace

SETTLED = 1_500_000_000  # any time long ago: files just unpacked would otherwise count as still being written


def run_demo(directory: Path) -> str:
    """Make the workspace if it is not there, fill its inbox, run every stage; returns the table for a person."""
    workspace = workspaces.find(directory) if (directory / "dvc.yaml").exists() else workspaces.create(directory)
    fill_inbox(workspace)
    run(workspace, None)
    return summary.write(workspace)


def fill_inbox(workspace: Workspace) -> None:
    """Unpack the sample and add the files that validation should find."""
    with tarfile.open(ARCHIVE, "r:xz") as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # there from Python 3.11.4
        archive.extractall(workspace.inbox)  # noqa: S202  # a file of this package
    example = (workspace.inbox / "unlabeled" / "00001.png").read_bytes()
    for path, data in found_in_the_wild(example).items():
        target = workspace.inbox / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    for entry in workspace.inbox.rglob("*"):
        os.utime(entry, (SETTLED, SETTLED))


def found_in_the_wild(example: bytes) -> dict[str, bytes]:
    """Files as cameras, scanners, scrapers and full disks leave them; ``example`` is one of the sample's PNGs.

    Some are to be refused, some only converted: ``validate`` has to tell which.
    """
    photo = _photo()
    jpeg = _save(photo, "JPEG", quality=90)
    png = _save(photo.resize((64, 48)), "PNG")
    gray16 = Image.fromarray((np.asarray(photo.convert("L"), dtype=np.uint16) * 257)[:90:2, :80:2])
    frames = [photo.resize((32, 24)).rotate(angle) for angle in (0, 30, 60)]
    rotated = Image.Exif()
    rotated[0x0112] = 6  # orientation: the camera was held upright
    files = {
        "empty.jpg": b"",
        "error-page.jpg": b"<!DOCTYPE html><html><head><title>404 Not Found</title></head><body>nginx</body></html>\n",
        "truncated.jpg": jpeg[: len(jpeg) // 2],
        "truncated.png": png[: len(png) // 2],
        "flipped-byte.png": _flip(png, len(png) // 2),
        "really-a-png.jpg": _save(photo.resize((60, 44)), "PNG"),
        "copy-of-00001.png": example,
        "other-container.bmp": _save(Image.open(io.BytesIO(example)), "BMP"),
        "one-pixel.png": _save(Image.new("RGB", (1, 1), "white"), "PNG"),
        "ribbon.png": _save(photo.resize((600, 10)), "PNG"),
        "black-frame.png": _save(Image.new("RGB", (40, 40)), "PNG"),
        "animated.gif": _save(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=80),
        "scan.tif": _save(frames[0], "TIFF", save_all=True, append_images=frames[1:]),
        "decompression-bomb.png": _bomb(),
        "invisible.png": _save(Image.new("RGBA", (32, 32), (200, 30, 30, 0)), "PNG"),
        "document.pdf": b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog >>\nendobj\n%%EOF\n",
        "press-cmyk.jpg": _save(photo.convert("CMYK"), "JPEG", quality=95),
        "microscope-16bit.png": _save(gray16, "PNG"),
        "phone-rotated.jpg": _save(photo.crop((10, 0, 130, 90)), "JPEG", exif=rotated, quality=92),
        "logo-with-alpha.png": _save(_with_alpha(photo.resize((48, 36))), "PNG"),
        "palette.png": _save(photo.resize((56, 40)).convert("P", palette=Image.Palette.ADAPTIVE), "PNG"),
    }
    return {f"unlabeled/found-in-the-wild/{name}": data for name, data in files.items()}


def _photo() -> Image.Image:
    """A smooth colored scene: a sky, a hill and a sun."""
    y, x = np.mgrid[:120, :160]
    hill = y > 80 + 15 * np.sin(x / 25)
    sun = np.hypot(x - 120, y - 30) < 16
    sky = np.stack([120 + y / 2, 160 + y / 3, 235 - y / 4], axis=-1)
    ground = np.stack([60 + x / 8, 110 + 20 * np.cos(x / 9), 50 + y / 6], axis=-1)
    scene = np.where(hill[..., None], ground, np.where(sun[..., None], [250, 230, 120], sky))
    return Image.fromarray(scene.clip(0, 255).astype(np.uint8))


def _with_alpha(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    y, x = np.mgrid[: image.height, : image.width]
    image.putalpha(Image.fromarray(((x + y) * 3).clip(0, 255).astype(np.uint8)))
    return image


def _bomb() -> bytes:
    """A PNG of a hundred bytes whose header promises 100,000 x 100,000 pixels."""
    data = bytearray(_save(Image.new("1", (8, 8)), "PNG"))
    data[16:24] = struct.pack(">II", 100_000, 100_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def _flip(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :]


def _save(image: Image.Image, format: str, **options: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, format, **options)
    return content.getvalue()
