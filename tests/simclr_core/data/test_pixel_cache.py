"""What is put into the cache comes back; what does not fit is not kept."""

import numpy as np
import pytest

from simclr_core.data.pixel_cache import PixelCache


def image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (3, height, width), np.uint8)


def test_images_of_any_small_size_come_back() -> None:
    cache, shapes = PixelCache(9, 2**20, 64), [(1, 1), (64, 64), (5, 9), (28, 28), (28, 28)]
    for position, shape in enumerate(shapes):
        cache.add(8 - position, image(*shape, position))
    assert cache.sizes(np.arange(9)).tolist() == [[0, 0]] * 4 + [list(shape) for shape in shapes[::-1]]
    for position, shape in enumerate(shapes):
        np.testing.assert_array_equal(cache.get(8 - position), image(*shape, position))
    np.testing.assert_array_equal(cache.batch(np.array([4, 5, 4])), [image(28, 28, i) for i in (4, 3, 4)])


@pytest.mark.parametrize("positions", [[4, 5, 0], [0, 4], [4, 6]])
def test_a_batch_of_several_sizes_or_with_an_uncached_image_is_refused(positions: list[int]) -> None:
    cache = PixelCache(9, 2**20, 64)
    for position, shape in ((4, (28, 28)), (5, (28, 28)), (6, (28, 27))):
        cache.add(position, image(*shape))
    assert cache.batch(np.array(positions)) is None


def test_large_images_and_those_without_room_are_not_kept() -> None:
    cache = PixelCache(4, 3 * 28 * 28 + 5, 64)
    for position, shape in enumerate([(65, 2), (28, 28), (2, 2), (1, 1)]):
        cache.add(position, image(*shape))
    assert cache.sizes(np.arange(4)).tolist() == [[0, 0], [28, 28], [0, 0], [1, 1]]


def test_an_order_of_memory_other_than_by_channel_does_not_matter() -> None:
    cache, pixels = PixelCache(1, 2**20, 64), image(6, 7)
    cache.add(0, np.ascontiguousarray(pixels.transpose(1, 2, 0)).transpose(2, 0, 1))
    np.testing.assert_array_equal(cache.get(0), pixels)
