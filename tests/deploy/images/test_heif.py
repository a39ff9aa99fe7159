"""HEIC with its extra, and AVIF, give the pixels that were saved; without the extra, HEIC is refused with the remedy.

The files in heic/ were written by pillow-heif 1.8.1 from ``picture()``: as it is, with the Exif orientation 6, with the
left half transparent, and with 10 bits.
"""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from deploy.errors import ImageError
from deploy.images import heif
from deploy.images.inputs import read_pixels
from deploy.images.preprocess import Preprocessing, canonicalize, decode, open_image
from pipeline.proposal.glance import glance
from pipeline.validation.probe import facts_cache
from pipeline.validation.probe.probe import probe

FILES = {path.stem: path.read_bytes() for path in sorted((Path(__file__).parent / "heic").glob("*.heic"))}
PIXELS = Preprocessing(size=32, resize=32)


def picture() -> NDArray[np.int64]:
    y, x = np.mgrid[:48, :64]
    return np.stack([x * 4, y * 5, (x + y) * 2], -1).clip(0, 255)


def as_avif(pixels: NDArray[np.int64], **options: object) -> bytes:
    content = BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(content, "AVIF", quality=100, subsampling="4:4:4", **options)
    return content.getvalue()


@pytest.fixture
def without_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heif, "is_installed", lambda: False)


@pytest.mark.parametrize(
    ("name", "operations"),
    [("plain", []), ("turned", []), ("transparent", ["alpha_on_white"]), ("deep", ["uint10_to_uint8"])],
)
def test_heic_gives_the_pixels_that_were_saved(name: str, operations: list[str]) -> None:
    pytest.importorskip("pi_heif")
    image, done = canonicalize(open_image(FILES[name]))
    expected = picture()
    if name == "turned":
        expected = np.rot90(expected, -1)
    if name == "transparent":
        expected[:, :32] = 255
    assert done == operations
    assert image.size == expected.shape[1::-1]
    assert np.abs(np.asarray(image).astype(int) - expected).mean() < 1.5
    facts = probe(FILES[name])
    assert (facts["decodes"], facts["format"], facts["container"]) == (True, "HEIF", "heif")
    assert facts["bit_depth"] == (10 if name == "deep" else 8)
    assert facts["has_alpha"] is (name == "transparent")
    assert glance(FILES[name])["width"] == image.width
    assert isinstance(read_pixels(FILES[name], PIXELS), np.ndarray)


def test_avif_is_upright_and_needs_no_extra(without_extra: None) -> None:
    exif = Image.Exif()
    exif[274] = 6
    data = as_avif(picture(), exif=exif)
    image, operations = canonicalize(open_image(data))
    assert operations == ["exif_transpose"]
    assert np.abs(np.asarray(image).astype(int) - np.rot90(picture(), -1)).mean() < 1.5
    assert (probe(data)["decodes"], probe(data)["container"]) == (True, "avif")


def test_without_the_extra_heic_is_refused_by_name_with_the_command(without_extra: None) -> None:
    refused = read_pixels(FILES["plain"], PIXELS)
    assert isinstance(refused, ImageError)
    assert refused.reason == "unsupported_format"
    assert "`pip install pi-heif`" in str(refused)
    facts = probe(FILES["plain"])
    assert facts["reason"] == "unsupported_format"
    assert facts["message"].endswith("`simclr quarantine rescan`")
    assert glance(FILES["plain"]) is None


def test_what_was_found_without_the_extra_is_not_believed_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pi_heif")
    here = facts_cache.versions()
    monkeypatch.setattr(heif, "is_installed", lambda: False)
    assert facts_cache.versions() != here


@pytest.mark.parametrize("kind", ["heic", "avif"])
def test_a_damaged_file_is_refused_or_read_and_nothing_else(kind: str) -> None:
    if kind == "heic":
        pytest.importorskip("pi_heif")
    data, chance, refused = FILES["plain"] if kind == "heic" else as_avif(picture()), np.random.default_rng(0), 0
    for _ in range(150):
        broken = bytearray(data)
        broken[chance.integers(len(data))] = chance.integers(256)
        try:
            decode(bytes(broken))
        except ImageError:
            refused += 1
    assert refused
    for end in range(12, len(data), 97):
        with pytest.raises(ImageError):
            decode(data[:end])


def test_another_color_space_is_noted() -> None:
    content = as_avif(picture()).replace(b"colrnclx\0\x01\0\x0d", b"colrnclx\0\x09\0\x10")  # BT.2020, PQ
    assert "color_space_ignored" in canonicalize(open_image(content))[1]


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", True),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", True),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1avif", False),
        (b"\0\0\0\x18ftypavif\0\0\0\0mif1avif", False),
        (b"\0\0\0\x18ftypisom\0\0\0\0isommp42", False),
    ],
)
def test_the_brands_tell_the_codec(head: bytes, expected: bool) -> None:
    assert heif.is_heic(head) is expected
