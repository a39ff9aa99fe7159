"""What `prepare` writes is decoded to the pixels that Pillow gives; anything else goes the way of a user's file."""

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

import simclr_core.data.stored_image as module
from deploy.errors import ImageError
from deploy.images.npy import array_bytes
from deploy.images.preprocess import decode
from pipeline.prepare.canonical import encode
from simclr_core.data.stored_image import open_stored


def picture(height: int, width: int) -> Image.Image:
    """Smooth colors with noise, as a photograph has."""
    random = np.random.default_rng(height * width)
    coarse = Image.fromarray(random.integers(0, 256, (5, 5, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    noisy = np.asarray(coarse, np.int16) + random.integers(-20, 21, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    content = io.BytesIO()
    image.save(content, form, **options)
    return content.getvalue()


@pytest.fixture
def no_other_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: bytes) -> None:
        raise AssertionError("decoded as a file of a user")

    monkeypatch.setattr(module, "decode", refused)


@pytest.mark.usefixtures("no_other_way")
@pytest.mark.parametrize("quality", [60, 95, 100])
@pytest.mark.parametrize("sides", [(28, 28), (1, 90), (128, 128), (129, 40), (256, 341), (17, 777)])
def test_files_of_prepare_are_decoded_bit_for_bit(sides: tuple[int, int], quality: int) -> None:
    _, data = encode(picture(*sides), quality)
    stored = open_stored(data)
    assert stored.shape == (*sides, 3)
    expected = decode(data)
    assert np.array_equal(stored.read(), expected)
    elsewhere = np.empty((3, *sides), np.uint8).transpose(1, 2, 0)
    stored.decode(elsewhere)
    assert np.array_equal(elsewhere, expected)


def test_full_depth_is_decoded_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: bytes) -> None:
        raise AssertionError("read as another array")

    samples = np.random.default_rng(0).integers(0, 65_536, (9, 7, 5), np.uint16)
    monkeypatch.setattr(module, "stored_samples", refused)
    stored = open_stored(array_bytes(samples))
    assert (stored.shape, stored.dtype) == ((9, 7, 5), np.uint16)
    assert np.array_equal(stored.read(), samples)


@pytest.mark.parametrize("change", [slice(-1, None), slice(8, 9), slice(40, 41)])
def test_damaged_arrays_are_refused(change: slice) -> None:
    data = bytearray(array_bytes(np.zeros((9, 7, 5), np.uint16)))
    del data[change]
    with pytest.raises(ImageError):
        open_stored(bytes(data))


def exif() -> bytes:
    found = Image.Exif()
    found[274] = 6  # turned by a quarter
    return found.tobytes()


@pytest.mark.parametrize(
    "data",
    [
        saved(picture(40, 50), "JPEG", exif=exif()),
        saved(picture(40, 50), "JPEG", subsampling="4:2:0"),
        saved(picture(40, 50), "JPEG", progressive=True),
        saved(picture(40, 50).convert("L"), "JPEG"),
        saved(picture(40, 50).convert("CMYK"), "JPEG"),
        saved(picture(40, 50).convert("RGBA"), "PNG"),
        saved(picture(40, 50).convert("P"), "PNG"),
        saved(picture(40, 50), "PNG", exif=exif()),
        saved(picture(40, 50), "PNG", dpi=(72, 72)),
        saved(picture(40, 50), "WEBP", lossless=True),
        saved(picture(40, 50), "BMP"),
    ],
)
def test_other_files_are_read_as_those_of_a_user(data: bytes) -> None:
    assert np.array_equal(open_stored(data).read(), decode(data))


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_damage_is_found_as_in_a_file_of_a_user(form: str) -> None:
    """Cut off, or with one byte changed: the same error, or the pixels that Pillow gives in spite of it."""
    random = np.random.default_rng(0)
    options = {"quality": 95, "subsampling": "4:4:4"} if form == "JPEG" else {}
    whole = saved(picture(60, 50), form, **options)
    cut = [whole[:length] for length in [*range(60), *range(60, len(whole), 997), len(whole) - 20]]
    places = [*range(2, 60), *random.integers(60, len(whole) - 2, 60).tolist()]
    changed = [whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :] for place in places]
    for data in (*cut, *changed):
        assert outcome(data, lambda given: open_stored(given).read()) == outcome(data, decode)


def outcome(data: bytes, read: Callable[[bytes], np.ndarray]) -> tuple[object, ...]:
    try:
        pixels = read(data)
    except ImageError as error:
        return (error.reason,)
    return pixels.shape, pixels.tobytes()
