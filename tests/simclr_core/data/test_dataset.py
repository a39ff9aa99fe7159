"""Pixels come back as they were stored, whatever the size, cache and threads; prefetching changes nothing but time."""

import hashlib
import io
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import simclr_core.data.dataset as module
from deploy.images.npy import array_bytes
from deploy.images.preprocess import Preprocessing
from simclr_core.data.dataset import (
    TrainingImages,
    evaluation_images,
    prefetch,
    require_pixels,
)
from simclr_core.data.ragged import RaggedImages
from simclr_core.data.shard_writing import write_shards
from simclr_core.data.shards import DatasetCard, Sample, ShardedImages
from simclr_core.data.stored_image import StoredImage, open_stored
from simclr_core.errors import DatasetError

SIDES = [(28, 28), (20, 31), (64, 64), (65, 40), (1, 1), (90, 33)]  # (height, width)
PIXELS = [np.random.default_rng(i).integers(0, 256, (*sides, 3), np.uint8) for i, sides in enumerate(SIDES)]


@pytest.fixture
def images(tmp_path: Path) -> ShardedImages:
    return stored(tmp_path / "train", [png(pixels) for pixels in PIXELS])


def test_a_batch_holds_every_image_and_nothing_else(images: ShardedImages) -> None:
    indices = [3, 1, 1, 5]
    batch = TrainingImages(images).batch(indices)
    assert batch.samples.dtype == torch.uint8
    assert batch.sizes.tolist() == [list(SIDES[index]) for index in indices]
    assert batch.samples.numel() == sum(PIXELS[index].size for index in indices)
    for row, index in enumerate(indices):
        assert np.array_equal(batch.image(row).numpy(), PIXELS[index].transpose(2, 0, 1))


def test_a_wide_and_a_tall_image_cost_their_pixels(tmp_path: Path, unpinned: list[int]) -> None:
    """The bytes of a batch over its pixels, next to 14 squares: 1, and on the way to a GPU at most 1.1."""
    sides = [(10, 100), (100, 10), *[(32, 32)] * 14]
    files = [png(np.random.default_rng(0).integers(0, 256, (*one, 3), np.uint8)) for one in sides]
    training = TrainingImages(stored(tmp_path / "train", files))
    pixels = 3 * sum(height * width for height, width in sides)
    for _ in range(2):  # decoded, from memory
        assert training.batch(range(16)).samples.nbytes == pixels
        assert pixels + 3 * 100 <= training.batch(range(16), pinned=True).samples.nbytes <= 1.1 * pixels
    assert len(unpinned) == 4


@pytest.fixture
def unpinned(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of buffers; there is no pinned memory without a GPU."""
    sizes: list[int] = []

    def host_buffer(count: int, dtype: torch.dtype, pinned: bool) -> torch.Tensor:
        sizes.append(count)
        return torch.empty(count, dtype=dtype)

    monkeypatch.setattr(module, "host_buffer", host_buffer)
    return sizes


@pytest.mark.parametrize("workers", [1, 3])
def test_threads_cache_and_pinned_memory_change_nothing(
    images: ShardedImages, workers: int, unpinned: list[int]
) -> None:
    training = TrainingImages(images, workers)
    once = training.batch(range(6))
    for again in (training.batch(np.arange(6)), training.batch(range(6), pinned=True)):
        assert_same(again, once)
    assert_same(TrainingImages(images, workers, cache_bytes=0).batch(range(6)), once)
    assert_same(training.batch([0], pinned=True), training.batch([0]))


def assert_same(got: RaggedImages, expected: RaggedImages) -> None:
    assert np.array_equal(got.sizes, expected.sizes)
    assert (got.channels, got.channels_last, got.colorless) == (
        expected.channels,
        expected.channels_last,
        expected.colorless,
    )
    for row in range(len(expected)):
        assert torch.equal(got.image(row), expected.image(row))


def test_images_of_one_size_come_back_in_the_order_asked_for(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 28, 28, 3), np.uint8)
    images = stored(tmp_path / "train", [png(one) for one in pixels])
    for cache_bytes in (2**20, 20_000, 0):  # all, eight of them, none
        training = TrainingImages(images, cache_bytes=cache_bytes)
        for indices in ([3, 2, 3], range(30), [29, 0, 7]):
            batch = training.batch(indices)
            assert batch.sizes.tolist() == [[28, 28]] * len(indices)
            whole = batch.padded(slice(0, len(indices)))
            assert np.array_equal(whole.numpy(), pixels[list(indices)].transpose(0, 3, 1, 2))


def test_large_images_have_the_channels_last_in_memory(images: ShardedImages) -> None:
    training = TrainingImages(images)
    assert training.batch([0, 3]).channels_last
    assert not training.batch([0, 1]).channels_last


def test_gray_images_are_known_once_they_were_decoded(tmp_path: Path) -> None:
    gray = [np.repeat(pixels[..., :1], 3, axis=2) for pixels in PIXELS]
    almost = gray[5].copy()
    almost[-1, -1, 2] ^= 1
    images = stored(tmp_path / "train", [*map(png, gray), png(almost), png(PIXELS[0])])
    training = TrainingImages(images)
    for _ in range(2):
        assert training.batch(range(6)).colorless
        assert training.batch([0]).colorless
        assert not training.batch([0, 6]).colorless
        assert not training.batch([0, 7]).colorless


def test_changing_a_batch_does_not_change_the_next(images: ShardedImages) -> None:
    training = TrainingImages(images)
    first = training.batch([0])
    kept = first.samples.clone()
    first.samples.zero_()
    assert torch.equal(training.batch([0]).samples, kept)


def test_small_images_are_decoded_once_while_memory_lasts(
    images: ShardedImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []

    def counted(data: bytes) -> StoredImage:
        decoded.append(1)
        return open_stored(data)

    monkeypatch.setattr("simclr_core.data.shards.open_stored", counted)
    training = TrainingImages(images)
    for expected in (6, 2):  # two are larger than 64 pixels
        training.batch([0, 1, 2, 3, 4, 5, 0, 3])
        assert len(decoded) == expected
        decoded.clear()
    tight = TrainingImages(images, cache_bytes=PIXELS[0].nbytes)
    tight.batch([0, 1])
    decoded.clear()
    tight.batch([0, 1])
    assert len(decoded) == 1


def test_evaluation_sees_what_the_served_encoder_sees(images: ShardedImages) -> None:
    preprocessing = Preprocessing(size=24, resize=28)
    squares = evaluation_images(images, [5, 0, 5], preprocessing)
    assert squares.dtype == np.uint8
    assert squares.shape == (3, 24, 24, 3)
    for square, index in zip(squares, [5, 0, 5], strict=True):
        assert np.array_equal(square, preprocessing.apply(PIXELS[index]))
    assert evaluation_images(images, [], preprocessing).shape == (0, 24, 24, 3)


@pytest.mark.parametrize("data", [b"", b"not an image", None])
def test_a_damaged_image_is_named(tmp_path: Path, data: bytes | None) -> None:
    good = png(PIXELS[0])
    images = stored(tmp_path / "train", [good, good[:60] if data is None else data])
    message = f"prepared image 1 .{images.key(1)}. cannot be decoded: .*; restore it with `dvc checkout"
    with pytest.raises(DatasetError, match=message):
        TrainingImages(images).batch([0, 1])
    with pytest.raises(DatasetError, match=message):
        evaluation_images(images, [0, 1], Preprocessing(size=8, resize=8))


@pytest.mark.parametrize(("kept", "refused"), [(None, False), (31, True), (32, False), (256, False)])
def test_images_that_were_reduced_are_not_enlarged_again(kept: int | None, refused: bool) -> None:
    card = DatasetCard((), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), 8, 300, {}, "", kept)
    with (
        pytest.raises(
            DatasetError,
            match=r"reduced to 31 pixels .*, and pretraining takes 32: .*short_side to null or at least 32",
        )
        if refused
        else nullcontext()
    ):
        require_pixels(card, Preprocessing(24, 32), "pretraining")


@pytest.mark.parametrize("depth", [1, 2, 10])
def test_prefetch_keeps_the_order(depth: int) -> None:
    assert list(prefetch(range(7), depth)) == list(range(7))
    assert list(prefetch([], depth)) == []
    assert list(prefetch([None, 0, False], depth)) == [None, 0, False]


def test_prefetch_works_ahead_by_its_depth_and_no_further() -> None:
    made: list[int] = []
    fourth = threading.Event()

    def numbers() -> Iterator[int]:
        for number in range(100):
            made.append(number)
            if number == 3:
                fourth.set()
            yield number

    items = prefetch(numbers(), 3)
    assert next(items) == 0
    assert fourth.wait(timeout=60)  # items 1, 2 and 3 without being asked for
    items.close()
    assert made == [0, 1, 2, 3]


def test_closing_prefetch_waits_only_for_the_current_item(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    begun, canceled = threading.Event(), threading.Event()

    class Pool(ThreadPoolExecutor):
        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            super().shutdown(wait=False, cancel_futures=cancel_futures)
            canceled.set()
            super().shutdown(wait=wait)

    def numbers() -> Iterator[int]:
        for number in range(100):
            if number == 1:
                begun.set()
                assert canceled.wait(timeout=60)
            made.append(number)
            yield number

    monkeypatch.setattr(module, "ThreadPoolExecutor", Pool)
    items = prefetch(numbers(), 5)
    assert next(items) == 0
    assert begun.wait(timeout=60)
    items.close()
    assert made == [0, 1]


def test_prefetch_raises_an_error_in_its_place() -> None:
    def failing() -> Iterator[int]:
        yield 1
        raise DatasetError("the second")

    items = prefetch(failing(), 4)
    assert next(items) == 1
    with pytest.raises(DatasetError, match="the second"):
        next(items)
    assert list(items) == []


def test_prefetch_leaves_no_thread_behind() -> None:
    before = set(threading.enumerate())
    items = prefetch(iter(int, 1), 2)
    next(items)
    assert set(threading.enumerate()) > before
    items.close()
    assert set(threading.enumerate()) == before


def stored(directory: Path, files: list[bytes]) -> ShardedImages:
    written = [Sample(hashlib.sha256(data + bytes([i])).hexdigest(), "png", data) for i, data in enumerate(files)]
    write_shards(directory, [written], max_bytes=10_000)
    return ShardedImages(directory)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


DEEP = [np.random.default_rng(i).integers(0, 65_536, (*sides, 5), np.uint16) for i, sides in enumerate(SIDES)]


def stored_deep(folder: Path, pixels: list[np.ndarray]) -> ShardedImages:
    samples = [Sample(f"{number:064x}", "npy", array_bytes(one)) for number, one in enumerate(pixels)]
    write_shards(folder, [samples], max_bytes=10**6)
    return ShardedImages(folder)


@pytest.mark.parametrize("cache_bytes", [2**20, 10_000, 0])  # all small ones, some of them, none
def test_images_at_full_depth_come_back_as_they_were_stored(tmp_path: Path, cache_bytes: int) -> None:
    training = TrainingImages(stored_deep(tmp_path / "train", DEEP), cache_bytes=cache_bytes)
    for _ in range(2):
        for indices in ([3, 1, 1, 5], [0, 2], [1, 1]):
            batch = training.batch(indices)
            assert (batch.samples.dtype, batch.channels, batch.colorless) == (torch.uint16, 5, False)
            for row, index in enumerate(indices):
                assert np.array_equal(batch.image(row).numpy(), DEEP[index].transpose(2, 0, 1))


def test_evaluation_takes_images_at_full_depth_and_no_others(images: ShardedImages, tmp_path: Path) -> None:
    deep = stored_deep(tmp_path / "deep", DEEP)
    preprocessing = Preprocessing(8, 10, channels=5)
    squares = evaluation_images(deep, [5, 0], preprocessing)
    assert squares.dtype == np.uint16
    assert np.array_equal(squares, np.stack([preprocessing.apply(DEEP[5]), preprocessing.apply(DEEP[0])]))
    for source, taken in (
        (images, preprocessing),
        (deep, Preprocessing(8, 10)),
        (deep, Preprocessing(8, 8, channels=4)),
    ):
        with pytest.raises(
            DatasetError, match=r"the prepared images are uint(8 of 3|16 of 5) channels, and the encoder"
        ):
            evaluation_images(source, [0], taken)
