"""Compare every kind of image with independently computed numbers."""

import io
import struct

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from deploy.errors import ArgumentError
from deploy.images.preprocess import Preprocessing, canonicalize, open_image
from tests.deploy.conftest import RGB, chunk, encoded, noise, png


def save(image: Image.Image, format: str, **options: object) -> bytes:
    content = io.BytesIO()
    image.save(content, format, **options)
    return content.getvalue()


def convert(data: bytes) -> tuple[NDArray[np.uint8], list[str]]:
    image, operations = canonicalize(open_image(data))
    assert image.mode == "RGB"
    assert image.info == {}
    assert not image.getexif()
    return np.array(image), operations


def distance(a: NDArray[np.generic], b: NDArray[np.generic]) -> float:
    assert a.shape == b.shape
    return float(np.abs(a.astype(float) - b.astype(float)).max())


GRAY = RGB[..., 0]


@pytest.mark.parametrize(
    ("format", "options", "tolerance"),
    [
        ("PNG", {}, 0),
        ("BMP", {}, 0),
        ("TIFF", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("JPEG", {"quality": 100, "subsampling": 0}, 4),
    ],
)
def test_rgb_passes_unchanged(format: str, options: dict[str, object], tolerance: int) -> None:
    pixels, operations = convert(encoded(RGB, format, **options))
    assert distance(pixels, RGB) <= tolerance
    assert operations == []


def test_gray_and_bilevel_are_repeated_over_the_channels() -> None:
    pixels, operations = convert(encoded(GRAY))
    assert distance(pixels, np.dstack([GRAY] * 3)) == 0
    assert operations == ["gray_to_rgb"]
    bilevel = GRAY > 127
    pixels, operations = convert(encoded(bilevel))
    assert distance(pixels, np.dstack([bilevel * 255] * 3)) == 0
    assert operations == ["gray_to_rgb"]


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bit_gray_is_scaled_and_not_clipped(format: str) -> None:
    deep = np.random.default_rng(1).integers(0, 65536, (9, 13)).astype(np.uint16)
    deep[0, :4] = [0, 255, 256, 65535]
    pixels, operations = convert(encoded(deep, format))
    assert distance(pixels[..., 0], np.round(deep / 65535 * 255)) == 0
    assert operations == ["uint16_to_uint8", "gray_to_rgb"]


def test_sixteen_bit_color_keeps_its_high_bytes() -> None:
    deep = np.random.default_rng(2).integers(0, 65536, (9, 13, 3)).astype(">u2")
    pixels, operations = convert(png(16, 2, deep))
    assert distance(pixels, deep // 256) == 0
    assert operations == ["uint16_to_uint8"]
    with_alpha = np.dstack([deep, np.full((9, 13), 65535)]).astype(">u2")
    pixels, operations = convert(png(16, 6, with_alpha))
    assert distance(pixels, deep // 256) == 0
    assert operations == ["uint16_to_uint8", "to_rgb"]


def test_a_bmp_of_16_bits_a_pixel_is_not_16_bits_a_channel() -> None:
    masks = struct.pack("<3I", 0xF800, 0x07E0, 0x001F)  # 5, 6 and 5 bits
    info = struct.pack("<IiiHHIIiiII", 40, 2, 2, 1, 16, 3, 8, 0, 0, 0, 0)
    header = struct.pack("<2sIHHI", b"BM", 14 + 40 + 12 + 8, 0, 0, 14 + 40 + 12)
    pixels, operations = convert(header + info + masks + struct.pack("<4H", *[0xF81F] * 4))
    assert np.array_equal(np.unique(pixels.reshape(-1, 3), axis=0), [[255, 0, 255]])
    assert operations == []


def test_alpha_is_composited_on_white() -> None:
    alpha = np.random.default_rng(3).integers(0, 256, (9, 13)).astype(np.uint8)
    share = alpha[..., None] / 255
    pixels, operations = convert(encoded(np.dstack([RGB, alpha])))
    assert distance(pixels, RGB * share + 255 * (1 - share)) <= 1
    assert operations == ["alpha_on_white"]
    pixels, operations = convert(encoded(np.dstack([GRAY, alpha])))
    assert distance(pixels[..., 0], GRAY * share[..., 0] + 255 * (1 - share[..., 0])) <= 1
    assert operations == ["gray_to_rgb", "alpha_on_white"]


def test_premultiplied_alpha_is_divided_out_first() -> None:
    image = Image.fromarray(np.dstack([RGB, np.full((9, 13), 128, np.uint8)])).convert("RGBa")
    pixels = np.array(canonicalize(image)[0])
    assert distance(pixels, RGB * (128 / 255) + 255 * 127 / 255) <= 2


def test_opaque_alpha_changes_nothing() -> None:
    pixels, operations = convert(encoded(np.dstack([RGB, np.full((9, 13), 255, np.uint8)])))
    assert distance(pixels, RGB) == 0
    assert operations == ["to_rgb"]


def test_palettes_with_and_without_transparency() -> None:
    palette = np.random.default_rng(4).integers(0, 256, (256, 3)).astype(np.uint8)
    image = Image.frombytes("P", (13, 9), GRAY.tobytes())
    image.putpalette(palette.tobytes())
    pixels, operations = convert(save(image, "PNG"))
    assert distance(pixels, palette[GRAY]) == 0
    assert operations == ["palette_to_rgb"]
    opacity = np.random.default_rng(5).integers(0, 256, 256).astype(np.uint8)
    pixels, operations = convert(save(image, "PNG", transparency=opacity.tobytes()))
    share = opacity[GRAY][..., None] / 255
    assert distance(pixels, palette[GRAY] * share + 255 * (1 - share)) <= 1
    assert operations == ["palette_to_rgb", "alpha_on_white"]
    clear = int(GRAY[0, 0])
    pixels, operations = convert(save(image, "GIF", transparency=clear))
    assert distance(pixels, np.where((clear == GRAY)[..., None], 255, palette[GRAY])) == 0


def test_a_transparent_color_becomes_white() -> None:
    pixels, operations = convert(save(Image.fromarray(RGB), "PNG", transparency=tuple(int(v) for v in RGB[2, 3])))
    expected = RGB.copy()
    expected[2, 3] = 255
    assert distance(pixels, expected) == 0
    assert operations == ["alpha_on_white"]


@pytest.mark.parametrize("ink", [(0, 0, 0, 0), (255, 0, 0, 0), (0, 200, 100, 30), (0, 0, 0, 255)])
def test_cmyk_jpeg_with_adobe_polarity(ink: tuple[int, int, int, int]) -> None:
    data = save(Image.new("CMYK", (16, 16), ink), "JPEG", quality=100)
    assert b"Adobe" in data  # with this marker, inks are stored inverted
    pixels, operations = convert(data)
    expected = [(255 - channel) * (255 - ink[3]) / 255 for channel in ink[:3]]
    assert np.abs(pixels - expected).max() <= 3
    assert operations == ["cmyk_to_rgb"]


def test_ycbcr_and_lab_tiff() -> None:
    smooth = np.add.outer(np.arange(16) * 8, np.arange(16) * 7)[..., None].repeat(3, 2).astype(np.uint8)
    smooth[..., 2] //= 2
    pixels, operations = convert(save(Image.fromarray(smooth).convert("YCbCr"), "TIFF"))
    assert distance(pixels, smooth) <= 3
    assert operations == ["to_rgb"]
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    image = ImageCms.profileToProfile(Image.fromarray(smooth), srgb, lab, outputMode="LAB")
    assert image is not None
    del image.info["icc_profile"]
    pixels, operations = convert(save(image, "TIFF"))
    assert distance(pixels, smooth) <= 8  # 8-bit L*a*b* is coarse
    assert operations == ["to_rgb"]


UPRIGHT = np.kron(noise(12, 2, 3), np.ones((8, 8, 1), np.uint8))  # blocks, which JPEG keeps
TURNED = {  # how the pixels of an upright image are stored under each orientation
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.swapaxes(0, 1),
    6: np.rot90(UPRIGHT, 1),
    7: np.rot90(UPRIGHT, 2).swapaxes(0, 1),
    8: np.rot90(UPRIGHT, -1),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("PNG", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {"lossless": True}),
        ("JPEG", {"quality": 100, "subsampling": 0}),
    ],
)
def test_exif_orientation_is_undone(format: str, options: dict[str, object], orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    stored = np.ascontiguousarray(TURNED[orientation])
    pixels, operations = convert(encoded(stored, format, exif=exif, **options))
    assert distance(pixels, UPRIGHT) <= (4 if format == "JPEG" else 0)
    assert operations == ([] if orientation == 1 else ["exif_transpose"])


def test_exif_after_the_pixels_of_a_png_is_applied() -> None:
    exif = Image.Exif()
    exif[274] = 6
    plain = encoded(np.ascontiguousarray(TURNED[6]))
    late = plain[:-12] + chunk(b"eXIf", exif.tobytes()[6:]) + plain[-12:]
    pixels, operations = convert(late)
    assert distance(pixels, UPRIGHT) == 0
    assert operations == ["exif_transpose"]


@pytest.mark.parametrize(
    "damage", [b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12"]
)
def test_a_damaged_exif_block_is_silently_ignored(damage: bytes) -> None:
    pixels, operations = convert(encoded(RGB, "JPEG", exif=damage, quality=100, subsampling=0))
    assert distance(pixels, RGB) <= 4
    assert operations == []


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_only_the_first_of_several_frames_is_used(format: str) -> None:
    first, second = Image.new("RGB", (8, 8), (200, 30, 30)), Image.new("RGB", (8, 8), (30, 30, 200))
    pixels, operations = convert(save(first, format, save_all=True, append_images=[second]))
    assert np.abs(pixels - [200, 30, 30]).max() <= 6
    assert operations[0] == "first_frame"


def test_the_preview_in_a_phone_picture_is_not_a_frame() -> None:
    first, second = Image.new("RGB", (8, 8), (200, 30, 30)), Image.new("RGB", (8, 8), (30, 30, 200))
    pixels, operations = convert(save(first, "MPO", save_all=True, append_images=[second]))
    assert np.abs(pixels - [200, 30, 30]).max() <= 6
    assert operations == []


def matrix_profile(space: bytes = b"RGB ") -> bytes:
    """A minimal ICC 2.1 display profile: Adobe RGB (1998), gamma 563/256, primaries adapted to D50."""

    def xyz(*values: float) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    gamma = b"curv\0\0\0\0" + struct.pack(">IH", 1, 563) + b"\0\0"
    text = b"desc\0\0\0\0" + struct.pack(">I", 6) + b"wide!\0" + b"\0" * 78
    tags = {
        b"desc": text + b"\0" * (-len(text) % 4),
        b"wtpt": xyz(0.9642, 1.0, 0.8249),
        **{name: xyz(*column) for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), ADOBE.T.tolist(), strict=True)},
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), gamma),
    }
    offset = 128 + 4 + 12 * len(tags)
    table, body = struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        table += name + struct.pack(">II", offset + len(body), len(content))
        body += content
    header = struct.pack(">I4sI4s4s4s", 128 + len(table) + len(body), b"lcms", 0x02100000, b"mntr", space, b"XYZ ")
    header += struct.pack(">6H4s", 2026, 1, 1, 0, 0, 0, b"acsp") + b"\0" * 28 + struct.pack(">3i", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + table + body


ADOBE = np.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]])
SRGB = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])  # D50 too


def wide_to_srgb(wide: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The colors of ``matrix_profile`` in sRGB, 0..255."""
    linear = (wide / 255) ** (563 / 256) @ ADOBE.T @ np.linalg.inv(SRGB).T
    curved = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear.clip(1e-9) ** (1 / 2.4) - 0.055)
    return np.asarray(curved.clip(0, 1) * 255)


def test_a_wide_gamut_profile_is_converted_to_srgb() -> None:
    wide = np.array([[[120, 130, 140], [90, 160, 70], [180, 120, 110], [20, 25, 30]]], np.uint8)
    pixels, operations = convert(encoded(wide, "PNG", icc_profile=matrix_profile()))
    assert distance(pixels, wide_to_srgb(wide)) <= 1
    assert distance(pixels, wide) > 8
    assert operations == ["icc_to_srgb"]


def test_profiles_that_do_not_apply_are_ignored() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (srgb, b"nonsense", matrix_profile()[:200], matrix_profile(b"GRAY")):
        pixels, operations = convert(encoded(RGB, "PNG", icc_profile=profile))
        assert distance(pixels, RGB) == 0
        assert operations == ([] if profile is srgb else ["icc_ignored"])
    pixels, operations = convert(encoded(GRAY, "PNG", icc_profile=matrix_profile()))  # a color profile on gray
    assert distance(pixels[..., 0], GRAY) == 0
    assert operations == ["gray_to_rgb", "icc_ignored"]


def triangle_resize(values: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """Antialiased bilinear along axis 0: a triangle as wide as two output pixels (or input pixels, when enlarging)."""
    scale = len(values) / size
    reach = max(scale, 1.0)
    centers = (np.arange(size) + 0.5) * scale
    weights = np.maximum(0, 1 - np.abs(np.arange(len(values)) + 0.5 - centers[:, None]) / reach)
    weights /= weights.sum(axis=1, keepdims=True)
    return np.tensordot(weights, values, axes=1)


@pytest.mark.parametrize(("height", "width"), [(40, 40), (37, 91), (91, 37), (10, 14)])
def test_resizing_is_antialiased_bilinear(height: int, width: int) -> None:
    image = noise(8, height, width)
    side = min(height, width)
    resized_height, resized_width = 16 * height // side, 16 * width // side
    resized = triangle_resize(image.astype(float), resized_height)
    resized = triangle_resize(resized.swapaxes(0, 1), resized_width).swapaxes(0, 1)
    top, left = round((resized_height - 12) / 2), round((resized_width - 12) / 2)
    expected = resized[top : top + 12, left : left + 12]
    assert distance(Preprocessing(size=12, resize=16).apply(image), expected) <= 1


@pytest.mark.parametrize("shape", [(33, 50), (50, 33), (32, 32), (7, 400), (300, 5)])
@pytest.mark.parametrize(("size", "resize"), [(32, 32), (32, 37), (9, 64)])
def test_apply_is_resize_then_crop(shape: tuple[int, int], size: int, resize: int) -> None:
    image = noise(9, *shape)
    height, width = (resize * side // min(shape) for side in shape)
    whole = np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    top, left = round((height - size) / 2), round((width - size) / 2)
    assert distance(Preprocessing(size, resize).apply(image), whole[top : top + size, left : left + size]) <= 1


def test_an_image_of_the_right_size_is_returned_unchanged() -> None:
    image = noise(10, 16, 16)
    assert Preprocessing(16, 16).apply(image) is image


def test_a_long_strip_costs_no_memory() -> None:
    strip = np.tile(noise(11, 1, 1000), (1, 500, 1))
    assert Preprocessing(224, 256).apply(strip).shape == (224, 224, 3)  # resized in full it would be 256 x 128,000,000


def test_preprocessing_survives_json_and_refuses_nonsense() -> None:
    for one in (Preprocessing(24, 28), Preprocessing(24, 28, "checker"), Preprocessing(24, 28, letterbox=True)):
        assert Preprocessing.from_json(one.to_json()) == one
    assert Preprocessing(24, 28).to_json() == {"size": 24, "resize": 28}  # what earlier releases read
    with pytest.raises(ArgumentError, match="background 'pink'; give one of white, black, gray, checker, mean"):
        Preprocessing(24, 28, "pink")
    with pytest.raises(ArgumentError, match="size <= resize"):
        Preprocessing(28, 24)
    ill_typed = {"size": 24, "resize": 24, "letterbox": 1}
    for fields in ({"size": 24}, {"size": 24, "resize": 24, "crop": 1}, {"size": 24.0, "resize": 24}, ill_typed):
        with pytest.raises(ArgumentError, match="integers size and resize"):
            Preprocessing.from_json(fields)
