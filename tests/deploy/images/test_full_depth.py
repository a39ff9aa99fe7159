"""Images at full depth, held against numpy, tifffile and a dense resize."""

import io
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from deploy.errors import ArgumentError, ImageError
from deploy.images import npy, tiff_channels
from deploy.images.full_depth import FULL, open_full_depth, read_full_depth, resize_samples
from deploy.images.inputs import read_pixels
from deploy.images.preprocess import Preprocessing, reduce_samples
from deploy.images.preview import preview, stretched, summary
from tests.deploy.conftest import encoded, png

WIDE = np.random.default_rng(0).integers(0, 65_536, (12, 17, 5), np.uint16)
NARROW = (WIDE >> 8).astype(np.uint8)


def saved(array: NDArray[Any]) -> bytes:
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


def tiff(array: NDArray[Any], **options: Any) -> bytes:
    content = io.BytesIO()
    tifffile.imwrite(content, array, **{"photometric": "minisblack", **options})
    return content.getvalue()


def reason_of(data: bytes, channels: int, **options: Any) -> str:
    with pytest.raises(ImageError) as caught:
        open_full_depth(data, channels, **options).read()
    return f"{caught.value.reason}: {caught.value}"


@pytest.mark.parametrize("pixels", [WIDE, NARROW])
@pytest.mark.parametrize("order", ["C", "F"])
def test_an_array_is_read_with_its_channels_last_or_first(pixels: NDArray[Any], order: Any) -> None:
    expected = pixels.astype(np.uint32) * (257 if pixels.dtype == np.uint8 else 1)
    for array in (pixels, np.moveaxis(pixels, 2, 0), pixels[np.newaxis]):
        found = read_full_depth(saved(np.asarray(array, order=order)), 5)
        assert found.dtype == np.uint16
        assert np.array_equal(found, expected)


def test_a_plane_is_one_channel_in_either_byte_order() -> None:
    for array in (WIDE[:, :, 0], WIDE[:, :, 0].astype(">u2"), WIDE[:, :, :1], WIDE[np.newaxis, :, :, 0]):
        assert np.array_equal(read_full_depth(saved(array), 1), WIDE[:, :, :1])


def test_what_is_stored_has_one_reading_whatever_its_sides() -> None:
    cube = np.random.default_rng(1).integers(0, 65_536, (5, 5, 5), np.uint16)
    assert "channels first or last" in reason_of(saved(cube), 5)
    data = npy.array_bytes(cube)
    assert np.array_equal(npy.stored_samples(data), cube)
    assert np.array_equal(read_full_depth(data, 5), cube)
    assert np.array_equal(np.load(io.BytesIO(data)), cube[np.newaxis])


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (saved(WIDE[:, :, :3]), "wrong_channels: an array [12, 17, 3] has 3 channels; it has to have 5"),
        (saved(WIDE[:, :, 0]), "wrong_channels: an array [12, 17] has 1 channel; it"),
        (saved(WIDE.astype(np.float32)), "unsupported_depth: an array of float32"),
        (saved(WIDE.astype(np.int16)), "unsupported_depth: an array of int16"),
        (saved(np.zeros(3, np.uint8)), "unsupported_layout: an array [3]"),
        (saved(np.zeros((2, 4, 4, 5), np.uint8)), "unsupported_layout: an array [2, 4, 4, 5]"),
        (saved(np.zeros((0, 4, 5), np.uint8)), "unsupported_layout"),
        (saved(WIDE)[:-1], "truncated: the file has 2,039 of 2,040 bytes"),
        (saved(WIDE) + b"more", "corrupt: 4 bytes too many: store one"),
        (saved(WIDE)[:40], "corrupt: its header"),
        (saved(np.array([[{}]], object)), "unsupported_depth: an array of object"),
    ],
)
def test_other_arrays_are_refused_by_name(data: bytes, said: str) -> None:
    assert reason_of(data, 5).startswith(said)


def test_a_header_that_claims_more_than_the_file_takes_no_memory() -> None:
    header = io.BytesIO()
    claim = {"descr": "<u2", "fortran_order": False, "shape": (10**6, 10**6, 5)}
    np.lib.format.write_array_header_1_0(header, claim)
    assert reason_of(header.getvalue(), 5).startswith("bomb: 1000000 x 1000000 pixels of 5 channels")
    assert reason_of(header.getvalue(), 5, max_pixels=10**13).startswith("truncated")


@pytest.mark.parametrize("shape", [(-1, -1, 5), (-4, -4, 5), (-4, 4, 5), (True, True, 5), (10**400, 4, 5)])
@pytest.mark.parametrize("follows", [10, 160])
def test_sides_that_no_array_has_are_refused(shape: tuple[int, ...], follows: int) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<u2", "fortran_order": False, "shape": shape})
    assert reason_of(header.getvalue() + bytes(follows), 5).startswith("corrupt: its header gives sides that no array")


def test_the_limit_of_pixels_is_one_of_samples() -> None:
    data = saved(WIDE)
    assert open_full_depth(data, 5, max_pixels=340).width == 17  # 340 * 3 samples
    assert reason_of(data, 5, max_pixels=339).startswith("bomb")
    assert open_full_depth(saved(WIDE[:, :, 0]), 1, max_pixels=204).height == 12
    assert reason_of(saved(WIDE[:, :, 0]), 1, max_pixels=203).startswith("bomb")


@pytest.mark.parametrize("pixels", [WIDE, NARROW])
@pytest.mark.parametrize("compression", [None, "zlib", "deflate"])
@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("layout", ["contig", "separate", "pages", "tiles"])
@pytest.mark.parametrize("channels", [2, 3, 4, 5])
def test_a_tiff_gives_the_samples_that_tifffile_reads(
    pixels: NDArray[Any], compression: str | None, byteorder: Any, layout: str, channels: int
) -> None:
    pixels = pixels[:, :, :channels]
    options: dict[str, Any] = {"compression": compression, "byteorder": byteorder, "metadata": None}
    if layout == "pages":
        content = io.BytesIO()
        with tifffile.TiffWriter(content, byteorder=byteorder) as writer:
            for plane in np.moveaxis(pixels, 2, 0):
                writer.write(plane, photometric="minisblack", compression=compression, metadata=None)
        data = content.getvalue()
    elif layout == "separate":
        data = tiff(np.moveaxis(pixels, 2, 0), planarconfig="separate", **options)
    else:
        data = tiff(pixels, planarconfig="contig", **options, **({"tile": (16, 16)} if layout == "tiles" else {}))
    found = read_full_depth(data, channels)
    assert np.array_equal(found, pixels.astype(np.uint32) * (257 if pixels.dtype == np.uint8 else 1))
    opened = open_full_depth(data, channels)
    assert (opened.width, opened.height, opened.bits, opened.frames) == (17, 12, 8 * pixels.itemsize, 1)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (tiff(WIDE[:, :, :3], planarconfig="contig"), "wrong_channels: a TIFF of 3 channels; it has to have 5"),
        (tiff(WIDE.astype(np.float32), planarconfig="contig"), "unsupported_depth: a TIFF of samples of type float32"),
        (
            tiff(WIDE, planarconfig="contig", extratags=[(274, 3, 1, 6, True)]),
            "unsupported_layout: it is stored turned",
        ),
        (
            tiff(WIDE, planarconfig="contig", compression="lzma"),
            "unsupported_format: a TIFF of several channels in LZMA",
        ),
        (tiff(WIDE, planarconfig="contig", compression="zlib")[:-400], "corrupt: the file is damaged"),
        (
            tiff(WIDE, planarconfig="contig", photometric="miniswhite"),
            "unsupported_layout: samples declared as MINISWHITE",
        ),
        (b"II*\0" + bytes(20), "corrupt"),
    ],
)
def test_other_tiffs_are_refused_by_name(data: bytes, said: str) -> None:
    assert reason_of(data, 5).startswith(said)


def test_a_strip_that_unpacks_to_more_than_the_picture_is_refused_before_it_takes_memory() -> None:
    small = np.zeros((12, 17, 5), np.uint16)
    data = bytearray(tiff(small, planarconfig="contig", compression="zlib", rowsperstrip=12, metadata=None))
    with tifffile.TiffFile(io.BytesIO(bytes(data))) as file:
        tag = file.pages[0].aspage().tags[257]
        place = tag.valueoffset
    data[place : place + 2] = (1).to_bytes(2, "little")  # 1 row, of a strip with 12
    with tifffile.TiffFile(io.BytesIO(bytes(data))) as file:
        assert file.pages[0].aspage().imagelength == 1
    strips = file.pages[0].aspage().tags[278].valueoffset
    data[strips : strips + 2] = (1).to_bytes(2, "little")
    assert "larger than its tags say" in reason_of(bytes(data), 5)


def with_tag(data: bytes, tag: int, place: int, value: int) -> bytes:
    """A TIFF of one page; ``place`` is 4 for the number of values, or 8 for a single value of 4 bytes."""
    changed = bytearray(data)
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        start = file.pages[0].aspage().tags[tag].offset + place
    changed[start : start + 4] = value.to_bytes(4, "little")
    return bytes(changed)


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("tile", [None, (16, 16)])
def test_a_tiff_that_names_too_few_strips_or_tiles_is_refused(compression: str | None, tile: Any) -> None:
    cube = np.tile(WIDE, (3, 3, 1))
    options: dict[str, Any] = {"tile": tile} if tile else {"rowsperstrip": 2}
    data = tiff(cube, planarconfig="contig", compression=compression, metadata=None, **options)
    assert np.array_equal(read_full_depth(data, 5), cube)
    for tag in (324, 325) if tile else (273, 279):
        assert "truncated: its tags find 3 of" in reason_of(with_tag(data, tag, 4, 3), 5)


def test_a_strip_without_data_is_refused() -> None:
    data = tiff(WIDE, planarconfig="contig", compression="zlib", rowsperstrip=12, metadata=None)
    for tag in (273, 279):
        assert reason_of(with_tag(data, tag, 8, 0), 5).startswith("truncated: its tags find 0 of 1 strip;")


def test_a_tile_far_larger_than_the_picture_is_refused_before_it_takes_memory() -> None:
    data = tiff(WIDE, planarconfig="contig", compression="zlib", tile=(1024, 1024), metadata=None)
    assert np.array_equal(read_full_depth(data, 5), WIDE)
    data = tiff(WIDE, planarconfig="contig", compression="zlib", tile=(1024, 1040), metadata=None)
    assert reason_of(data, 5).startswith("bomb: its tiles of 1,040 x 1,024 pixels")


def test_damage_that_tifffile_warns_of_is_not_printed() -> None:
    code = "import sys; from deploy.images import full_depth; full_depth.read_full_depth(bytes.fromhex(sys.argv[1]), 5)"
    command = [sys.executable, "-c", code, (b"II*\0" + bytes(20)).hex()]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "ImageError" in ended.stderr
    assert "TiffPages" not in ended.stderr


def test_without_the_extra_a_tiff_of_channels_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiff_channels, "is_installed", lambda: False)
    assert reason_of(tiff(WIDE, planarconfig="contig"), 5) == f"unsupported_format: {tiff_channels.ADVICE}"
    assert np.array_equal(read_full_depth(tiff(WIDE[:, :, 0], compression="zlib"), 1), WIDE[:, :, :1])


@pytest.mark.parametrize("options", [{}, {"byteorder": ">"}, {"compression": "zlib"}, {"photometric": "miniswhite"}])
def test_gray_of_16_bits_keeps_every_bit(options: dict[str, Any]) -> None:
    gray = WIDE[:, :, 0]
    expected = FULL - gray if options.get("photometric") else gray
    assert np.array_equal(read_full_depth(tiff(gray, **options), 1)[:, :, 0], expected)
    assert np.array_equal(read_full_depth(encoded(gray), 1)[:, :, 0], gray)
    narrow = tiff(NARROW[:, :, 0], **options)
    shown = 255 - NARROW[:, :, 0] if options.get("photometric") else NARROW[:, :, 0]
    assert np.array_equal(read_full_depth(narrow, 1)[:, :, 0], shown * np.uint16(257))


def test_pictures_of_8_bits_keep_their_samples_and_transparency_is_a_fourth_channel() -> None:
    for channels in (1, 3, 4):
        pixels = NARROW[:, :, 0] if channels == 1 else np.ascontiguousarray(NARROW[:, :, :channels])
        samples, operations = open_full_depth(encoded(pixels), channels).read()
        assert np.array_equal(samples, pixels.reshape(12, 17, channels) * np.uint16(257))
        assert operations == ["uint8_to_uint16"]


def test_a_picture_is_turned_upright_as_its_exif_says() -> None:
    exif = Image.Exif()
    exif[274] = 6
    samples, operations = open_full_depth(encoded(NARROW[:, :, 0], exif=exif), 1).read()
    assert np.array_equal(samples[:, :, 0], np.rot90(NARROW[:, :, 0], -1) * np.uint16(257))
    assert operations == ["uint8_to_uint16", "exif_transpose"]


def test_pictures_whose_depth_pillow_cuts_are_refused() -> None:
    rows = np.random.default_rng(0).integers(0, 65_536, (4, 5, 3), np.uint16).astype(">u2")
    assert reason_of(png(16, 2, rows), 3).startswith("unsupported_depth: a PNG of 16-bit color would lose")
    palette = Image.fromarray(NARROW[:, :, 0]).convert("P")
    content = io.BytesIO()
    palette.save(content, "PNG")
    assert reason_of(content.getvalue(), 3).startswith("unsupported_layout: a PNG with pixels of type P")
    assert reason_of(encoded(NARROW[:, :, :3].copy()), 5).startswith("wrong_channels: a PNG of 3 channels")


def dense_resize(samples: NDArray[np.uint16], size: int, box: tuple[float, float, float, float]) -> NDArray[np.float64]:
    """Bilinear with antialiasing, by one dense float64 matrix per axis."""

    def weights(start: float, extent: float, length: int) -> NDArray[np.float64]:
        step = extent / size
        centers = start + (np.arange(size) + 0.5) * step
        reach = max(step, 1.0)
        found = np.maximum(0, 1 - np.abs(np.arange(length) + 0.5 - centers[:, None]) / reach)
        low, high = np.maximum(0, np.floor(centers - reach + 0.5)), np.minimum(length, np.floor(centers + reach + 0.5))
        inside = (np.arange(length) >= low[:, None]) & (np.arange(length) < high[:, None])
        return found * inside / (found * inside).sum(axis=1, keepdims=True)

    left, top, right, bottom = box
    rows, columns = weights(top, bottom - top, samples.shape[0]), weights(left, right - left, samples.shape[1])
    result: NDArray[np.float64] = np.einsum("ry,yxc,sx->rsc", rows, samples.astype(np.float64), columns)
    return result


@pytest.mark.parametrize("side", [5, 9, 30])
def test_a_resize_is_that_of_a_dense_product_to_within_one_of_65535_levels(side: int) -> None:
    large = np.random.default_rng(2).integers(0, 65_536, (40, 53, 5), np.uint16)
    box = (6.25, 0.0, 46.75, 40.0)
    found = resize_samples(large, (side, side), box).astype(float)
    assert np.abs(found - dense_resize(large, side, box)).max() <= 1.0


def test_preprocessing_gives_the_channels_and_no_background() -> None:
    preprocessing = Preprocessing(8, 10, channels=5)
    assert preprocessing.to_json() == {"size": 8, "resize": 10, "channels": 5}
    assert Preprocessing.from_json(preprocessing.to_json()) == preprocessing
    found = preprocessing.read(saved(WIDE))
    assert (found.shape, found.dtype) == ((8, 8, 5), np.uint16)
    assert np.array_equal(found, read_pixels(WIDE, preprocessing))
    assert np.array_equal(Preprocessing(12, 12, channels=5).apply(WIDE[:, :12]), WIDE[:, :12])
    for wrong in ({"channels": 0}, {"channels": 17}, {"channels": 2, "letterbox": True}):
        with pytest.raises(ArgumentError, match="needs 1 to 16 channels and no letterbox"):
            Preprocessing(8, 8, **wrong)  # type: ignore[arg-type]


def test_what_differs_in_the_low_byte_gives_other_pixels() -> None:
    other = WIDE ^ np.uint16(1)
    assert (other >> 8 == WIDE >> 8).all()
    preprocessing = Preprocessing(8, 8, channels=5)
    assert not np.array_equal(preprocessing.read(saved(WIDE)), preprocessing.read(saved(other)))
    assert np.array_equal(reduce_samples(WIDE, 12), WIDE)
    assert reduce_samples(WIDE, 6).shape == (6, 8, 5)


@pytest.mark.parametrize(
    "given", [WIDE[:, :, :3], WIDE.astype(np.float32), WIDE[:, :, 0], np.zeros((0, 3, 5), np.uint16)]
)
def test_an_array_in_memory_has_to_have_the_channels(given: NDArray[Any]) -> None:
    found = read_pixels(given, Preprocessing(8, 8, channels=5))
    assert isinstance(found, ImageError)
    assert "give uint8 or uint16 [height, width, 5]" in str(found)
    assert isinstance(read_pixels(WIDE[:, :, :3], Preprocessing(8, 8)), ImageError)


def test_an_array_in_memory_may_be_in_the_other_byte_order() -> None:
    preprocessing = Preprocessing(8, 8, channels=5)
    assert np.array_equal(read_pixels(WIDE.astype(">u2"), preprocessing), read_pixels(WIDE, preprocessing))


def test_a_preview_goes_from_the_first_to_the_99th_percentile_of_each_channel() -> None:
    low, high = np.percentile(WIDE[:, :, :3], (1, 99), axis=(0, 1))
    expected = ((WIDE[:, :, :3] - low) / (high - low) * 255).clip(0, 255).round()
    assert np.array_equal(preview(WIDE), expected)
    assert np.array_equal(preview(np.stack([WIDE, WIDE])), np.stack([expected, expected]))
    gray = preview(WIDE[:, :, :2])
    assert np.array_equal(gray, np.repeat(expected[:, :, :1], 3, axis=2))
    assert np.array_equal(preview(NARROW[:, :, :3]), NARROW[:, :, :3])


def test_a_summary_sees_every_channel() -> None:
    shown = stretched(WIDE).astype(float)
    assert np.array_equal(summary(WIDE)[:, :, 2], shown[:, :, 4])
    assert np.array_equal(summary(WIDE)[:, :, 0], shown[:, :, :2].mean(axis=2).round())
    assert np.array_equal(summary(WIDE[:, :, :3]), preview(WIDE[:, :, :3]))
    flat = np.full((9, 9, 4), 700, np.uint16)
    assert not summary(flat).any()
    flat[4, 4, 3] = 705  # one pixel of one channel
    assert summary(flat)[4, 4].tolist() == [0, 0, 255]
