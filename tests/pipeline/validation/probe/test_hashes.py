import hashlib
import io
import math
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageDraw
from sklearn.datasets import load_sample_images

from pipeline.validation.probe.hashes import (
    MIN_MARGIN,
    MIN_SIDE,
    dhash,
    low_frequencies,
    margin,
    perceptual_hashes,
    phash,
    pixel_hash,
)
from tests.pipeline.validation.corpus.corpus import picture

NEAR = 3  # bits
Change = Callable[[Image.Image], Image.Image]


def saved(format: str, **options: object) -> Change:
    def change(image: Image.Image) -> Image.Image:
        content = io.BytesIO()
        image.save(content, format, **options)
        return Image.open(content).convert("RGB")

    return change


def resized(scale: float, filter: Image.Resampling = Image.Resampling.BICUBIC) -> Change:
    return lambda image: image.resize((round(image.width * scale), round(image.height * scale)), filter)


CHANGES: dict[str, Change] = {
    "jpeg_90": saved("JPEG", quality=90),
    "progressive": saved("JPEG", quality=75, progressive=True),
    "webp": saved("WEBP", quality=90),
    "gif": lambda image: image.quantize(256).convert("RGB"),
    "half": resized(0.5),
    "smaller": resized(0.83, Image.Resampling.LANCZOS),
    "larger": resized(1.4, Image.Resampling.BILINEAR),
    "darker": lambda image: image.point(lambda level: level * 0.8),
    "faded": lambda image: image.point(lambda level: 40 + level * 0.75),
    "gray": lambda image: image.convert("L").convert("RGB"),
}
HARSH_CHANGES: dict[str, Change] = {
    "jpeg_50": saved("JPEG", quality=50),
    "webp_75": saved("WEBP", quality=75),
    "half_as_jpeg": lambda image: saved("JPEG", quality=60)(resized(0.5)(image)),
}


def crops() -> list[Image.Image]:
    """32 parts of two photographs that overlap in nothing."""
    photographs = [Image.fromarray(image) for image in load_sample_images().images]
    return [
        photograph.crop((left, top, left + 160, top + 106))
        for photograph in photographs
        for top in range(0, 400, 106)
        for left in range(0, 640, 160)
    ]


def hashes(image: Image.Image) -> tuple[int, int, bool]:
    found = perceptual_hashes(image.convert("L"), min(image.size))
    return found["phash"], found["dhash"], found["hash_trusted"]


def distance(first: int, second: int) -> int:
    return (first ^ second).bit_count()


def test_frequencies_against_the_formula() -> None:
    luma = picture(1, 100, 70).convert("L")
    cells = np.asarray(luma.convert("F").resize((32, 32), Image.Resampling.BILINEAR), dtype=float)
    expected = np.zeros((8, 8))
    for v in range(8):
        for u in range(8):
            scale = (math.sqrt(0.5) if u == 0 else 1) * (math.sqrt(0.5) if v == 0 else 1) / 16
            for y in range(32):
                for x in range(32):
                    wave = math.cos((2 * x + 1) * u * math.pi / 64) * math.cos((2 * y + 1) * v * math.pi / 64)
                    expected[v, u] += scale * wave * cells[y, x]
    assert np.abs(low_frequencies(luma) - expected.ravel()).max() <= 0.005 + 1e-9


def test_phash_sets_the_bits_above_the_median() -> None:
    frequencies = low_frequencies(picture(2, 90, 90).convert("L"))
    median = sorted(frequencies[1:])[31]
    expected = "".join("1" if frequency > median else "0" for frequency in frequencies)
    assert f"{phash(frequencies):064b}" == expected
    assert expected.count("1") == 32


def test_dhash_sets_the_bits_where_brightness_falls() -> None:
    luma = picture(3, 90, 80).convert("L")
    cells = np.asarray(luma.convert("F").resize((9, 8), Image.Resampling.BILINEAR))
    expected = "".join("1" if cells[y, x] > cells[y, x + 1] else "0" for y in range(8) for x in range(8))
    assert f"{dhash(luma):064b}" == expected
    falling = Image.linear_gradient("L").rotate(-90)  # bright on the left
    assert dhash(falling) == 2**64 - 1
    assert dhash(falling.rotate(180)) == 0


def distances(change: Change) -> list[tuple[int, int]]:
    """In bits of pHash and dHash, between the trusted pictures and their changed copies of twice the size."""
    found = []
    for image in crops():
        (before, columns, trusted), (after, columns_after, _) = hashes(image), hashes(change(resized(2)(image)))
        if trusted:
            found.append((distance(before, after), distance(columns, columns_after)))
    return found


@pytest.mark.seconds
@pytest.mark.parametrize("change", CHANGES)
def test_copies_stay_near_wherever_the_hash_is_trusted(change: str) -> None:
    found = distances(CHANGES[change])
    assert len(found) >= 24
    assert max(bits for bits, _ in found) <= NEAR
    assert max(columns for _, columns in found) <= 2 * NEAR


@pytest.mark.parametrize("change", HARSH_CHANGES)
def test_nearly_all_copies_stay_near_through_harsh_changes(change: str) -> None:
    found = [first for first, _ in distances(HARSH_CHANGES[change])]
    assert sum(first > NEAR for first in found) <= 0.1 * len(found)
    assert max(found) <= 2 * NEAR


def test_different_pictures_are_far_apart() -> None:
    found = [hashes(image) for image in crops()]
    pairs = [(one, other) for index, one in enumerate(found) for other in found[:index]]
    assert min(distance(one[0], other[0]) for one, other in pairs) > NEAR


def test_noise_below_half_the_margin_changes_one_pair_of_bits() -> None:
    random = np.random.default_rng(0)
    for _ in range(2000):
        frequencies = random.normal(0, 10, 64)
        frequencies[0] = 1000
        noise = random.choice([-1, 1], 64) * 0.499 * margin(frequencies)
        assert distance(phash(frequencies), phash(frequencies + noise)) <= 2
    ranked = np.concatenate([[1000.0], np.arange(63.0)])
    assert margin(ranked) == 3
    shifted = ranked + np.where(ranked <= 31, 1.6, -1.6)  # beyond half the margin: two pairs change places
    assert distance(phash(ranked), phash(shifted)) > 2


def _page() -> Image.Image:
    page = Image.new("RGB", (200, 200), "white")
    ImageDraw.Draw(page).point((100, 100), "black")
    return page


def test_degenerate_and_small_pictures_are_not_trusted() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 300), dtype=np.uint8)
    faint = picture(4, 200, 200).convert("L").point(lambda level: 100 + level // 100)
    degenerate = {
        "flat": Image.new("RGB", (200, 200), (90, 10, 10)),
        "black": Image.new("RGB", (200, 200)),
        "gradient": Image.linear_gradient("L"),
        "stripes": Image.fromarray(np.tile(np.repeat([0, 255], 20).astype(np.uint8), (200, 5))),
        "noise": Image.fromarray(noise),
        "faint": faint,
        "page": _page(),
    }
    for name, image in degenerate.items():
        assert not hashes(image)[2], name
        assert margin(low_frequencies(image.convert("L"))) < MIN_MARGIN
    photograph = max(crops(), key=lambda image: margin(low_frequencies(image.convert("L")))).convert("L")
    assert perceptual_hashes(photograph, MIN_SIDE)["hash_trusted"]
    assert not perceptual_hashes(photograph, MIN_SIDE - 1)["hash_trusted"]


def test_rounding_sets_no_bit_of_a_flat_picture() -> None:
    for level in range(256):
        flat = Image.new("L", (100, 75), level)
        assert phash(low_frequencies(flat)) in (0, 1 << 63)
        assert dhash(flat) == 0


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (70_000, 1), (1000, 333)])
def test_pixel_hash_is_of_shape_and_pixels(size: tuple[int, int]) -> None:
    image = picture(5, *size)
    expected = hashlib.sha256(f"{image.width}x{image.height}:".encode() + image.tobytes())
    assert pixel_hash(image) == expected.hexdigest()[:32]


def test_pixel_hash_tells_shapes_apart() -> None:
    assert pixel_hash(Image.new("RGB", (40, 10))) != pixel_hash(Image.new("RGB", (10, 40)))
