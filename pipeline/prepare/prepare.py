"""Prepare: accepted raw files become canonical images in indexed shards, the only thing that training reads.

    python -m pipeline.prepare        in a workspace, after validate

What an image becomes is in ``canonical``. What a raw batch gave is kept (``kept_parts``), so that the cost follows what
is new. Next to the images are some of the files as they came: the export stage compares what is served from them with
what was trained on.
"""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from deploy.artifact import publish
from deploy.images.background import WHITE
from deploy.plural import counted
from pipeline.config import PrepareConfig
from pipeline.dvc.cache import objects_folder
from pipeline.errors import GateError
from pipeline.params import read
from pipeline.preflight.images import Image, count
from pipeline.preflight.minimums import lost_classes, warnings
from pipeline.prepare.canonical import RESTORE, StoredForm
from pipeline.prepare.kept_parts import KeptParts
from pipeline.prepare.parts import keys_of, prepare_parts, write_originals
from pipeline.prepare.pixel_sums import PixelSums
from pipeline.reports import ValidationReport
from pipeline.validation.contract import describe
from pipeline.validation.groups import read as read_groups
from pipeline.workspace import Workspace
from simclr_core import reports
from simclr_core.data import label_sets
from simclr_core.data.groups import UNGROUPED
from simclr_core.data.shard_writing import rows_of, write_index
from simclr_core.data.shards import UNLABELED, DatasetCard, write_card
from simclr_core.errors import ReportError
from simclr_core.reporter import emit, record_timing

COLUMNS = ("sha256", "batch", "split", "label", "operations", "width", "height")
SPLITS = ("train", "test")


@dataclass(frozen=True)
class Said:
    """What is said of the images besides their pixels: the classes, whether an image of the data set may have several,
    and the number of the group of each that has one, by SHA-256."""

    classes: tuple[str, ...]
    several: bool
    groups: Mapping[str, int]


def run(workspace: Workspace) -> None:
    """Write ``data/prepared`` from ``data/raw`` and ``data/manifest``.

    Raises:
        GateError: validation did not pass or left no training image, or data/raw is not what was validated.
    """
    started = time.monotonic()
    everything = read(workspace)
    params, form = everything.prepare, StoredForm(everything.prepare, everything.prepared_side)
    require_valid(workspace)
    accepted = pl.read_parquet(workspace.manifest / "accepted.parquet", columns=list(COLUMNS))
    train = accepted.filter(pl.col("split") == "train")
    side_of = pl.max_horizontal if params.letterbox else pl.min_horizontal
    sides = train.select(side_of("width", "height")).to_series().to_list()
    require_large_enough(sides, everything.pretrain.image_size, params)
    _warn(workspace, accepted)
    said = _what_is_said(workspace, accepted)
    kept = KeptParts(workspace.scratch / "prepared", objects_folder(workspace.root))
    with publish(workspace.prepared, replace=True) as folder:
        sums = {
            split: write_split(
                workspace.raw, accepted.filter(pl.col("split") == split), folder / split, form, said, kept
            )
            for split in SPLITS
        }
        if not sums["train"].pixels:
            raise GateError("no training image was accepted; see reports/validation.html for the reasons")
        images = {"train": len(train), "train_labelled": train["label"].count(), "test": len(accepted) - len(train)}
        card = DatasetCard(
            said.classes,
            sums["train"].mean(),
            sums["train"].std(),
            sums["train"].min_side,
            sums["train"].max_side,
            images,
            digest(accepted.select("sha256", "split", "label").iter_rows(), said.groups, form),
            form.short_side,
            params.background,
            params.letterbox,
            params.channels,
            said.several,
        )
        write_card(folder, card)
    kept.drop_unused()
    seconds = time.monotonic() - started
    record_timing("prepare", workspace=workspace.root, seconds=seconds, images_per_second=len(accepted) / seconds)


def write_split(
    raw: Path, images: pl.DataFrame, folder: Path, form: StoredForm, said: Said, kept: KeptParts
) -> PixelSums:
    """Write the shards and the index of one split into ``folder``, and its originals next to that; returns the sums
    over the pixels.

    Args:
        images: the accepted images of the split, with COLUMNS.
    """
    folder.mkdir(parents=True)
    parts = prepare_parts(raw, images, folder, form, kept)
    shards = [shard for _, part in parts for shard in part.shards]
    keys = keys_of(shards)
    if len(keys) != len(images):
        lacking = counted(len(images) - len(keys), f"accepted {folder.name} image")
        raise GateError(f"data/raw lacks {lacking}; {RESTORE}")
    labels = (
        pl.DataFrame({"sha256": keys}, {"sha256": pl.String})
        .join(images, "sha256", "left", maintain_order="left")["label"]
        .to_list()
    )
    groups = np.array([said.groups.get(key, UNGROUPED) for key in keys], np.int32)
    numbers, sets = number_labels(labels, said)
    write_index(folder, shards, numbers, groups, sets)
    write_originals(folder.parent / "originals", parts, keys)
    earlier = sum(part.images for _, part in parts if part.earlier)
    message = counted(len(keys), f"{folder.name} image") + (
        f", {earlier:,} of them prepared earlier" if earlier else ""
    )
    emit("progress", stage="prepare", message=message, images=len(keys))
    return sum((part.sums for _, part in parts), PixelSums())


def number_labels(labels: Sequence[str | None], said: Said) -> tuple[NDArray[np.int64], NDArray[np.int8] | None]:
    """The numbers of the labels of images [n]; where an image may have several, their rows [n, classes] instead."""
    number = {name: place for place, name in enumerate(said.classes)}
    unlabeled = np.full(len(labels), UNLABELED, np.int64)
    if said.several:
        sets = [
            None if label is None else tuple(map(number.__getitem__, label_sets.members(label))) for label in labels
        ]
        return unlabeled, rows_of(sets, len(number))
    if not number:  # labels of which none names a class
        return unlabeled, None
    return np.array([UNLABELED if label is None else number[label] for label in labels], np.int64), None


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


def digest(images: Iterable[tuple[str, str, str | None]], groups: Mapping[str, int], form: StoredForm) -> str:
    """Of what is in the images and of how they are stored: a training continues with the very pixels it began with.

    Args:
        images: SHA-256, split and label of each.
        groups: SHA-256 → number of its group, of those that have one.
    """
    params = form.params
    lines = sorted(f"{sha256} {split} {json.dumps(label)}\n" for sha256, split, label in images)
    lines.append(f"{form.short_side} bilinear {params.jpeg_quality}\n")
    if params.background != WHITE:  # so that digests of earlier releases stay
        lines.append(f"on {params.background}\n")
    if params.letterbox:
        lines.append("letterbox\n")
    lines += sorted(f"{sha256} in group {number}\n" for sha256, number in groups.items())
    if params.channels is not None:
        lines.append(f"channels {params.channels}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _what_is_said(workspace: Workspace, accepted: pl.DataFrame) -> Said:
    labels = accepted["label"].unique().to_list()
    classes = tuple(sorted(label_sets.members_of(labels)))
    train = accepted.filter(pl.col("split") == "train")["sha256"]
    groups = number_groups(read_groups(workspace.manifest), train)
    return Said(classes, bool(classes) and any(map(label_sets.is_set, labels)), groups)


def _warn(workspace: Workspace, accepted: pl.DataFrame) -> None:
    """Say what the labels will not do, before hours go into the stages to come."""
    refused = pl.read_parquet(workspace.manifest / "quarantine.parquet", columns=["label"])["label"]
    found = count(map(Image._make, accepted.select("split", "label", "batch").iter_rows()))
    for warning in [*lost_classes(found, refused.unique()), *warnings(workspace, found)]:
        emit("progress", stage="prepare", message=f"warning: {warning}")
