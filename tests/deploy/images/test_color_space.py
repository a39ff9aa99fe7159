"""Whatever a file says of its colors without a profile is recorded when it is not sRGB, and nothing else is."""

import io
import itertools
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from deploy.errors import ImageError
from deploy.images.preprocess import LOSSES, canonicalize, open_image
from tests.deploy.conftest import chunk, png
from tests.deploy.images.test_preprocess import matrix_profile

RGB = np.random.default_rng(0).integers(0, 256, (12, 17, 3), dtype=np.uint8)
SRGB_PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
SRGB_CHROMATICITY = (31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
ADOBE_CHROMATICITY = (31270, 32900, 64000, 33000, 21000, 71000, 15000, 6000)
IGNORED = "color_space_ignored"


def found(data: bytes) -> list[str]:
    image, operations = canonicalize(open_image(data))
    assert len(operations) == len(set(operations))
    assert image.mode == "RGB"
    return operations


def profile(content: bytes) -> bytes:
    return chunk(b"iCCP", b"profile\0\0" + zlib.compress(content))


CHUNKS: dict[str, tuple[bytes, list[str]]] = {
    "nothing": (b"", []),
    "gamma of sRGB": (chunk(b"gAMA", struct.pack(">I", 45455)), []),
    "no gamma": (chunk(b"gAMA", struct.pack(">I", 0)), []),
    "linear": (chunk(b"gAMA", struct.pack(">I", 100_000)), [IGNORED]),
    "gamma 1.8": (chunk(b"gAMA", struct.pack(">I", 55_556)), [IGNORED]),
    "primaries of sRGB": (chunk(b"cHRM", struct.pack(">8I", *SRGB_CHROMATICITY)), []),
    "primaries of Adobe RGB": (chunk(b"cHRM", struct.pack(">8I", *ADOBE_CHROMATICITY)), [IGNORED]),
    "sRGB comes before gamma": (chunk(b"sRGB", b"\0") + chunk(b"gAMA", struct.pack(">I", 100_000)), []),
    "a profile comes before gamma": (
        profile(matrix_profile()) + chunk(b"gAMA", struct.pack(">I", 100_000)),
        ["icc_to_srgb"],
    ),
    "codes of sRGB": (chunk(b"cICP", bytes([1, 13, 0, 1])), []),
    "codes of BT.2100 PQ": (chunk(b"cICP", bytes([9, 16, 0, 1])), [IGNORED]),
    "codes come before a profile": (chunk(b"cICP", bytes([12, 13, 0, 1])) + profile(SRGB_PROFILE), [IGNORED]),
    "significant bits": (chunk(b"sBIT", bytes([5, 6, 5])), []),
    "damaged profile": (profile(matrix_profile()[:200]), ["icc_ignored"]),
}


@pytest.mark.parametrize("name", CHUNKS)
def test_png_chunks(name: str) -> None:
    extra, expected = CHUNKS[name]
    assert found(png(8, 2, RGB, extra)) == expected


PNG_KINDS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
BANDS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


@pytest.mark.parametrize(
    ("color", "depth"), [(color, depth) for color, depths in PNG_KINDS.items() for depth in depths]
)
@pytest.mark.parametrize("chunks", ["nothing", "linear", "codes of BT.2100 PQ", "damaged profile"])
def test_every_kind_of_png_is_decoded_rightly_and_every_loss_is_recorded(color: int, depth: int, chunks: str) -> None:
    """Against the samples that were stored: colors of the palette, 0 to the largest value otherwise."""
    random = np.random.default_rng(depth + 100 * color)
    samples = random.integers(0, 1 << depth, (9, 13, BANDS[color]))
    samples[0, 0, -1] = (1 << depth) - 1  # uses the whole range, and is opaque somewhere
    samples[1, 1] = (1 << depth) - 1
    palette = random.integers(0, 256, (256, 3), dtype=np.uint8)
    extra, noted = CHUNKS[chunks]
    extra += chunk(b"PLTE", palette[: 1 << depth].tobytes()) if color == 3 else b""
    data = png(depth, color, packed(samples, depth), extra, size=(13, 9))
    image, operations = canonicalize(open_image(data))
    levels = palette[samples[..., 0]].astype(float) if color == 3 else samples * (255 / ((1 << depth) - 1))
    colors = levels[..., :3] if levels.shape[2] >= 3 else levels[..., :1].repeat(3, axis=2)
    share = levels[..., -1:] / 255 if color in (4, 6) else 1.0
    assert np.abs(np.asarray(image) - (colors * share + 255 * (1 - share))).max() <= 2
    assert ("uint16_to_uint8" in operations) == (depth == 16)
    assert ("alpha_on_white" in operations) == (color in (4, 6))
    assert [name for name in operations if name in LOSSES] == noted


@pytest.mark.parametrize(("color", "depth"), [(0, 1), (0, 2), (0, 4), (0, 8), (0, 16), (2, 8)])
def test_the_transparent_color_of_a_png_is_white_and_no_other_is(color: int, depth: int) -> None:
    """The key of a tRNS chunk has the depth of the samples (PNG, third edition, 11.3.1.1)."""
    bands, full = BANDS[color], (1 << depth) - 1
    samples = np.random.default_rng(depth).integers(0, full, (9, 13, bands), endpoint=True)
    key = samples[4, 5] = samples[7, 2] = full // 3
    samples[0, 0] = key + 1  # of 16 bits, one that has the same high byte
    extra = chunk(b"tRNS", np.full(bands, full // 3, ">u2").tobytes())
    image, operations = canonicalize(open_image(png(depth, color, packed(samples, depth), extra, size=(13, 9))))
    levels = np.where((samples == key).all(axis=2, keepdims=True), 255, samples * (255 / full))
    assert np.abs(np.asarray(image) - levels).max() <= 1
    assert "alpha_on_white" in operations


def test_a_transparent_color_of_three_times_16_bits_is_refused() -> None:
    """Pillow keeps the high bytes alone, and colors that differ below would be transparent too."""
    samples = np.random.default_rng(0).integers(0, 1 << 16, (9, 13, 3))
    extra = chunk(b"tRNS", samples[4, 5].astype(">u2").tobytes())
    with pytest.raises(ImageError, match="a PNG of 16-bit color with a transparent color is not supported") as refused:
        canonicalize(open_image(png(16, 2, packed(samples, 16), extra, size=(13, 9))))
    assert refused.value.reason == "unsupported_layout"


def packed(samples: Any, depth: int) -> Any:
    if depth == 16:
        return samples.reshape(len(samples), -1).astype(">u2")
    rows = samples.reshape(len(samples), -1).astype(np.uint8)
    if depth == 8:
        return rows
    bits = np.unpackbits(rows[..., np.newaxis], axis=2)[..., 8 - depth :]
    return np.packbits(bits.reshape(len(rows), -1), axis=1)


def test_tiff_tags() -> None:
    tifffile = pytest.importorskip("tifffile", reason="tifffile is not installed: run `make .venv/installed`")
    adobe = [value / 1e5 for value in ADOBE_CHROMATICITY]
    srgb = [value / 1e5 for value in SRGB_CHROMATICITY]
    x = np.linspace(0, 1, 256)
    curve = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)

    def rational(values: list[float]) -> list[int]:
        return list(itertools.chain.from_iterable((round(value * 10_000), 10_000) for value in values))

    tags = {
        "primaries of sRGB": ((319, "2I", 6, rational(srgb[2:]), True), False),
        "other primaries": ((319, "2I", 6, rational(adobe[2:]), True), True),
        "white of sRGB": ((318, "2I", 2, rational(srgb[:2]), True), False),
        "D50": ((318, "2I", 2, rational([0.3457, 0.3585]), True), True),
        "curve of sRGB": ((301, "H", 768, list(np.tile((curve * 65535).astype(int), 3)), True), False),
        "linear": ((301, "H", 768, list(np.tile((x * 65535).astype(int), 3)), True), True),
    }
    for name, (tag, differs) in tags.items():
        for given in (None, matrix_profile()):
            content = io.BytesIO()
            tifffile.imwrite(content, RGB, photometric="rgb", extratags=[tag], iccprofile=given)
            assert (IGNORED in found(content.getvalue())) == (differs and given is None), name


def bmp(kind: bytes, ends: list[float]) -> bytes:
    """With a BITMAPV4HEADER, whose color space type is ``kind`` and whose endpoints are X, Y and Z of three colors."""
    header = struct.pack("<IiiHHIIiiII", 108, 17, 12, 1, 24, 0, 0, 2835, 2835, 0, 0) + bytes(16) + kind
    header += struct.pack("<9i", *(round(value * 2**30) for value in ends)) + bytes(12)
    rows = b"".join(row[:, ::-1].tobytes() + bytes(1) for row in RGB[::-1])
    return struct.pack("<2sIHHI", b"BM", 14 + len(header) + len(rows), 0, 0, 14 + len(header)) + header + rows


@pytest.mark.parametrize(
    ("kind", "ends", "expected"),
    [
        (b"BGRs", [0.0] * 9, []),  # sRGB
        (b" niW", [0.0] * 9, []),
        (bytes(4), [0.0] * 9, []),
        (bytes(4), [0.64, 0.33, 0.03, 0.30, 0.60, 0.10, 0.15, 0.06, 0.79], []),
        (bytes(4), [0.64, 0.33, 0.03, 0.21, 0.71, 0.08, 0.15, 0.06, 0.79], [IGNORED]),
        (b"DEBM", [0.0] * 9, [IGNORED]),
        (b"KNIL", [0.0] * 9, [IGNORED]),
    ],
)
def test_bmp_headers(kind: bytes, ends: list[float], expected: list[str]) -> None:
    data = bmp(kind, ends)
    assert found(data) == expected
    assert np.array_equal(np.asarray(canonicalize(open_image(data))[0]), RGB)


@pytest.mark.parametrize("format", ["JPEG", "WEBP"])
def test_adobe_rgb_by_exif_alone(format: str) -> None:
    for index, given, expected in (
        ("R98", None, []),
        ("R03", None, [IGNORED]),
        ("R03", matrix_profile(), ["icc_to_srgb"]),
    ):
        exif = Image.Exif()
        exif.get_ifd(0x8769)[0xA001] = 0xFFFF
        exif.get_ifd(0x8769)[0xA005] = {1: index}
        content = io.BytesIO()
        Image.fromarray(RGB).save(content, format, exif=exif, icc_profile=given)
        assert found(content.getvalue()) == expected


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "PNG", "TIFF"])
def test_a_profile_is_applied_in_every_format(format: str) -> None:
    for given, expected in (
        (matrix_profile(), ["icc_to_srgb"]),
        (SRGB_PROFILE, []),
        (matrix_profile(b"GRAY"), ["icc_ignored"]),
    ):
        content = io.BytesIO()
        Image.fromarray(RGB).save(content, format, icc_profile=given)
        assert found(content.getvalue()) == expected


def test_a_profile_in_a_gif_is_recorded() -> None:
    content = io.BytesIO()
    Image.fromarray(RGB).quantize(64).save(content, "GIF")
    plain = content.getvalue()
    start = 13 + (3 << (plain[10] & 7) + 1)
    block = b"\x21\xff\x0bICCRGBG1012" + b"\x04abcd\0"
    assert IGNORED not in found(plain)
    assert IGNORED in found(plain[:start] + block + plain[start:])


def test_damage_in_what_is_said_of_colors_does_not_damage_the_image() -> None:
    for extra in (chunk(b"cICP", b""), chunk(b"cICP", b"\1"), chunk(b"gAMA", struct.pack(">I", 2**31))):
        assert IGNORED in found(png(8, 2, RGB, extra)) or extra == chunk(b"cICP", b"")
