"""Sums over pixels are exact: their parts add up to the whole in any order, and give what numpy gives."""

import numpy as np
import pytest

from pipeline.prepare.pixel_sums import PixelSums, sum_pixels

RANDOM = np.random.default_rng(0)
EIGHT = [RANDOM.integers(0, 256, (5, 7 + i, 3), np.uint8) for i in range(4)]
DEEP = [RANDOM.integers(0, 65_536, (5, 7 + i, 5), np.uint16) for i in range(4)]


@pytest.mark.parametrize(("images", "full", "digits"), [(EIGHT, 255, 6), (DEEP, 65_535, 9)])
def test_mean_and_deviation_are_numpys(images: list[np.ndarray], full: int, digits: int) -> None:
    sums = sum(map(sum_pixels, images), PixelSums())
    values = np.concatenate([image.reshape(-1, image.shape[2]) for image in images]) / full
    np.testing.assert_allclose(sums.mean(), values.mean(axis=0), atol=0.6 * 10**-digits)
    np.testing.assert_allclose(sums.std(), values.std(axis=0), atol=0.6 * 10**-digits)
    assert (sums.min_side, sums.max_side, sums.pixels) == (5, 10, len(values))


def test_parts_add_up_to_the_whole_in_any_order() -> None:
    one, two, three, four = map(sum_pixels, DEEP)
    assert (one + two) + (three + four) == four + (two + (PixelSums() + one)) + three + PixelSums()


def test_a_black_data_set_does_not_divide_by_zero() -> None:
    sums = sum_pixels(np.zeros((4, 4, 3), np.uint8))
    assert (sums.mean(), sums.std()) == ((0.0,) * 3, (1e-4,) * 3)


def test_squares_of_large_images_do_not_overflow() -> None:
    sums = sum_pixels(np.full((300, 300, 1), 65_535, np.uint16))
    assert sums.squares == (90_000 * 65_535**2,)
