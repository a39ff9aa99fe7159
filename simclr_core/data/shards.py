"""Canonical images on disk: plain WebDataset tars and an index of 16 bytes per image.

One directory per split, ``data/prepared/{train,test}``:

    <digest>.tar    members ``<sha256>.png|jpg|npy``, readable with ``tar``; named by content, so that a new batch
                    only adds files
    index.npy       one INDEX record per image, memory-mapped; LARGE_INDEX beyond 65,536 shards or 32,768 classes
    keys.npy        uint8 [n, 32]: the SHA-256 of each image's raw file
    groups.npy      int32 [n]: the number of each image's group, UNGROUPED for none; only if there are groups
    labels.npy      int8 [n, classes]: 1 where an image has the class, 0 where not, UNLABELED in the rows of unlabeled
                    ones; only if an image may have several labels, and ``index["label"]`` is UNLABELED of all then
    shards.json     file names of the shards, in the order that ``index["shard"]`` counts

An image is one ``pread`` away, whatever the order; an object store reads the same tars front to back.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from deploy.errors import ImageError
from deploy.images.background import WHITE
from deploy.images.full_depth import Samples
from deploy.images.npy import stored_samples
from deploy.images.signatures import sniff
from simclr_core.data.groups import UNGROUPED
from simclr_core.data.shard_files import ShardFiles
from simclr_core.data.stored_image import StoredImage, open_stored
from simclr_core.errors import DatasetError

INDEX = np.dtype([("offset", "<u8"), ("size", "<u4"), ("shard", "<u2"), ("label", "<i2")])
LARGE_INDEX = np.dtype([("offset", "<u8"), ("size", "<u4"), ("shard", "<u4"), ("label", "<i4")])  # where two bytes end
PLACED = np.dtype([("key", "u1", 32), ("offset", "<u8"), ("size", "<u4")])  # where an image is in its shard
UNLABELED = -1
GROUPS, LABEL_SETS = "groups.npy", "labels.npy"

Item = TypeVar("Item")


@dataclass(frozen=True)
class Sample:
    """One canonical image: ``key`` is the SHA-256 of the raw file, ``data`` its encoded bytes. ``labels``, of an image
    that may have several, has the place of ``label``."""

    key: str
    extension: str
    data: bytes
    label: int = UNLABELED
    group: int = UNGROUPED
    labels: tuple[int, ...] | None = None


@dataclass(frozen=True)
class DatasetCard:
    """What is known of a prepared dataset before an image is read (``data/prepared/dataset.json``).

    ``mean`` and ``std`` are per channel, of pixels scaled to [0, 1]; sides are in pixels; ``images`` counts
    ``train``, ``train_labelled`` and ``test``; ``digest`` changes with any image, label or group. ``short_side`` is
    what the shorter side of larger images was reduced to, the longer one with ``letterbox``; None: an earlier version
    has not recorded it. ``background`` is what transparent images were put on. ``channels`` is how many images have
    that are stored as arrays at full depth; None: they are 8-bit RGB. ``multi_label``: an image may have several
    labels, or none of the classes.
    """

    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    min_side: int
    max_side: int
    images: dict[str, int]
    digest: str
    short_side: int | None = None
    background: str = WHITE
    letterbox: bool = False
    channels: int | None = None
    multi_label: bool = False

    @property
    def bands(self) -> int:
        """Channels of a pixel."""
        return self.channels or 3


class ShardedImages:
    """The images of one split, by position. Safe to read from many threads.

    Examples:
        >>> from simclr_core.data.shard_writing import write_shards
        >>> sample = Sample(key="ab" * 32, extension="png", data=b"the bytes of a PNG", label=3)
        >>> write_shards(Path("train"), [[sample]], max_bytes=2**20)
        1
        >>> images = ShardedImages(Path("train"))
        >>> len(images), images.labels.tolist(), images.read(0)
        (1, [3], b'the bytes of a PNG')
    """

    def __init__(self, directory: Path) -> None:
        try:
            names = json.loads((directory / "shards.json").read_text(encoding="utf-8"))
            self._index = np.load(directory / "index.npy", mmap_mode="r", allow_pickle=False)
            self.keys: NDArray[np.uint8] = np.load(directory / "keys.npy", mmap_mode="r", allow_pickle=False)
            self.groups: NDArray[np.int32] | None = _read_groups(directory)
            self.label_sets: NDArray[np.int8] | None = _read_label_sets(directory)
        except FileNotFoundError as error:
            raise DatasetError(f"{error.filename}: does not exist; run `simclr run --select prepare`") from None
        except ValueError as error:
            raise DatasetError(
                f"{directory}: the index cannot be read ({error}); run `simclr run --select prepare`"
            ) from None
        if self._index.dtype not in (INDEX, LARGE_INDEX) or len(self._index) != len(self.keys):
            raise DatasetError(
                f"{directory}: index.npy and keys.npy do not belong together; run `simclr run --select prepare`"
            )
        if self.groups is not None and (self.groups.dtype != np.int32 or self.groups.shape != self._index.shape):
            raise DatasetError(
                f"{directory}: index.npy and groups.npy do not belong together; run `simclr run --select prepare`"
            )
        if self.label_sets is not None and len(self.label_sets) != len(self._index):
            raise DatasetError(
                f"{directory}: index.npy and labels.npy do not belong together; run `simclr run --select prepare`"
            )
        self._paths = [directory / name for name in names]
        self._files = ShardFiles(self._paths)

    def __len__(self) -> int:
        return len(self._index)

    @property
    def labels(self) -> NDArray[np.int16] | NDArray[np.int32]:
        """[n]; UNLABELED where the user gave none, and of all images where one may have several."""
        return np.asarray(self._index["label"])

    @property
    def shards(self) -> NDArray[np.uint16] | NDArray[np.uint32]:
        """[n], ascending: which shard each image is in."""
        return np.asarray(self._index["shard"])

    @property
    def sizes(self) -> NDArray[np.uint32]:
        """[n]: the encoded bytes of each image."""
        return np.asarray(self._index["size"])

    def key(self, position: int) -> str:
        return bytes(self.keys[position]).hex()

    def read(self, position: int) -> bytes:
        """The encoded bytes of one image.

        Raises:
            DatasetError: the shard is shorter than its index says.
        """
        record = self._index[position]
        shard, size = int(record["shard"]), int(record["size"])
        data = self._files.read(shard, size, int(record["offset"]))
        if len(data) != size:
            raise DatasetError(
                f"{self._paths[shard]}: ends inside image {self.key(position)}; restore it with `dvc checkout --force`"
            )
        return data


def stored_kind(images: ShardedImages) -> tuple[int, type[np.unsignedinteger[Any]]]:
    """The channels of the images and the type of their pixels, as the first one has them; of none, RGB of uint8.

    Raises:
        DatasetError: its shard ends too early.
    """
    data = images.read(0) if len(images) else b""
    if sniff(data) != "npy":
        return 3, np.uint8
    return stored_samples(data).shape[2], np.uint16


def stored_pixels(images: ShardedImages, position: int) -> Samples:
    """A prepared image as it is stored: uint8 [height, width, 3], or uint16 [height, width, channels].

    Raises:
        DatasetError: its shard ends too early, or it cannot be decoded.
    """
    try:
        return open_image(images, position).read()
    except ImageError as error:
        raise undecodable(images, position, error) from error


def open_image(images: ShardedImages, position: int) -> StoredImage:
    """A prepared image of which the header is read, and no pixel is decoded if `prepare` has written it.

    Raises:
        DatasetError: its shard ends too early, or it cannot be decoded.
    """
    try:
        return open_stored(images.read(position))
    except ImageError as error:
        raise undecodable(images, position, error) from error


def undecodable(images: ShardedImages, position: int, error: ImageError) -> DatasetError:
    """Says which prepared image it is that cannot be decoded."""
    return DatasetError(
        f"prepared image {position} ({images.key(position)}) cannot be decoded: {error}; "
        "restore it with `dvc checkout --force`, or prepare again with `simclr run --select prepare`"
    )


def write_card(prepared: Path, card: DatasetCard) -> None:
    unsaid = {"channels": None, "multi_label": False}  # so that the bytes of earlier versions stay
    facts = {name: value for name, value in vars(card).items() if name not in unsaid or value != unsaid[name]}
    (prepared / "dataset.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def read_card(prepared: Path) -> DatasetCard:
    """Read ``dataset.json`` of a prepared dataset."""
    path = prepared / "dataset.json"
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        mean, std = (tuple(float(value) for value in fields.pop(name)) for name in ("mean", "std"))
        card = DatasetCard(classes=tuple(fields.pop("classes")), mean=mean, std=std, **fields)
        if not len(mean) == len(std) == card.bands:
            raise ValueError(f"mean and std have {len(mean)} and {len(std)} values for {card.bands} channels")
        return card
    except FileNotFoundError:
        raise DatasetError(f"{path}: does not exist; run `simclr run --select prepare`") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{path}: cannot be read ({error}); run `simclr run --select prepare`") from None


def content_digest(prepared: Path, splits: Sequence[str] = ("train",)) -> str:
    """SHA-256 of all that is read of some splits, by default that of training: the card, each image's place, label and
    group, and the shards' names, which are hashes of their bytes."""
    names = ("index.npy", "shards.json", GROUPS, LABEL_SETS)
    parts = [prepared / "dataset.json", *(prepared / split / name for split in splits for name in names)]
    parts = [part for part in parts if part.name not in (GROUPS, LABEL_SETS) or part.exists()]
    return hashlib.sha256(b"".join(hashlib.sha256(part.read_bytes()).digest() for part in parts)).hexdigest()


def _read_groups(directory: Path) -> NDArray[np.int32] | None:
    path = directory / GROUPS
    return np.load(path, allow_pickle=False) if path.exists() else None


def _read_label_sets(directory: Path) -> NDArray[np.int8] | None:
    path = directory / LABEL_SETS
    if not path.exists():
        return None
    found: NDArray[np.int8] = np.load(path, mmap_mode="r", allow_pickle=False)
    if found.dtype != np.int8 or found.ndim != 2:
        raise ValueError(f"labels.npy is {found.dtype} {list(found.shape)}, not int8 [images, classes]")
    return found
