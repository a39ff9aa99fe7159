"""Write canonical images into shards, and the index that leads to them; ``shards`` describes the files."""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from simclr_core.data.groups import UNGROUPED
from simclr_core.data.shards import GROUPS, INDEX, LABEL_SETS, LARGE_INDEX, PLACED, UNLABELED, Sample

Item = TypeVar("Item")


@dataclass(frozen=True)
class Shard:
    """A tar of canonical images: its file name, and of each image PLACED."""

    name: str
    placed: NDArray[Any]


def write_shards(
    directory: Path, batches: Iterable[Iterable[Sample]], max_bytes: int, classes: int | None = None
) -> int:
    """Write one split. Each raw batch starts a new shard; a shard ends before ``max_bytes`` of images.

    ``classes`` is how many there are where an image may have several; None: each has one at most.

    Returns the number of images.
    """
    directory.mkdir(parents=True)
    said: list[tuple[int, int, tuple[int, ...] | None]] = []

    def noted(batch: Iterable[Sample]) -> Iterator[Sample]:
        for sample in batch:
            said.append((sample.label, sample.group, sample.labels))
            yield sample

    shards = [shard for batch in batches for shard in write_tars(directory, noted(batch), max_bytes)]
    labels, groups, sets = zip(*said, strict=True) if said else ((), (), ())
    several = None if classes is None else rows_of(sets, classes)
    write_index(directory, shards, np.array(labels, np.int64), np.array(groups, np.int32), several)
    return len(said)


def write_tars(directory: Path, samples: Iterable[Sample], max_bytes: int) -> Iterator[Shard]:
    """Write images, but not what is said of them, into shards, each of which ends before ``max_bytes`` of them."""
    for portion in portions(samples, max_bytes, size=lambda sample: len(sample.data)):
        name, offsets = write_tar(directory, ((f"{one.key}.{one.extension}", one.data) for one in portion))
        placed = np.empty(len(portion), PLACED)
        placed["key"] = np.frombuffer(b"".join(bytes.fromhex(one.key) for one in portion), np.uint8).reshape(-1, 32)
        placed["offset"] = offsets
        placed["size"] = [len(one.data) for one in portion]
        yield Shard(name, placed)


def write_index(
    directory: Path,
    shards: Sequence[Shard],
    labels: NDArray[np.int64],
    groups: NDArray[np.int32],
    label_sets: NDArray[np.int8] | None = None,
) -> None:
    """Write what leads to the images of these shards, in their order, and what is said of each.

    Args:
        labels: [n], UNLABELED for none.
        groups: [n], UNGROUPED for none.
        label_sets: [n, classes] as in ``labels.npy``; None: an image has one label at most.
    """
    placed = np.concatenate([np.empty(0, PLACED), *(shard.placed for shard in shards)])
    fits = len(shards) <= 1 + np.iinfo(np.uint16).max and labels.max(initial=0) <= np.iinfo(np.int16).max
    index = np.empty(len(placed), INDEX if fits else LARGE_INDEX)
    index["offset"], index["size"] = placed["offset"], placed["size"]
    index["shard"] = np.repeat(np.arange(len(shards)), [len(shard.placed) for shard in shards])
    index["label"] = labels
    np.save(directory / "index.npy", index)
    np.save(directory / "keys.npy", np.ascontiguousarray(placed["key"]))
    if (groups != UNGROUPED).any():
        np.save(directory / GROUPS, groups)
    if label_sets is not None:
        np.save(directory / LABEL_SETS, label_sets)
    names = [shard.name for shard in shards]
    (directory / "shards.json").write_text(json.dumps(names, indent=1) + "\n", encoding="utf-8")


def rows_of(sets: Sequence[tuple[int, ...] | None], classes: int) -> NDArray[np.int8]:
    """The rows of ``labels.npy`` for the numbers of each image's classes; None: unlabeled."""
    rows = np.full((len(sets), classes), UNLABELED, np.int8)
    for row, labels in zip(rows, sets, strict=True):
        if labels is not None:
            row[:] = 0
            row[list(labels)] = 1
    return rows


def portions(items: Iterable[Item], max_bytes: int, size: Callable[[Item], int]) -> Iterator[list[Item]]:
    """Cut a stream into runs of at most ``max_bytes``; an item larger than that is its own run."""
    portion: list[Item] = []
    total = 0
    for item in items:
        if portion and total + size(item) > max_bytes:
            yield portion
            portion, total = [], 0
        portion.append(item)
        total += size(item)
    if portion:
        yield portion


def write_tar(directory: Path, members: Iterable[tuple[str, bytes]]) -> tuple[str, list[int]]:
    """Write one tar named by its content, the same for the same members anywhere and at any time.

    Returns its file name and where each member's bytes begin.
    """
    content = io.BytesIO()
    offsets = []
    with tarfile.open(fileobj=content, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            offsets.append(content.tell() + tarfile.BLOCKSIZE)
            tar.addfile(member, io.BytesIO(data))
    name = hashlib.sha256(content.getbuffer()).hexdigest()[:16] + ".tar"
    (directory / name).write_bytes(content.getbuffer())
    return name, offsets
