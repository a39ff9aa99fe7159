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
from deploy.images.preprocess import Preprocessing, decode
from simclr_core.data.dataset import TrainingImages, evaluation_images, prefetch, require_pixels
from simclr_core.data.shards import DatasetCard, Sample, ShardedImages, write_shards
from simclr_core.errors import DatasetError

SIDES = [(28, 28), (20, 31), (64, 64), (65, 40), (1, 1), (90, 33)]  # (height, width)
PIXELS = [np.random.default_rng(i).integers(0, 256, (*sides, 3), np.uint8) for i, sides in enumerate(SIDES)]


@pytest.fixture
def images(tmp_path: Path) -> ShardedImages:
    return stored(tmp_path / "train", [png(pixels) for pixels in PIXELS])


def test_a_batch_holds_every_image_in_its_corner_and_zeros(images: ShardedImages) -> None:
    indices = [3, 1, 1, 5]
    batch, sizes = TrainingImages(images).batch(indices)
    assert batch.dtype == torch.uint8
    assert batch.shape == (4, 3, 90, 40)
    assert sizes.dtype == torch.int64
    for image, (height, width), index in zip(batch.numpy(), sizes.tolist(), indices, strict=True):
        assert (height, width) == SIDES[index]
        assert np.array_equal(image[:, :height, :width], PIXELS[index].transpose(2, 0, 1))
        image[:, :height, :width] = 0
        assert not image.any()


@pytest.mark.parametrize("workers", [1, 3])
def test_threads_and_cache_change_nothing(images: ShardedImages, workers: int) -> None:
    training = TrainingImages(images, workers)
    once = training.batch(range(6))
    for _ in range(2):
        assert all(map(torch.equal, training.batch(np.arange(6)), once))
    assert all(map(torch.equal, TrainingImages(images, workers, cache_bytes=0).batch(range(6)), once))


def test_images_of_one_size_come_back_in_the_order_asked_for(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 28, 28, 3), np.uint8)
    images = stored(tmp_path / "train", [png(one) for one in pixels])
    for cache_bytes in (2**20, 20_000, 0):  # all, eight of them, none
        training = TrainingImages(images, cache_bytes=cache_bytes)
        for indices in ([3, 2, 3], range(30), [29, 0, 7]):
            batch, sizes = training.batch(indices)
            assert np.array_equal(batch.numpy(), pixels[list(indices)].transpose(0, 3, 1, 2))
            assert sizes.tolist() == [[28, 28]] * len(indices)


def test_large_images_have_the_channels_last_in_memory(images: ShardedImages) -> None:
    training = TrainingImages(images)
    assert training.batch([0, 3])[0].is_contiguous(memory_format=torch.channels_last)
    assert training.batch([0, 1])[0].is_contiguous()


def test_pixels_are_pinned_when_asked_for(images: ShardedImages, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[torch.Size] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda batch: pinned.append(batch.shape) or batch)
    training = TrainingImages(images)
    training.batch([0])
    assert not pinned
    training.batch([0], pinned=True)
    assert pinned == [(1, 3, 28, 28)]


def test_changing_a_batch_does_not_change_the_next(images: ShardedImages) -> None:
    training = TrainingImages(images)
    first, _ = training.batch([0])
    kept = first.clone()
    first.zero_()
    assert torch.equal(training.batch([0])[0], kept)


def test_small_images_are_decoded_once_while_memory_lasts(
    images: ShardedImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []

    def counted(data: bytes) -> np.ndarray:
        decoded.append(1)
        return decode(data)

    monkeypatch.setattr("simclr_core.data.shards.decode", counted)
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
            batch, sizes = training.batch(indices)
            assert (batch.dtype, batch.shape[1]) == (torch.uint16, 5)
            for image, (height, width), index in zip(batch.numpy(), sizes.tolist(), indices, strict=True):
                assert np.array_equal(image[:, :height, :width], DEEP[index].transpose(2, 0, 1))
                assert image.astype(int).sum() == DEEP[index].astype(int).sum(), "the rest is zero"


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
