"""Every arrangement of a TIFF is decoded as tifffile decodes it, or refused by name; what is left out is recorded."""

import io
import itertools
import re
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from deploy.errors import ImageError
from deploy.images.preprocess import LOSSES, canonicalize, decode, open_image
from tests.deploy.conftest import chunk, png
from tests.deploy.images.test_preprocess import matrix_profile, wide_to_srgb
from tests.repetitions import repeated, repetitions

tifffile = pytest.importorskip("tifffile", reason="tifffile is not installed: run `make .venv/installed`")

Pixels = NDArray[Any]

ROWS, COLUMNS = np.mgrid[:40, :60]
RGB = np.dstack([COLUMNS * 4, ROWS * 6, (ROWS + COLUMNS) * 2]).astype(np.uint8)
RGB[:20, :20] = (220, 30, 40)
GRAY = RGB[..., 1]
ALPHA = np.where(COLUMNS < 30, 255, 128).astype(np.uint8)
COLORS = {"minisblack": GRAY[..., None], "miniswhite": 255 - GRAY[..., None], "rgb": RGB}
COLORS["separated"] = np.dstack([RGB, RGB[..., 0] // 2])
EXTRAS = (None, "unassalpha", "assocalpha", "unspecified")
NAMED = r"unsupported_layout: a TIFF of [1-6] bands? of (8|16) bits( in separate planes)?, declared as .*; store gray"


def write(pixels: Pixels, **options: Any) -> bytes:
    content = io.BytesIO()
    tifffile.imwrite(content, pixels, **options)
    return content.getvalue()


def seen(stored: Pixels, photometric: str, extra: str | None) -> Pixels:
    """What a viewer shows on white of stored samples [height, width, bands] from 0 to 255, by TIFF 6.0."""
    stored = stored.astype(float)
    if photometric == "separated":
        rgb = (255 - stored[..., :3]) * (255 - stored[..., 3:4]) / 255
    else:
        rgb = stored[..., :3] if photometric == "rgb" else stored[..., :1].repeat(3, axis=2)
        rgb = 255 - rgb if photometric == "miniswhite" else rgb
    if extra not in ("unassalpha", "assocalpha"):
        return rgb
    share = stored[..., -1:] / 255
    return (rgb if extra == "assocalpha" else rgb * share) + 255 * (1 - share)


def arrangements() -> Iterator[Any]:
    for photometric, bits, extra in itertools.product(COLORS, (8, 16), EXTRAS):
        if (photometric, extra) != ("miniswhite", "assocalpha"):
            yield pytest.param(photometric, bits, extra, id=f"{photometric}-{bits}-{extra}")


# Bands in one plane or several, compression, predictor, tile, byte order.
LAYOUTS = [
    *itertools.product(("contig", "separate"), (None, "adobe_deflate", "lzma"), (False, True), (None, (16, 16)), "<>")
]
EVERY = repetitions(5, all=1)  # layout of each arrangement; the next arrangement begins with the next layout


@repeated
@pytest.mark.seconds
@pytest.mark.parametrize(("photometric", "bits", "extra"), list(arrangements()))
def test_each_arrangement_is_decoded_rightly_or_refused(photometric: str, bits: int, extra: str | None) -> None:
    bands = COLORS[photometric]
    if extra == "assocalpha":
        bands = np.round(bands * (ALPHA[..., None] / 255)).astype(np.uint8)
    bands = bands if extra is None else np.dstack([bands, ALPHA])
    samples = bands.astype(np.uint16) * 257 if bits == 16 else bands
    possible = [
        (planes, compression, predictor, tile, order)
        for planes, compression, predictor, tile, order in LAYOUTS
        if not (predictor and compression is None) and not (bands.shape[2] == 1 and planes == "separate")
    ]
    first = (list(COLORS).index(photometric) + EXTRAS.index(extra) + bits // 8) % EVERY
    decoded, refusals = 0, list[str]()
    for planes, compression, predictor, tile, order in possible[first::EVERY]:
        options = {"photometric": photometric, "compression": compression, "tile": tile, "byteorder": order}
        options |= {"predictor": predictor or None, "extrasamples": None if extra is None else [extra]}
        stored = np.ascontiguousarray(samples.transpose(2, 0, 1)) if planes == "separate" else samples
        if bands.shape[2] == 1:
            stored = samples[..., 0]
        else:
            options["planarconfig"] = planes
        data = write(stored, **options)
        assert np.array_equal(tifffile.imread(io.BytesIO(data)), stored), "the file is what it should be"
        try:
            image, operations = canonicalize(open_image(data))
        except ImageError as error:
            refusals.append(f"{error.reason}: {error}")
            continue
        decoded += 1
        difference = np.abs(np.asarray(image) - seen(bands, photometric, extra)).max()
        assert difference <= 2, f"{options}: {difference}"
        assert ("bands_dropped" in operations) == (extra == "unspecified"), options
        assert ("uint16_to_uint8" in operations) == (bits == 16), options
    common = photometric in ("minisblack", "rgb") and (bits == 8 or photometric == "rgb")
    assert not [refusal for refusal in refusals if not re.match(NAMED, refusal)]
    assert decoded >= (10 // EVERY if common or extra is None else 0)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("extra", [None, "unassalpha", "unspecified"])
@pytest.mark.parametrize("profile", ["wide", "srgb", "gray", "damaged"])
def test_a_profile_is_applied_or_left_out_in_every_arrangement(profile: str, extra: str | None, bits: int) -> None:
    profiles = {"wide": matrix_profile(), "gray": matrix_profile(b"GRAY"), "damaged": matrix_profile()[:200]}
    profiles["srgb"] = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    bands = RGB if extra is None else np.dstack([RGB, ALPHA])
    shown = np.dstack([wide_to_srgb(RGB), ALPHA]) if profile == "wide" else np.dstack([RGB, ALPHA])
    expected = seen(shown, "rgb", extra)
    operation = {"wide": "icc_to_srgb", "gray": "icc_ignored", "damaged": "icc_ignored"}.get(profile)
    decoded, refusals = 0, list[str]()
    for planes, compression, predictor in itertools.product(
        ("contig", "separate"), (None, "adobe_deflate", "lzma"), (False, True)
    ):
        if predictor and compression is None:
            continue
        samples = bands.astype(np.uint16) * 257 if bits == 16 else bands
        stored = np.ascontiguousarray(samples.transpose(2, 0, 1)) if planes == "separate" else samples
        options = {
            "photometric": "rgb",
            "planarconfig": planes,
            "compression": compression,
            "predictor": predictor or None,
        }
        options |= {"extrasamples": None if extra is None else [extra], "iccprofile": profiles[profile]}
        try:
            image, operations = canonicalize(open_image(write(stored, **options)))
        except ImageError as error:
            refusals.append(f"{error.reason}: {error}")
            continue
        decoded += 1
        assert np.abs(np.asarray(image) - expected).max() <= 3, options
        assert {name for name in operations if name.startswith("icc")} == ({operation} if operation else set()), options
        assert "color_space_ignored" not in operations
    assert not [refusal for refusal in refusals if not re.match(NAMED, refusal)]
    assert decoded >= 5


def test_five_bands_as_gray_are_named() -> None:
    for bands, bits in itertools.product((3, 4, 5), (np.uint8, np.uint16)):
        data = write(np.zeros((9, 9, bands), bits), photometric="minisblack", planarconfig="contig")
        with pytest.raises(ImageError, match=f"a TIFF of {bands} bands of (8|16) bits, declared as gray, is not") as no:
            decode(data)
        assert no.value.reason == "unsupported_layout"


@pytest.mark.parametrize("kind", ["i1", "i2", "u4", "f2", "f4", "f8"])
@pytest.mark.parametrize("bands", [1, 3])
def test_numbers_without_a_known_range_are_refused(kind: str, bands: int) -> None:
    pixels = np.full((9, 9, bands), -3 if kind[0] == "i" else 3, kind)
    data = write(pixels if bands == 3 else pixels[..., 0], photometric="rgb" if bands == 3 else "minisblack")
    with pytest.raises(ImageError, match="store 8 or 16 bits") as refused:
        decode(data)
    assert refused.value.reason == "unsupported_depth"


@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
@pytest.mark.parametrize("bits", [9, 10, 11, 12, 13, 14, 15])
def test_a_declared_range_is_scaled(bits: int, photometric: str) -> None:
    full = (1 << bits) - 1
    samples = (GRAY.astype(np.uint32) * full // 255).astype(np.uint16)
    data = write(samples, photometric=photometric, extratags=[(281, 3, 1, full, True)])
    image, operations = canonicalize(open_image(data))
    shown = samples if photometric == "minisblack" else full - samples
    assert np.abs(np.asarray(image)[..., 0] - shown * (255 / full)).max() <= 0.5
    assert operations == [f"uint{bits}_to_uint8", "gray_to_rgb"]
    samples[0, 0] = full + 1  # more than it declares
    _, operations = canonicalize(open_image(write(samples, extratags=[(281, 3, 1, full, True)])))
    assert operations[0] == "uint16_to_uint8"


@pytest.mark.parametrize(("bits", "note"), [(8, 12), (10, 12), (12, 12), (14, 14), (15, None), (16, None)])
def test_bits_that_no_sample_uses_are_noted(bits: int, note: int | None) -> None:
    samples = (GRAY.astype(np.uint32) * ((1 << bits) - 1) // GRAY.max()).astype(np.uint16)
    color = np.dstack([samples // 2, samples, samples // 3]).astype(">u2")
    for data in (write(samples, photometric="minisblack"), png(16, 0, samples.astype(">u2")), png(16, 2, color)):
        image, operations = canonicalize(open_image(data))
        assert [name for name in operations if name in LOSSES] == ([] if note is None else [f"uses_{note}_of_16_bits"])
        assert np.abs(np.asarray(image)[..., 1] - samples / 257).max() <= 1


def test_overviews_are_not_pages() -> None:
    content = io.BytesIO()
    with tifffile.TiffWriter(content) as file:
        file.write(RGB, photometric="rgb", tile=(16, 16))
        file.write(RGB[::2, ::2], photometric="rgb", tile=(16, 16), subfiletype=1)
        file.write(RGB[::4, ::4], photometric="rgb", tile=(16, 16), subfiletype=1)
    image, operations = canonicalize(open_image(content.getvalue()))
    assert operations == []
    assert np.array_equal(np.asarray(image), RGB)
    content = io.BytesIO()
    with tifffile.TiffWriter(content) as file:
        file.write(RGB[::4, ::4], photometric="rgb", subfiletype=1)
        file.write(RGB, photometric="rgb")
    with pytest.raises(ImageError, match="its first page is a reduced copy of a later one") as refused:
        decode(content.getvalue())
    assert refused.value.reason == "unsupported_layout"
    content = io.BytesIO()
    with tifffile.TiffWriter(content) as file:
        file.write(RGB, photometric="rgb")
        file.write(255 - RGB, photometric="rgb", subfiletype=1)
        file.write(255 - RGB, photometric="rgb")
    assert canonicalize(open_image(content.getvalue()))[1] == ["first_frame"]


@pytest.mark.parametrize("tile", [None, (4, 16, 16)])
def test_a_volume_is_refused(tile: tuple[int, int, int] | None) -> None:
    """Slices of one picture, by the tag ImageDepth: Pillow knows it not, and shows some other slice."""
    volume = np.arange(4, dtype=np.uint8)[:, None, None] * 60 + np.zeros((4, 32, 32), np.uint8)
    with pytest.raises(ImageError, match="a TIFF of 4 slices") as refused:
        decode(write(volume, photometric="minisblack", volumetric=True, tile=tile))
    assert refused.value.reason == "unsupported_layout"


def test_a_palette_of_8_bits_is_refused_and_one_of_16_bits_is_not() -> None:
    colors = np.random.default_rng(0).integers(0, 256, (3, 256)).astype(np.uint16)
    data = write(GRAY, photometric="palette", colormap=colors * 257)
    assert np.array_equal(decode(data), colors.T[GRAY])
    with pytest.raises(ImageError, match="palette ends at 255") as refused:
        decode(write(GRAY, photometric="palette", colormap=colors))
    assert refused.value.reason == "unsupported_layout"


def test_a_chain_of_directories_ends() -> None:
    """One that points to itself, one that leads out of the file, and one that is longer than any file needs."""
    entry = struct.pack("<HHHII", 1, 254, 4, 1, 1)
    data = write(RGB, photometric="rgb")
    (first,) = struct.unpack_from("<I", data, 4)
    (entries,) = struct.unpack_from("<H", data, first)
    end = first + 2 + 12 * entries
    for target in (first, 1 << 31):
        looped = data[:end] + struct.pack("<I", target) + data[end + 4 :]
        assert np.array_equal(decode(looped), RGB)
    chain = b"".join(entry + struct.pack("<I", len(data) + 18 * number) for number in range(1, 50_000))
    long = data[:end] + struct.pack("<I", len(data)) + data[end + 4 :] + chain
    assert np.array_equal(np.asarray(canonicalize(open_image(long))[0]), RGB)


def test_a_profile_is_judged_by_what_it_does_and_not_by_its_name() -> None:
    named = matrix_profile().replace(b"wide!\0", b"sRGB?\0")
    plain = png(8, 2, RGB)
    tagged = Image.open(io.BytesIO(plain))
    content = io.BytesIO()
    tagged.save(content, "PNG", icc_profile=named)
    image, operations = canonicalize(open_image(content.getvalue()))
    expected, _ = canonicalize(open_image(_with_profile(plain, matrix_profile())))
    assert operations == ["icc_to_srgb"]
    assert np.array_equal(np.asarray(image), np.asarray(expected))
    assert not np.array_equal(np.asarray(image), RGB)


def _with_profile(data: bytes, profile: bytes) -> bytes:
    import zlib

    return data[:33] + chunk(b"iCCP", b"profile\0\0" + zlib.compress(profile)) + data[33:]
