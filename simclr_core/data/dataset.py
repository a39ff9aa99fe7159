"""The prepared images as pixels: batches for augmentation, squares for evaluation, made ahead of their use."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from deploy.errors import ImageError
from deploy.failpoint import failpoint
from deploy.images.full_depth import Samples
from deploy.images.preprocess import Preprocessing
from simclr_core.data.gpu_decoding import EncodedImages
from simclr_core.data.pixel_cache import PixelCache
from simclr_core.data.ragged import RaggedImages, starts_of
from simclr_core.data.shards import DatasetCard, ShardedImages, open_image, stored_kind, stored_pixels, undecodable
from simclr_core.data.stored_image import StoredImage
from simclr_core.data.transfer import host_buffer
from simclr_core.errors import DatasetError
from simclr_core.machine.threads import own_cores

CACHED_SIDE = 64  # pixels: up to here decoding costs more than an encoder made for such images
CACHE_BYTES = 2 * 2**30
UNKNOWN, COLORED, COLORLESS = range(3)
AGAIN = "pretrain again with `simclr run`, or prepare the images as they were with prepare.channels"

Positions = Sequence[int] | NDArray[np.integer]
Item = TypeVar("Item")


class TrainingImages:
    """Batches of decoded images, whatever their sizes. Small ones stay in memory, decoded once for the whole run.

    Of large ones the sides are kept: from the second time on a file is read by the thread that decodes it, just before,
    so that its bytes are still in the cache of the core. ``workers`` threads decode, by default this process's share of
    the cores: the decoders release the interpreter lock.
    """

    def __init__(self, images: ShardedImages, workers: int | None = None, cache_bytes: int = CACHE_BYTES) -> None:
        self.images = images
        self._workers = workers or own_cores()
        self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="decode")
        self._channels, kind = stored_kind(images)
        self._dtype = torch.uint8 if kind == np.uint8 else torch.uint16
        self._cache = PixelCache(len(images), cache_bytes, CACHED_SIDE, self._channels, kind)
        self._sizes = np.zeros((len(images), 2), np.int32)  # known once an image was opened
        self._colors = np.zeros(len(images), np.uint8)  # known once it was decoded

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Positions, pinned: bool = False) -> RaggedImages:
        """At least one image, one directly after the other: with the channels last, as they are decoded, unless all of
        them are small.

        The decoding threads write each image into its place. ``pinned`` puts the batch where a GPU can copy from
        without the CPU, and rounds its memory up by a sixteenth at most, so that few sizes occur. Call it from one
        thread at a time.

        Raises:
            DatasetError: a shard ends too early, or an image cannot be decoded.
        """
        positions = np.asarray(indices, np.int64)
        sizes = self._cache.sizes(positions)
        missing = sizes[:, 0] == 0
        sizes[missing] = self._sizes[positions[missing]]
        unknown = sizes[:, 0] == 0
        opened = self._opened(np.unique(positions[unknown]).tolist())
        for row in np.flatnonzero(unknown).tolist():
            sizes[row] = opened[int(positions[row])].shape[:2]
        self._sizes[positions[unknown]] = sizes[unknown]
        cached = None if missing.any() else self._cache.batch(positions)
        if cached is not None and not pinned:
            samples = torch.from_numpy(cached.reshape(-1))
        else:
            samples = host_buffer(*self._room(sizes, pinned), pinned)
            if cached is not None:
                samples.numpy()[: cached.size] = cached.reshape(-1)
            else:
                self._fill(_places(samples.numpy(), sizes, self._channels), positions, missing, opened)
        colorless = self._channels == 3 and bool((self._colors[positions] == COLORLESS).all())
        return RaggedImages(samples, sizes, self._channels, _are_large(sizes), colorless)

    def encoded(self, indices: Positions) -> EncodedImages:
        """A batch for a GPU that decodes it, of 8-bit RGB.

        Raises:
            DatasetError: as ``batch``.
        """
        positions = np.asarray(indices, np.int64)
        opened = self._opened(np.unique(positions).tolist())
        stored = [opened[position] for position in positions.tolist()]
        return EncodedImages(self.images, positions, stored, np.array([one.shape[:2] for one in stored], np.int64))

    def _room(self, sizes: NDArray[np.int64], pinned: bool) -> tuple[int, torch.dtype]:
        """How many numbers a batch takes, and of which type."""
        count = self._channels * int(sizes.prod(axis=1).sum())
        if pinned:  # a row more: a GPU reads all rows of a crop as far as the widest one
            count = _rounded(count + self._channels * int(sizes[:, 1].max()))
        return count, self._dtype

    def _opened(self, positions: Sequence[int]) -> dict[int, StoredImage]:
        """By position, images with their sides, and as they are stored."""
        opened: dict[int, StoredImage] = {}

        def read(position: int) -> None:
            opened[position] = self._open(position)

        self._share_out(read, positions)
        return opened

    def _open(self, position: int) -> StoredImage:
        failpoint("dataset.decode")
        return open_image(self.images, position)

    def _fill(
        self,
        places: Sequence[Samples],
        positions: NDArray[np.int64],
        missing: NDArray[np.bool_],
        opened: dict[int, StoredImage],
    ) -> None:
        """Put the images of a batch into their ``places``: from memory, and those that are ``missing`` there from what
        was opened, which is let go, or from their files."""
        first: dict[int, Samples] = {}  # where an image is decoded; it may occur again
        for position, is_missing, place in zip(positions.tolist(), missing.tolist(), places, strict=True):
            if is_missing:
                first.setdefault(position, place)
            else:
                place[:] = self._cache.get(position).transpose(1, 2, 0)

        def decode(position: int) -> None:
            image, place = opened.pop(position, None) or self._open(position), first[position]
            assert image.shape == place.shape, "the shards of a run stay as they are"
            try:
                image.decode(place)
            except ImageError as error:
                raise undecodable(self.images, position, error) from error
            if self._colors[position] == UNKNOWN:
                self._colors[position] = COLORLESS if _is_colorless(place) else COLORED

        self._share_out(decode, list(first))
        for position, place in zip(positions.tolist(), places, strict=True):
            if position in first and place is not first[position]:
                place[:] = first[position]
        for position, place in first.items():
            self._cache.add(position, place.transpose(2, 0, 1))

    def _share_out(self, work: Callable[[int], None], items: Sequence[int]) -> None:
        """Do ``work`` for each item, on all threads; what one of them raises is raised here."""
        left = iter(items)

        def turn() -> None:
            for item in left:  # of all threads: each takes the next one
                work(item)

        for done in [self._pool.submit(turn) for _ in range(min(self._workers, len(items)))]:
            done.result()


class UndecodedImages:
    """``TrainingImages`` of 8-bit RGB for a GPU that decodes: read, and their headers looked at."""

    def __init__(self, training: TrainingImages) -> None:
        self.images = training.images
        self._training = training

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Positions, pinned: bool = False) -> EncodedImages:  # noqa: ARG002  # files are few bytes
        return self._training.encoded(indices)


def _are_large(sizes: NDArray[np.int64]) -> bool:
    return int(sizes.max()) > CACHED_SIDE


def _places(samples: Samples, sizes: NDArray[np.int64], channels: int) -> list[Samples]:
    """The part of ``samples`` of each image, as [height, width, channels]."""
    places = []
    is_large = _are_large(sizes)
    for start, (height, width) in zip(starts_of(sizes, channels).tolist(), sizes.tolist(), strict=True):
        flat = samples[start : start + height * width * channels]
        place = flat.reshape(height, width, channels) if is_large else flat.reshape(channels, height, width)
        places.append(place if is_large else place.transpose(1, 2, 0))
    return places


def _rounded(count: int) -> int:
    step = 1 << max(count.bit_length() - 5, 0)
    return -(-count // step) * step


def _is_colorless(pixels: Samples) -> bool:
    """Whether three channels [h, w, 3] are equal; one row is enough to see that most are not."""
    return pixels.shape[2] == 3 and _are_equal(pixels[len(pixels) // 2]) and _are_equal(pixels)


def _are_equal(pixels: Samples) -> bool:
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    return np.array_equal(red, green) and np.array_equal(green, blue)


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

    with ThreadPoolExecutor(own_cores(), thread_name_prefix="decode") as pool:
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


def prefetch(
    iterable: Iterable[Item], depth: int, begin: Callable[[], None] | None = None
) -> Generator[Item, None, None]:
    """The items of ``iterable``, up to ``depth`` of them made ahead by one thread, which calls ``begin`` first.

    An exception reaches the consumer in its place in the order. A consumer that stops early, or closes the iterator,
    waits for the item in the making and for no other.
    """
    assert depth >= 1, depth
    source = iter(iterable)
    pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch", initializer=begin)
    try:
        ahead = deque(pool.submit(lambda: list(islice(source, 1))) for _ in range(depth))
        while item := ahead.popleft().result():
            ahead.append(pool.submit(lambda: list(islice(source, 1))))
            yield item[0]
    finally:
        pool.shutdown(cancel_futures=True)
