import base64
import hashlib
import json
import pickle
import struct
import subprocess
import sys
import warnings
import zlib
from dataclasses import asdict

import numpy as np
import pytest
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

from deploy.images.preprocess import MOST_PIXELS
from pipeline.config import ValidateConfig
from pipeline.validation.probe.facts import Facts
from pipeline.validation.probe.pool import isolated_map
from pipeline.validation.probe.probe import flat_tail, probe, reduced, statistics, thumbnail
from pipeline.validation.reasons import REASONS
from tests.pipeline.validation.corpus.corpus import (
    Kind,
    bad_kinds,
    exif,
    flipped,
    good_kinds,
    picture,
    png_header,
    with_chunk,
)
from tests.pipeline.validation.corpus.encodings import ENCODINGS as EVERY_WAY
from tests.pipeline.validation.corpus.encodings import encoded, png_chunk, tiff

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
    assert unknown <= {"reason", "trailing_bytes", "stream_fault"}
    assert facts.stream_fault is None
    assert (facts.exif_orientation != 1) == ("exif_transpose" in facts.operations)


@pytest.mark.parametrize("kind", bad_kinds(), ids=lambda kind: kind.name)
def test_an_undecodable_file_gets_the_reason(kind: Kind) -> None:
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
        if encoding == "png":  # where the length or name of its last chunk is damaged, its pixels survive
            assert not facts.decodes or facts.trailing_bytes is None, position


def test_limits_apply_before_decoding() -> None:
    data = encoded(picture(), "PNG")
    assert probe(data, max_megabytes=len(data) / 1e6)["decodes"]
    assert probe(data, max_megabytes=(len(data) - 1) / 1e6)["reason"] == "too_large"
    assert probe(data, max_megapixels=64 * 48 / 1e6)["decodes"]
    refused = probe(data, max_megapixels=(64 * 48 - 1) / 1e6)
    assert refused["reason"] == "bomb"
    assert "64 x 48 pixels are over the limit of 3,071 pixels" in refused["message"]
    assert refused["message"].endswith("make it smaller, or raise validate.max_megapixels from 0.003071 to at most 178")
    gigantic = probe(png_header(20_000, 20_000))
    assert gigantic["message"] == (
        "400,000,000 pixels are over the limit of 80,000,000 pixels; make it smaller; "
        "no setting of validate.max_megapixels reads more than 178"
    )
    assert ValidateConfig(max_megapixels=178).max_megapixels * 1e6 == MOST_PIXELS


def test_reduced_copies_are_not_pages() -> None:
    large, small = picture(12, 64, 48), picture(12, 32, 24)
    preview = TiffImagePlugin.ImageFileDirectory_v2()
    preview[254] = 1
    small.encoderinfo = {"tiffinfo": preview}
    overview = encoded(large, "TIFF", save_all=True, append_images=[small])
    facts = Facts(**probe(overview))
    assert (facts.frames, facts.operations) == (1, [])
    assert probe(encoded(large, "TIFF", save_all=True, append_images=[picture(12, 32, 24)]))["frames"] == 2


def test_statistics_against_numpy() -> None:
    image = picture(3, 200, 120)
    assert reduced(image).tobytes() == image.tobytes()
    pixels, luma = np.asarray(image, dtype=float), np.asarray(image.convert("L"), dtype=float)
    found = statistics(image, image.convert("L"))
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
    flat = Image.new("RGB", size, (10, 20, 30))
    found = statistics(flat, flat.convert("L"))
    assert found["luma_std"] == found["edge_energy"] == found["entropy"] == 0
    assert found["saturation"] == 20


def test_statistics_are_of_the_reduced_image() -> None:
    large = picture(4, 1000, 800)
    small = reduced(large)
    assert small.size == (256, 205)
    facts = probe(encoded(large, "PNG"))
    assert facts.items() >= statistics(small, small.convert("L")).items()
    assert (facts["width"], facts["height"]) == large.size == (1000, 800)


def test_pixel_hash_depends_only_on_pixels_and_shape() -> None:
    image = picture(5)
    png, bmp = encoded(image, "PNG"), encoded(image, "BMP")
    assert probe(png)["pixel_hash"] == probe(bmp)["pixel_hash"]
    turned = image.transpose(Image.Transpose.ROTATE_90)
    assert probe(encoded(turned, "PNG"))["pixel_hash"] != probe(png)["pixel_hash"]
    gray = image.convert("L")
    assert probe(encoded(gray, "PNG"))["pixel_hash"] == probe(encoded(gray.convert("RGB"), "PNG"))["pixel_hash"]


def test_an_image_is_measured_upright() -> None:
    [turned] = [kind for kind in good_kinds() if kind.name == "turned.jpg"]
    facts = Facts(**probe(turned.data))
    assert (facts.width, facts.height) == (48, 64)


def test_the_second_picture_of_a_phone_is_not_an_animation() -> None:
    both = encoded(picture(6), "MPO", save_all=True, append_images=[picture(7)])
    facts = Facts(**probe(both))
    assert (facts.format, facts.frames, facts.trailing_bytes, facts.operations) == ("JPEG", 1, 0, [])


DEPTHS = {"bilevel.png": 1, "palette2.png": 2, "palette4.png": 4, "palette.png": 8, "gray16.png": 16, "deep.png": 16}
DEPTHS |= {"fax.tif": 1, "gray16.tif": 16, "bilevel.bmp": 1, "high_color.bmp": 5, "palette.bmp": 8, "os2.bmp": 8}


@pytest.mark.parametrize("name", EVERY_WAY)
def test_bit_depth_is_that_of_the_file(name: str) -> None:
    facts = Facts(**probe(EVERY_WAY[name](picture(1))))
    assert facts.bit_depth == DEPTHS.get(name, 8)
    assert facts.stream_fault is None


def test_bit_depth_is_reported_for_unused_files_too() -> None:
    numbers = Image.fromarray(np.ones((20, 20), np.float32))
    facts = Facts(**probe(encoded(numbers, "TIFF")))
    assert (facts.bit_depth, facts.reason) == (32, "unsupported_depth")


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientation_is_that_of_the_file(format: str) -> None:
    for orientation in range(10):
        facts = Facts(**probe(encoded(picture(1), format, exif=exif(orientation=orientation))))
        assert facts.exif_orientation == (orientation if 1 <= orientation <= 8 else 1)
        assert sorted((facts.width, facts.height)) == [48, 64]
        assert (facts.width == 48) == (orientation >= 5 and orientation <= 8)
    assert probe(encoded(picture(1), format))["exif_orientation"] == 1


def brute_force_tail(pixels: NDArray[np.uint8]) -> float:
    rows = 0
    for row in pixels[::-1].tolist():
        if any(not 126 <= level <= 130 for pixel in row for level in pixel):
            break
        rows += 1
    return rows / len(pixels) if rows < len(pixels) else 0.0


def test_flat_tail_against_brute_force() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        height, width = random.integers(1, 40, 2)
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        below = random.integers(0, height + 1)
        pixels[height - below :] = random.integers(126, 131, (below, width, 3))
        if random.random() < 0.5:  # a speck
            pixels[random.integers(height), random.integers(width), random.integers(3)] = random.choice([125, 131])
        assert flat_tail(Image.fromarray(pixels)) == brute_force_tail(pixels)
    assert flat_tail(Image.new("RGB", (9, 7), (128, 128, 128))) == 0  # flat, but no tail of anything
    assert flat_tail(Image.new("RGB", (9, 7), (128, 128, 140))) == 0


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_a_truncated_jpeg_has_a_flat_tail(format: str) -> None:
    whole = encoded(picture(2, 320, 240), "JPEG", quality=90)
    left = Image.fromarray(simplejpeg.decode_jpeg(whole[: len(whole) // 2], strict=False))  # as most programs read it
    again = Facts(**probe(encoded(left, format)))
    assert again.stream_fault is None
    expected = brute_force_tail(np.asarray(left))
    assert 0.3 < expected < 0.6
    assert expected - 17 / 240 <= (again.flat_tail or 0) <= expected  # saved again, its edge blurs over one block
    assert probe(whole)["flat_tail"] == 0


def test_a_fault_of_the_stream_is_reported_and_the_pixels_measured() -> None:
    data = encoded(picture(3, 320, 240), "JPEG", quality=90)
    middle = len(data) // 2
    facts = Facts(**probe(data[:middle] + bytes(64) + data[middle + 64 :]))
    assert facts.decodes
    assert facts.stream_fault
    assert facts.phash is not None
    assert probe(data)["stream_fault"] is None
    assert probe(data + bytes(100))["stream_fault"] is None


@pytest.mark.seconds
def test_another_process_finds_the_same() -> None:
    files = [kind.data for kind in good_kinds() + bad_kinds()] + [encoded(Image.new("RGB", (300, 200), "teal"), "PNG")]
    files += [data[: len(data) // 3] for data in files] + [flipped(data, len(data) // 2) for data in files if data]
    script = "import json, pickle, sys; from pipeline.validation.probe.probe import probe"
    script += "; print(json.dumps([probe(data) for data in pickle.load(sys.stdin.buffer)]))"
    done = subprocess.run([sys.executable, "-c", script], input=pickle.dumps(files), capture_output=True, check=True)
    assert json.loads(done.stdout) == [probe(data) for data in files]


def promises(width: int, height: int) -> dict[str, bytes]:
    """Headers of this number of pixels, in each format, and next to nothing behind them."""
    jpeg = bytearray(encoded(picture(), "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    bmp = bytearray(encoded(picture(), "BMP"))
    bmp[18:26] = struct.pack("<ii", width, height)
    gif = bytearray(encoded(picture().quantize(8), "GIF"))
    gif[6:10] = struct.pack("<HH", width, height)
    webp = bytearray(encoded(picture(), "WEBP", lossless=True))
    webp[21:25] = struct.pack("<I", (min(width, 16384) - 1) | (min(height, 16384) - 1) << 14)
    tags = [(256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 8), (278, height), (279, 0xFFFFFFFF)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    tiff = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    return {
        "png": png_header(width, height),
        "jpeg": bytes(jpeg),
        "bmp": bytes(bmp),
        "gif": bytes(gif),
        "webp": bytes(webp),
        "tiff": tiff,
    }


def metadata_bombs() -> dict[str, bytes]:
    png, zeros = encoded(picture(), "PNG"), zlib.compress(bytes(200_000_000))
    return {
        "zTXt": with_chunk(png, b"zTXt", b"Comment\0\0" + zeros),
        "iTXt": with_chunk(png, b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zeros),
        "iCCP": with_chunk(png, b"iCCP", b"profile\0\0" + zeros),
    }


@pytest.mark.seconds
def test_pixels_that_only_the_header_declares_are_not_decoded() -> None:
    files = {f"{name} {side}": data for side in (11_000, 60_000) for name, data in promises(side, side).items()}
    expected = dict.fromkeys(files, "bomb") | dict.fromkeys(metadata_bombs(), "metadata_bomb")
    found = isolated_map(
        probe, (files | metadata_bombs()).items(), options={}, workers=1, memory_megabytes=1536, timeout_seconds=5
    )  # of a WebP, Pillow makes the canvas when it opens it: up to 178 megapixels, never more
    assert {name: facts["reason"] for name, facts in found} == expected


def test_endless_tables_are_read_up_to_the_limit() -> None:
    tags = {256: (4, 1, 64), 257: (4, 1, 48), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1), 278: (4, 1, 48)}
    for tag in (258, 273, 279, 34675, 34665):  # bits, offsets and lengths of strips, profile, EXIF
        wild = tags | {273: (4, 1, 8), 279: (4, 1, 100)} | {tag: (4, 0x3FFFFFFF, 8)}
        entries = b"".join(struct.pack("<HHII", number, *wild[number]) for number in sorted(wild))
        facts = probe(b"II*\0" + struct.pack("<IH", 8, len(wild)) + entries + bytes(4))
        assert facts["reason"] in ("truncated", "corrupt"), tag


def test_thumbnails_are_new_and_small() -> None:
    secret = b"taken at home"
    data = encoded(picture(8, 640, 480), "JPEG", comment=secret)
    drawn = thumbnail(data) or {}
    assert drawn["size"] == (80, 60)
    assert secret not in base64.b64decode(drawn["rgb"])


def test_the_thumbnail_of_a_damaged_file_shows_the_readable_part() -> None:
    data = encoded(picture(9, 640, 480), "JPEG")
    half = data[: len(data) // 2]
    assert thumbnail(half)
    assert thumbnail(b"<html>") is None
    assert probe(half)["reason"] == "truncated"  # as before: thumbnails loosen nothing


@pytest.mark.slow
def test_probing_emits_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind in good_kinds() + bad_kinds():
            probe(kind.data)
            for position in range(8, min(len(kind.data), 300), 7):
                probe(flipped(kind.data, position))


@pytest.mark.parametrize("encoding", ["tiff.tif", "lzw.tif", "deflate.tif", "big.tif"])
def test_a_truncated_tiff_directory_is_reported(encoding: str) -> None:
    data = EVERY_WAY[encoding](picture(10))
    assert probe(data)["exif_unreadable"] is False
    is_big = data[2] == 43
    directory = struct.unpack_from("<Q" if is_big else "<I", data, 8 if is_big else 4)[0]
    facts = Facts(**probe(data[:directory] + b"\xff" + data[directory + 1 :]))  # it claims 255 entries
    assert not facts.decodes or facts.exif_unreadable


def test_a_missing_palette_is_damage() -> None:
    header = struct.pack(">IIBBBBB", 64, 48, 8, 3, 0, 0, 0)
    png = encoded(picture(11), "PNG")
    facts = Facts(**probe(png[:8] + png_chunk(b"IHDR", header) + png[33:]))
    assert (facts.decodes, facts.reason) == (False, "corrupt")
    assert "()" not in facts.message


@pytest.mark.parametrize("bits", [0x8000, 0xFFFF])
def test_only_the_bits_of_channels_that_exist_count(bits: int) -> None:
    """Pillow drops the number of a channel too many; a table would not hold it."""
    data = tiff((64, 48), [picture(12).tobytes()])
    entry = data.index(struct.pack("<HHI", 258, 3, 3))
    wide = data[: entry + 4] + struct.pack("<II", 4, len(data)) + data[entry + 12 :]
    facts = Facts(**probe(wide + struct.pack("<4H", 8, 8, 8, bits)))
    assert (facts.decodes, facts.bit_depth) == (True, 8)


@pytest.mark.parametrize("damage", ["half_zero", "last_sum"])
def test_damage_that_pillow_ignores_gives_no_pixels(damage: str) -> None:
    png = encoded(picture(13), "PNG")
    half = png[: len(png) // 2].ljust(len(png), b"\0")
    facts = Facts(**probe(half if damage == "half_zero" else flipped(png, len(png) - 14)))
    assert (facts.decodes, facts.reason, facts.pixel_hash) == (False, "corrupt", None)
    assert facts.width == 64


@pytest.mark.seconds
def test_the_largest_image_fits_into_a_worker() -> None:
    """A see-through WebP, of which libwebp keeps two copies of 317 MB while Pillow makes its own."""
    largest = encoded(Image.new("RGBA", (8900, 8900), (200, 100, 50, 128)), "WEBP", lossless=True, quality=0, method=0)
    limits = {"workers": 1, "memory_megabytes": 1900, "timeout_seconds": 60}
    [(_, facts)] = isolated_map(probe, [("it", largest)], options={}, **limits)
    assert facts["operations"] == ["alpha_on_white"]


def test_a_transparent_drawing_is_measured_on_the_background_that_training_gets() -> None:
    shape = Image.new("RGBA", (64, 64))
    shape.paste("white", (0, 0, 32, 64))
    data = encoded(shape, "PNG")
    on_white, on_black = probe(data), probe(data, background="black")
    assert (on_white["luma_std"], on_white["operations"]) == (0.0, ["alpha_on_white"])
    assert (on_black["luma_std"], on_black["operations"]) == (127.5, ["alpha_on_black"])
    shown = thumbnail(data, background="black")
    assert shown is not None
    assert min(base64.b64decode(shown["rgb"])) == 0
