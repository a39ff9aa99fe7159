"""The prepared images as pixels: padded batches for augmentation, squares for evaluation, made ahead of their use."""

import os
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deploy.failpoint import failpoint
from deploy.images.full_depth import Samples
from deploy.images.preprocess import Preprocessing
from simclr_core.data.pixel_cache import PixelCache
from simclr_core.data.shards import DatasetCard, ShardedImages, stored_kind, stored_pixels
from simclr_core.errors import DatasetError

CACHED_SIDE = 64  # pixels: up to here decoding costs more than an encoder made for such images
CACHE_BYTES = 2 * 2**30
AGAIN = "pretrain again with `simclr run`, or prepare the images as they were with prepare.channels"

Positions = Sequence[int] | NDArray[np.integer]
Item = TypeVar("Item")


class TrainingImages:
    """Batches of decoded images, whatever their sizes. Small ones stay in memory, decoded once for the whole run.

    ``workers`` threads decode, by default one per core: the decoders release the interpreter lock.
    """

    def __init__(self, images: ShardedImages, workers: int | None = None, cache_bytes: int = CACHE_BYTES) -> None:
        self._images = images
        self._pool = ThreadPoolExecutor(workers or _cores(), thread_name_prefix="decode")
        self._cache = PixelCache(len(images), cache_bytes, CACHED_SIDE, *stored_kind(images))

    def __len__(self) -> int:
        return len(self._images)

    def batch(self, indices: Positions, pinned: bool = False) -> tuple[Tensor, Tensor]:
        """uint8 [n, 3, H, W] and int64 [n, 2]: each image in the top left of zeros, and its height and width.

        Of images with a number of channels, uint16 [n, channels, H, W]. H and W are the largest of the batch, which
        holds at least one image. Large images have the channels last in memory, as they are decoded. ``pinned`` puts
        the pixels where a GPU can copy them from without the CPU. Call it from one thread at a time.

        Raises:
            DatasetError: a shard ends too early, or an image cannot be decoded.
        """
        positions = np.asarray(indices, np.int64)
        missing = np.unique(positions[~self._cache.has(positions)]).tolist()
        decoded = dict(zip(missing, self._pool.map(self._decoded, missing), strict=True))
        for position, image in decoded.items():
            self._cache.add(position, image)
        pixels = self._cache.batch(positions)
        if pixels is not None:
            sizes = np.tile(np.array(pixels.shape[2:], np.int64), (len(pixels), 1))
            batch = torch.from_numpy(pixels)
        else:
            images = [decoded[one] if one in decoded else self._cache.get(one) for one in positions.tolist()]
            sizes = np.array([image.shape[1:] for image in images], np.int64)
            batch = _padded(images, *sizes.max(axis=0).tolist())
        return batch.pin_memory() if pinned else batch, torch.from_numpy(sizes)

    def _decoded(self, position: int) -> Samples:
        failpoint("dataset.decode")
        return stored_pixels(self._images, position).transpose(2, 0, 1)


def _padded(images: Sequence[Samples], height: int, width: int) -> Tensor:
    channels, dtype = len(images[0]), torch.uint8 if images[0].dtype == np.uint8 else torch.uint16
    if max(height, width) > CACHED_SIDE:
        batch = torch.zeros((len(images), height, width, channels), dtype=dtype).permute(0, 3, 1, 2)
    else:
        batch = torch.zeros((len(images), channels, height, width), dtype=dtype)
    for row, image in zip(batch.numpy(), images, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image
    return batch


def evaluation_images(images: ShardedImages, indices: Positions, preprocessing: Preprocessing) -> Samples:
    """The images at ``indices`` as the served encoder would see them: uint8 [n, size, size, 3], or uint16 [n, size,
    size, channels].

    Raises:
        DatasetError: a shard ends too early, an image cannot be decoded, or they are not what the encoder takes.
    """
    side = preprocessing.size
    squares: Samples = np.empty((len(indices), side, side, preprocessing.bands), preprocessing.dtype)

    def fill(row: int) -> None:
        pixels = stored_pixels(images, int(indices[row]))
        if (pixels.dtype, pixels.shape[2]) != (squares.dtype, preprocessing.bands):
            found = f"{pixels.dtype} of {pixels.shape[2]} channels"
            raise DatasetError(
                f"the prepared images are {found}, and the encoder takes {preprocessing.described}; {AGAIN}"
            )
        squares[row] = preprocessing.apply(pixels)

    with ThreadPoolExecutor(_cores(), thread_name_prefix="decode") as pool:
        for _ in pool.map(fill, range(len(squares))):
            pass  # asks for each result, so that the first error is raised
    return squares


def require_pixels(card: DatasetCard, preprocessing: Preprocessing, user: str) -> None:
    """Raise DatasetError if images were reduced to fewer pixels than ``user`` takes: it would enlarge them again."""
    if card.short_side is not None and card.short_side < preprocessing.resize:
        raise DatasetError(
            f"the prepared images were reduced to {card.short_side} pixels (shorter side), and {user} takes "
            f"{preprocessing.resize}: they would be enlarged again; set prepare.short_side to null or "
            f"at least {preprocessing.resize}, or pretrain a smaller image_size and resize"
        )


def prefetch(iterable: Iterable[Item], depth: int) -> Generator[Item, None, None]:
    """The items of ``iterable``, up to ``depth`` of them made ahead by one background thread.

    An exception reaches the consumer in its place in the order. A consumer that stops early, or closes the iterator,
    waits for the item in the making and for no other.
    """
    assert depth >= 1, depth
    source = iter(iterable)
    pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
    try:
        ahead = deque(pool.submit(lambda: list(islice(source, 1))) for _ in range(depth))
        while item := ahead.popleft().result():
            ahead.append(pool.submit(lambda: list(islice(source, 1))))
            yield item[0]
    finally:
        pool.shutdown(cancel_futures=True)


def _cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
