"""Prepare: accepted raw files become canonical images in indexed shards, the only thing that training reads.

    python -m pipeline.prepare        in a workspace, after validate

Canonical means upright, RGB, 8 bit, short side bounded as serving resizes, no metadata. With ``prepare.channels`` it
means that number of channels of 16 bits, stored as arrays. Small images are stored as
PNG, so that nothing is lost; larger ones as JPEG without chroma subsampling. Next to them are some of the files as they
came: the export stage compares what is served from them with what was trained on.
"""

import hashlib
import io
import json
import os
import time
from collections import Counter
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from deploy.artifact import publish
from deploy.errors import ImageError
from deploy.images.background import WHITE, letterbox
from deploy.images.full_depth import FULL, Samples, open_full_depth
from deploy.images.npy import array_bytes
from deploy.images.preprocess import LOSSES, MOST_PIXELS, canonicalize, open_image, reduce, reduce_samples
from deploy.plural import counted
from pipeline import preflight
from pipeline.config import PrepareConfig
from pipeline.errors import GateError
from pipeline.ingest.raw import read_bytes
from pipeline.params import read
from pipeline.reports import ValidationReport
from pipeline.stage import run_stage
from pipeline.validation.contract import describe
from pipeline.validation.groups import read as read_groups
from pipeline.workspace import Workspace
from simclr_core import reports
from simclr_core.data import label_sets
from simclr_core.data.groups import UNGROUPED
from simclr_core.data.shards import DatasetCard, Sample, portions, write_card, write_shards, write_tar
from simclr_core.errors import ReportError
from simclr_core.reporter import emit, record_timing

LOSSLESS_UP_TO = 128  # pixels of the longer side; below it PNG costs little, and 8-pixel JPEG blocks would be large
DECODE_BYTES = 64_000_000  # raw bytes handed to the threads at a time; bounds memory
ORIGINALS, ORIGINAL_BYTES = 32, 64_000_000  # files that are kept as they came, and how much they may take
RESTORE = "restore it with `dvc checkout data/raw.dvc`, or validate again with `simclr quarantine rescan --all`"


@dataclass
class PixelSums:
    """Sums over the training pixels (scaled to [0, 1]) and the range of sides; gives mean and standard deviation."""

    pixels: int = 0
    total: Any = 0.0
    squares: Any = 0.0
    min_side: int = 1 << 30
    max_side: int = 0
    is_deep: bool = False

    def add(self, image: Samples) -> None:
        """Add an image [height, width, channels] of uint8, or of uint16 at full depth."""
        height, width, channels = image.shape
        full = 255 if image.dtype == np.uint8 else FULL
        values = np.asarray(image, dtype=np.float64).reshape(-1, channels) / full
        self.is_deep = full == FULL
        self.pixels += len(values)
        self.total = self.total + values.sum(axis=0)
        self.squares = self.squares + (values**2).sum(axis=0)
        self.min_side = min(self.min_side, width, height)
        self.max_side = max(self.max_side, width, height)

    def mean(self) -> tuple[float, ...]:
        return self._rounded(self.total / self.pixels)

    def std(self) -> tuple[float, ...]:
        variance = self.squares / self.pixels - (self.total / self.pixels) ** 2
        least = 1e-12 if self.is_deep else 1e-8  # an all-black data set must not divide by zero
        return self._rounded(np.sqrt(np.maximum(variance, least)))

    def _rounded(self, values: Any) -> tuple[float, ...]:
        digits = 9 if self.is_deep else 6  # a camera may use little of its range
        return tuple(round(float(value), digits) for value in values)


def run(workspace: Workspace) -> None:
    """Write ``data/prepared`` from ``data/raw`` and ``data/manifest``.

    Raises:
        GateError: validation did not pass or left no training image, or data/raw is not what was validated.
    """
    started = time.monotonic()
    everything = read(workspace)
    params, short_side = everything.prepare, everything.prepared_side
    require_valid(workspace)
    columns = ["sha256", "batch", "split", "label", "operations", "width", "height"]
    rows = pq.read_table(workspace.manifest / "accepted.parquet", columns=columns).to_pylist()
    side_of = max if params.letterbox else min
    sides = [side_of(row["width"], row["height"]) for row in rows if row["split"] == "train"]
    require_large_enough(sides, everything.pretrain.image_size, params)
    classes = tuple(sorted(label_sets.members_of(row["label"] for row in rows)))
    several = bool(classes) and any(label_sets.is_set(row["label"]) for row in rows)
    numbers = number_groups(read_groups(workspace.manifest), (row["sha256"] for row in rows if row["split"] == "train"))
    rows = [row | {"group": numbers.get(row["sha256"], UNGROUPED)} for row in rows]
    labels = pq.read_table(workspace.manifest / "quarantine.parquet", columns=["label"])["label"].to_pylist()
    found = preflight.count(preflight.Image(row["split"], row["label"], row["batch"]) for row in rows)
    lost = preflight.lost_classes(found, labels)
    for warning in [*lost, *preflight.warnings(workspace, found)]:  # before hours go into the stages to come
        emit("progress", stage="prepare", message=f"warning: {warning}")
    sums = PixelSums()
    counts = {}
    with publish(workspace.prepared, replace=True) as folder:
        for split in ("train", "test"):
            accepted = {row["sha256"]: row for row in rows if row["split"] == split}
            kept = Originals(sorted(accepted)[: ORIGINALS // 2])
            contents = kept.watch(workspace.raw, accepted)
            samples = _canonical(contents, accepted, short_side, params)
            seen = _counted(samples, sums) if split == "train" else (sample for sample, _ in samples)
            labeled_ones = (_with_labels(sample, accepted[sample.key]["label"], classes, several) for sample in seen)
            by_batch = groupby(labeled_ones, key=lambda sample: accepted[sample.key]["batch"])
            counts[split] = write_shards(
                folder / split,
                map(itemgetter(1), by_batch),
                params.shard_megabytes * 1_000_000,
                len(classes) if several else None,
            )
            kept.write(folder / "originals")
            if counts[split] != len(accepted):
                raise GateError(
                    f"data/raw lacks {counted(len(accepted) - counts[split], f'accepted {split} image')}; {RESTORE}"
                )
            emit("progress", stage="prepare", message=counted(counts[split], f"{split} image"), images=counts[split])
        if not sums.pixels:
            raise GateError("no training image was accepted; see reports/validation.html for the reasons")
        labeled = sum(row["split"] == "train" and row["label"] is not None for row in rows)
        images = {"train": counts["train"], "train_labelled": labeled, "test": counts["test"]}
        card = DatasetCard(
            classes,
            sums.mean(),
            sums.std(),
            sums.min_side,
            sums.max_side,
            images,
            _digest(rows, short_side, params),
            short_side,
            params.background,
            params.letterbox,
            params.channels,
            several,
        )
        write_card(folder, card)
    seconds = time.monotonic() - started
    record_timing("prepare", workspace=workspace.root, seconds=seconds, images_per_second=len(rows) / seconds)


def require_valid(workspace: Workspace) -> None:
    """Refuse to continue unless validation passed: the same gate whether Dagster, ``dvc repro`` or a person starts
    it."""
    try:
        validation = reports.read(workspace.root, ValidationReport)
    except ReportError as error:
        raise GateError(f"{error}; `simclr run --select validate` writes it") from None
    if not validation.passed:
        raise GateError(describe(validation))


def number_groups(groups: Mapping[str, str], images: Iterable[str]) -> dict[str, int]:
    """SHA-256 → number of its group, 0, 1, ... by name, of the images that have a group with another of them.

    Args:
        groups: SHA-256 → group; of any images.
        images: SHA-256 of those that are trained on.
    """
    found = {sha256: groups[sha256] for sha256 in images if sha256 in groups}
    sizes = Counter(found.values())
    numbers = {group: number for number, group in enumerate(sorted(one for one in sizes if sizes[one] > 1))}
    return {sha256: numbers[group] for sha256, group in found.items() if group in numbers}


def require_large_enough(sides: Sequence[int], size: int, params: PrepareConfig) -> None:
    """Raise GateError if more than ``max_enlarged`` of the training images would be enlarged to ``size`` pixels.

    Args:
        sides: the shorter side of each, in pixels; the longer one where images are put into a square as a whole.
    """
    most, which = params.max_enlarged, "longer" if params.letterbox else "shorter"
    small = sum(side < size for side in sides)
    if sides and small > most * len(sides):
        enough = sorted(sides)[int(most * len(sides))]
        raise GateError(
            f"{small:,} of {len(sides):,} training images have fewer than {size} pixels on their {which} side and "
            f"would be enlarged; set pretrain.image_size to {enough} or less, or prepare.max_enlarged above "
            f"{small / len(sides):.2f} to accept it"
        )


def _canonical(
    contents: Iterator[tuple[str, bytes]],
    accepted: dict[str, dict[str, Any]],
    short_side: int,
    params: PrepareConfig,
) -> Iterator[tuple[Sample, Samples]]:
    """Decode and encode the accepted contents in the order of the raw batches, on all cores."""

    def convert(item: tuple[str, bytes]) -> tuple[Sample, Samples]:
        sha256, data = item
        operations, group = (accepted[sha256][name] for name in ("operations", "group"))
        image = _replay(sha256, data, operations, params)
        extension, encoded, pixels = store(image, short_side, params)
        return Sample(sha256, extension, encoded, group=group), pixels

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:  # Pillow's codecs release the GIL
        for portion in portions(contents, DECODE_BYTES, size=lambda item: len(item[1])):
            yield from threads.map(convert, portion)


def _with_labels(sample: Sample, label: str | None, classes: tuple[str, ...], several: bool) -> Sample:
    """The sample with the numbers of its labels; ``several``: any image of the data set may have more than one."""
    if label is None or not classes:
        return sample
    numbers = tuple(classes.index(name) for name in label_sets.members(label))
    return replace(sample, labels=numbers) if several else replace(sample, label=numbers[0])


class Originals:
    """The files with these hashes as they came, as far as they take no more than their part of ORIGINAL_BYTES."""

    def __init__(self, hashes: Collection[str]) -> None:
        self._hashes = hashes
        self._files: list[tuple[str, bytes]] = []

    def watch(self, raw: Path, accepted: Container[str]) -> Iterator[tuple[str, bytes]]:
        """Pass on the accepted contents of the raw batches, in their order, and keep some."""
        taken = 0
        for _, sha256, data in read_bytes(raw):
            if sha256 in accepted:
                if sha256 in self._hashes and taken + len(data) <= ORIGINAL_BYTES // 2:
                    taken += len(data)
                    self._files.append((sha256, data))
                yield sha256, data

    def write(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        if self._files:
            write_tar(folder, self._files)


def _replay(sha256: str, data: bytes, operations: list[str], params: PrepareConfig) -> Image.Image | Samples:
    """The canonical image, made by the operations that validation has recorded for these very bytes."""
    if hashlib.sha256(data).hexdigest() != sha256:
        raise GateError(f"data/raw: {sha256[:12]} differs from the bytes that were ingested; {RESTORE}")
    try:
        image, done = canonical(data, params)
    except ImageError as error:
        raise GateError(
            f"{sha256[:12]}: was validated as {_named(operations)}, and is refused now: {error}; {RESTORE}"
        ) from error
    if _changes(done) != _changes(operations):
        raise GateError(f"{sha256[:12]}: was validated as {_named(operations)}, is read as {_named(done)}; {RESTORE}")
    return image


def _named(operations: list[str]) -> str:
    return ", ".join(operations) or "the pixels as they are"


def _changes(operations: list[str]) -> list[str]:
    return [operation for operation in operations if operation not in LOSSES]


def canonical(data: bytes, params: PrepareConfig) -> tuple[Image.Image | Samples, list[str]]:
    """An RGB image, or the samples of one with a number of channels, uint16 [height, width, channels]; and what was
    done to those of the file. How large is too large was decided by validate.

    Raises:
        ImageError: the file cannot be decoded.
    """
    if params.channels is not None:
        return open_full_depth(data, params.channels, MOST_PIXELS).read()
    return canonicalize(open_image(data, MOST_PIXELS), params.background)


def store(image: Image.Image | Samples, short_side: int, params: PrepareConfig) -> tuple[str, bytes, Samples]:
    """How a canonical image is stored: the extension of its file, the bytes, and the pixels in them before coding."""
    if not isinstance(image, Image.Image):
        samples = reduce_samples(image.astype(np.uint16, copy=False), short_side)
        return "npy", array_bytes(samples), samples
    small = resize(image, short_side, params)
    return *encode(small, params.jpeg_quality), np.asarray(small)


def _counted(samples: Iterator[tuple[Sample, Samples]], sums: PixelSums) -> Iterator[Sample]:
    for sample, image in samples:
        sums.add(image)
        yield sample


def resize(image: Image.Image, short_side: int, params: PrepareConfig) -> Image.Image:
    """Bound the sides of a canonical image as ``Preprocessing`` does before it crops."""
    return letterbox(image, short_side, params.background) if params.letterbox else reduce(image, short_side)


def encode(image: Image.Image, quality: int) -> tuple[str, bytes]:
    content = io.BytesIO()
    if max(image.size) <= LOSSLESS_UP_TO:
        image.save(content, "PNG", compress_level=6)
        return "png", content.getvalue()
    image.save(content, "JPEG", quality=quality, subsampling="4:4:4")
    return "jpg", content.getvalue()


def _digest(rows: list[dict[str, Any]], short_side: int, params: PrepareConfig) -> str:
    """Of what is in the images and of how they are stored: a training continues with the very pixels it began with."""
    lines = sorted(f"{row['sha256']} {row['split']} {json.dumps(row['label'])}\n" for row in rows)
    lines.append(f"{short_side} bilinear {params.jpeg_quality}\n")
    if params.background != WHITE:  # so that digests of earlier releases stay
        lines.append(f"on {params.background}\n")
    if params.letterbox:
        lines.append("letterbox\n")
    lines += sorted(f"{row['sha256']} in group {row['group']}\n" for row in rows if row["group"] != UNGROUPED)
    if params.channels is not None:
        lines.append(f"channels {params.channels}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


if __name__ == "__main__":
    run_stage("prepare", run)
