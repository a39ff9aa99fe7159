import base64
import hashlib
import json
import warnings
from dataclasses import asdict

import numpy as np
import pytest
from PIL import Image

from pipeline.validation.facts import Facts
from pipeline.validation.probe import STATISTICS_SIDE, pixel_hash, probe, statistics, thumbnail
from pipeline.validation.verdict import REASONS
from tests.pipeline.validation.corpus import Kind, bad_kinds, encoded, flipped, good_kinds, picture

ENCODINGS = {
    "jpeg": ("JPEG", {}),
    "progressive_jpeg": ("JPEG", {"progressive": True}),
    "png": ("PNG", {}),
    "gif": ("GIF", {}),
    "webp": ("WEBP", {}),
    "lossless_webp": ("WEBP", {"lossless": True}),
    "bmp": ("BMP", {}),
    "tiff": ("TIFF", {}),
    "lzw_tiff": ("TIFF", {"compression": "tiff_lzw"}),
}


@pytest.mark.parametrize("kind", good_kinds(), ids=lambda kind: kind.name)
def test_good_files_decode(kind: Kind) -> None:
    facts = Facts(**probe(kind.data))
    assert (facts.decodes, facts.reason, facts.message) == (True, None, "")
    assert tuple(facts.operations) == kind.operations
    assert facts.sha256 == hashlib.sha256(kind.data).hexdigest()
    unknown = {name for name, value in asdict(facts).items() if value is None}
    assert unknown <= {"reason", "trailing_bytes"}


@pytest.mark.parametrize("kind", bad_kinds(), ids=lambda kind: kind.name)
def test_what_does_not_decode_says_why(kind: Kind) -> None:
    facts = Facts(**probe(kind.data))
    if facts.decodes:  # bad for a reason that is the verdict's to give
        assert facts.reason is None
    else:
        assert (facts.reason,) == kind.reasons
        assert facts.message


@pytest.mark.parametrize("kind", good_kinds() + bad_kinds(), ids=lambda kind: kind.name)
def test_same_bytes_same_facts_through_json(kind: Kind) -> None:
    first = probe(kind.data)
    assert json.loads(json.dumps(first, allow_nan=False)) == first == probe(kind.data)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_file_cut_anywhere_is_truncated(encoding: str) -> None:
    name, options = ENCODINGS[encoding]
    data = encoded(picture(), name, **options)
    assert probe(data)["decodes"]
    for length in np.linspace(20, 0.9 * len(data), 40).astype(int):
        assert probe(data[:length])["reason"] in ("truncated", "corrupt"), length
    for length in range(1, 20):
        assert probe(data[:length])["reason"] in ("truncated", "corrupt", "not_an_image"), length


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_flipped_byte_anywhere_gives_facts_or_a_reason(encoding: str) -> None:
    name, options = ENCODINGS[encoding]
    data = encoded(picture(), name, **options)
    for position in [*range(0, 64, 3), *np.linspace(64, len(data) - 1, 100).astype(int)]:
        facts = Facts(**probe(flipped(data, int(position))))
        assert facts.decodes or facts.reason in REASONS
        if encoding == "png" and position < len(data) - 4:  # where a chunk's length is damaged, its pixels survive
            assert not facts.decodes or facts.trailing_bytes is None, position


def test_limits_apply_before_decoding() -> None:
    data = encoded(picture(), "PNG")
    assert probe(data, max_megabytes=len(data) / 1e6)["decodes"]
    assert probe(data, max_megabytes=(len(data) - 1) / 1e6)["reason"] == "too_large"
    assert probe(data, max_megapixels=64 * 48 / 1e6)["decodes"]
    assert probe(data, max_megapixels=(64 * 48 - 1) / 1e6)["reason"] == "bomb"


def test_statistics_against_numpy() -> None:
    image = picture(3, 200, 120)
    pixels, luma = np.asarray(image, dtype=float), np.asarray(image.convert("L"), dtype=float)
    found = statistics(image)
    for name, value in {
        "luma_mean": luma.mean(),
        "luma_std": luma.std(),
        "red_mean": pixels[..., 0].mean(),
        "blue_std": pixels[..., 2].std(),
        "saturation": np.ptp(pixels, axis=2).mean(),
        "edge_energy": np.concatenate([abs(np.diff(luma, axis=axis)).ravel() for axis in (0, 1)]).mean(),
    }.items():
        assert found[name] == pytest.approx(value, abs=1e-4), name
    for percent in (1, 5, 50, 95, 99):
        assert found[f"luma_p{percent:02}"] == np.percentile(luma, percent, method="inverted_cdf")
    _, counts = np.unique(luma, return_counts=True)
    assert found["entropy"] == pytest.approx(-sum(share * np.log2(share) for share in counts / luma.size), abs=1e-4)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1)])
def test_statistics_of_the_smallest_images(size: tuple[int, int]) -> None:
    found = statistics(Image.new("RGB", size, (10, 20, 30)))
    assert found["luma_std"] == found["edge_energy"] == found["entropy"] == 0
    assert found["saturation"] == 20


def test_statistics_are_of_the_reduced_image() -> None:
    large = picture(4, 1000, 800)
    reduced = large.copy()
    reduced.thumbnail((STATISTICS_SIDE, STATISTICS_SIDE), Image.Resampling.BILINEAR)
    assert statistics(large) == statistics(reduced)
    assert large.size == (1000, 800)


def test_pixel_hash_knows_pixels_and_shape_only() -> None:
    image = picture(5)
    png, bmp = encoded(image, "PNG"), encoded(image, "BMP")
    assert probe(png)["pixel_hash"] == probe(bmp)["pixel_hash"] == pixel_hash(image)
    turned = image.transpose(Image.Transpose.ROTATE_90)
    assert probe(encoded(turned, "PNG"))["pixel_hash"] != pixel_hash(image)
    wide, tall = Image.new("RGB", (40, 10)), Image.new("RGB", (10, 40))
    assert pixel_hash(wide) != pixel_hash(tall)
    gray = image.convert("L")
    assert probe(encoded(gray, "PNG"))["pixel_hash"] == probe(encoded(gray.convert("RGB"), "PNG"))["pixel_hash"]


def test_an_image_is_measured_upright() -> None:
    [turned] = [kind for kind in good_kinds() if kind.name == "turned.jpg"]
    facts = Facts(**probe(turned.data))
    assert (facts.width, facts.height, facts.sides) == (48, 64, (48, 64))


def test_the_second_picture_of_a_phone_is_no_animation() -> None:
    both = encoded(picture(6), "MPO", save_all=True, append_images=[picture(7)])
    facts = Facts(**probe(both))
    assert (facts.format, facts.frames, facts.trailing_bytes, facts.operations) == ("JPEG", 1, 0, [])


def test_thumbnails_are_new_and_small() -> None:
    secret = b"taken at home"
    data = encoded(picture(8, 640, 480), "JPEG", comment=secret)
    drawn = thumbnail(data) or {}
    assert drawn["size"] == (80, 60)
    assert secret not in base64.b64decode(drawn["rgb"])


def test_a_damaged_file_shows_what_it_has() -> None:
    data = encoded(picture(9, 640, 480), "JPEG")
    half = data[: len(data) // 2]
    assert thumbnail(half)
    assert thumbnail(b"<html>") is None
    assert probe(half)["reason"] == "truncated"  # as before: thumbnails loosen nothing


def test_probing_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind in good_kinds() + bad_kinds():
            probe(kind.data)
