"""What the sources of images hold: counts by a listing of everything, pictures by a sample that is looked at.

The sample is the same for the same paths, whatever the machine.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Self, TypeVar

import numpy as np

from deploy.images import heif
from deploy.images.signatures import HEAD_BYTES, is_array, is_image, named_as_image
from deploy.session import available_cpus
from pipeline.config import ValidateConfig
from pipeline.costs.images import sample
from pipeline.errors import IngestError
from pipeline.ingest.files.selection import ALL, Selection
from pipeline.ingest.labels.folders import role_of
from pipeline.ingest.layout import Place, read_layout
from pipeline.ingest.raw import next_name
from pipeline.ingest.sources import Source, find_repeated, list_source, unique
from pipeline.ingest.understood import list_notes
from pipeline.preflight.images import Images
from pipeline.proposal.glance import SIDES, Glance, glance, read_glance
from pipeline.validation.probe.pool import isolated_map

Label = TypeVar("Label", str, str | None)

VALIDATE = ValidateConfig()  # as in every recipe
SAMPLE_IMAGES = 400
SAMPLE_BYTES = 1_500_000_000  # scans of 100 MB: fewer are looked at
MEMORY_MEGABYTES, TIMEOUT_SECONDS = 2048, 20.0  # of a worker; as validate's
COPY_LEVELS = 2.0  # of 255: mean difference of two 16 x 16 gists below which the pictures are nearly the same


@dataclass(frozen=True)
class Collection:
    """``labels`` counts images by (split, class), None for unlabeled ones; ``others`` files that are not images, by
    suffix; ``folders`` unlabeled images by their first folder; ``glances`` is the sample, from ``paths``, without the
    ``unreadable`` paths. ``unread_heic`` counts files that need the extra; ``contents`` are a few files of the sample.
    ``arrays``: arrays of numpy are images. ``notes`` say what the names of folders may mean otherwise, ``class_notes``
    those with the first folder of an unlabeled image as its class."""

    labels: dict[Place, int]
    others: dict[str, int]
    folders: dict[str, int]
    glances: tuple[Glance, ...]
    paths: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()
    unread_heic: int = 0
    contents: tuple[bytes, ...] = ()
    arrays: bool = False
    notes: tuple[str, ...] = ()
    class_notes: tuple[str, ...] = ()

    @cached_property
    def images(self) -> int:
        return sum(self.labels.values())

    @property
    def sampled(self) -> int:
        return len(self.glances) + len(self.unreadable)

    @cached_property
    def training_images(self) -> int:
        return sum(count for place, count in self.labels.items() if place.split == "train")

    def count(self, split: str) -> dict[str, int]:
        """Labeled images of a split, by class."""
        return {place.label: n for place, n in self.labels.items() if place.split == split and place.label is not None}

    @property
    def numbers(self) -> Images:
        """As one batch."""
        train, test = (
            Counter({place.label: n for place, n in self.labels.items() if place.split == split and n})
            for split in ("train", "test")
        )
        return Images(train, test, Counter({next_name([]): self.training_images}))

    def with_class_folders(self) -> Self:
        """The collection in which the first folder of an unlabeled image is its class."""
        labels = Counter(self.labels)
        labels[Place("train", None)] -= sum(self.folders.values())
        labels.update({Place("train", name): count for name, count in self.folders.items()})
        return replace(self, labels=dict(labels), folders={}, notes=self.class_notes)

    def with_held_out(self, share: float) -> Self:
        """The collection in which this share of the labeled training images is held out."""
        labels = Counter(self.labels)
        for name, held_out in share_of(self.count("train"), share).items():
            labels[Place("train", name)] -= held_out
            labels[Place("test", name)] += held_out
        return replace(self, labels=dict(labels))

    def short_side(self, quantile: float) -> int:
        """In pixels."""
        return round(float(np.quantile([one.short_side for one in self.glances], quantile)))

    def aspect(self, quantile: float) -> float:
        """The longer side over the shorter."""
        ratios = [max(one.width, one.height) / one.short_side for one in self.glances]
        return float(np.quantile(ratios, quantile))

    def share(self, attribute: str) -> float:
        """Of the sample that has ``has_color`` or ``has_alpha``, is ``deep``, or ``needs_depth``."""
        return sum(bool(getattr(one, attribute)) for one in self.glances) / len(self.glances)

    def blank(self, background: str, deviation: float) -> int:
        """Images of the sample whose pixels hardly differ on this background: by less than ``deviation``."""
        return sum(one.deviations[background] < deviation for one in self.glances)

    def lost(self, side: int, quantile: float) -> float:
        """Detail that a reduction to ``side`` removes, at most, in this share of the images: 0 to 1."""
        return float(np.quantile([one.lost[SIDES.index(side)] for one in self.glances], quantile))

    @cached_property
    def channels(self) -> int | None:
        """With which the images of the sample can be read at full depth, if some of them need it: the most frequent
        number, if nearly all others are arrays too, which as 8-bit RGB would be left out as well."""
        channels, count = Counter(one.channels for one in self.glances).most_common(1)[0]
        needing = sum(one.needs_depth for one in self.glances if one.channels == channels)
        others = [one for one in self.glances if one.channels != channels]
        lost = sum(not (self.arrays and one.needs_depth) for one in others)
        few = lost <= VALIDATE.max_quarantine_rate * len(self.glances) and 2 * needing > len(self.glances)
        return channels if channels and needing and (few or count == len(self.glances)) else None

    @cached_property
    def likeness(self) -> float:
        """Mean correlation of two images as 16 x 16 levels: near 1 where all show the same kind of part."""
        gists = np.array([one.gist for one in self.glances], np.float64)
        gists -= gists.mean(axis=1, keepdims=True)
        gists /= np.maximum(np.linalg.norm(gists, axis=1, keepdims=True), 1e-9)
        n = len(gists)
        return float((np.square(gists.sum(axis=0)).sum() - n) / (n * (n - 1))) if n > 1 else 0.0

    @cached_property
    def copies(self) -> float:
        """The share of the sample of which another image of it is nearly a copy."""
        gists = np.array([one.gist for one in self.glances], np.float32)
        near = [np.abs(gists - gist).mean(axis=1) < COPY_LEVELS for gist in gists]
        return float(np.mean([one.sum() > 1 for one in near]))


def share_of(counts: Mapping[Label, int], share: float) -> dict[Label, int]:
    """About this share of each number, and of their sum as nearly as whole numbers allow: also where most are 1, as of
    images with several labels each."""
    found, seen, taken = dict[Label, int](), 0, 0
    for label, count in counts.items():
        seen += count
        found[label] = round(share * seen) - taken
        taken += found[label]
    return found


def examine(root: Path, names: Sequence[str], selection: Selection = ALL) -> Collection:
    """List the sources, read a sample of their images in confined workers, and sum up.

    Args:
        root: the workspace; a relative source is taken from it.

    Raises:
        IngestError: a source cannot be read, or holds no image that can be decoded.
    """
    labels: Counter[Place] = Counter()
    others: Counter[str] = Counter()
    folders: Counter[str] = Counter()
    notes: Counter[str] = Counter()
    class_notes: Counter[str] = Counter()
    found: list[tuple[Source, str]] = []
    sources = unique(list_source(root, name, 0.0, selection) for name in names)
    arrays = selection.arrays or _are_mostly_arrays(sources)
    for source, twice in zip(sources, find_repeated(sources), strict=True):
        reading = read_layout(source, root / "inbox")
        notes.update(reading.notes)
        for path in [path for path in source.files if path not in twice]:
            if not _is_image(source, path, arrays):
                others[PurePosixPath(path).suffix.lower() or "no suffix"] += 1
                continue
            place = reading.places[path]._replace(group=None)
            labels[place] += 1
            found.append((source, path))
            if place == Place("train", None) and "/" in path and role_of(path.partition("/")[0]) is None:
                folders[path.partition("/")[0]] += 1
        class_notes.update(_class_notes(source, root / "inbox") if folders else reading.notes)
        passed_over = source.passed_over.keys() - source.left_out - twice
        others.update(PurePosixPath(path).suffix.lower() or "no suffix" for path in passed_over)
    heic = sum(heif.is_unread(path) for _, path in found)
    looked, contents = _look(found)
    seen = [(path, one) for path, one in looked if one is not None]
    if not seen:
        kinds = ", ".join(f"{count:,} {suffix}" for suffix, count in others.most_common(5))
        raise IngestError(
            f"{', '.join(names)}: no image that can be decoded{f' among {kinds}' if kinds else ''}; "
            + (heif.ADVICE if heic else "name a folder with JPEG, PNG, WebP, TIFF, BMP, GIF or AVIF files")
        )
    return Collection(
        labels=dict(labels),
        others=dict(others),
        folders=dict(folders),
        glances=tuple(one for _, one in seen),
        paths=tuple(path for path, _ in seen),
        unreadable=tuple(path for path, one in looked if one is None),
        unread_heic=heic,
        contents=contents,
        arrays=arrays,
        notes=tuple(list_notes(notes)),
        class_notes=tuple(list_notes(class_notes)),
    )


def _class_notes(source: Source, inbox: Path) -> Counter[str]:
    """None where the folders cannot be classes: then they are not proposed."""
    try:
        return read_layout(source, inbox, class_folders=True).notes
    except IngestError:
        return Counter()


def _are_mostly_arrays(sources: Sequence[Source]) -> bool:
    """Whether arrays of numpy are the images: next to pictures they are often masks or features of them."""
    paths = [path for source in sources for path in source.files]
    return sum(map(is_array, paths)) > sum(map(named_as_image, paths))


def _is_image(source: Source, path: str, arrays: bool) -> bool:
    """By the name, and by the first bytes of a file on this machine whose name does not say so."""
    if named_as_image(path, arrays):
        return True
    try:
        with Path(source.files[path].path).open("rb") as file:
            return is_image(path, file.read(HEAD_BYTES), arrays)
    except OSError:
        return False  # in a bucket, or gone


def _look(found: Sequence[tuple[Source, str]]) -> tuple[list[tuple[str, Glance | None]], tuple[bytes, ...]]:
    """The paths of a sample in its order, each with a glance at it, None if it had no pixels; and some of the files."""
    chosen = sorted(found, key=lambda item: hashlib.sha256(item[1].encode()).digest())[:SAMPLE_IMAGES]
    sizes: list[int] = []
    kept: list[bytes] = []

    def files() -> Iterator[tuple[int, bytes]]:
        for number, (source, path) in enumerate(chosen):
            try:
                data = source.read(path)
            except IngestError:
                continue  # ingest will name it
            sizes.append(len(data))
            kept[:] = sample([*kept, data])
            yield number, data
            if sum(sizes) > SAMPLE_BYTES:
                return

    answers = isolated_map(
        glance,
        files(),
        options={},
        workers=available_cpus(),
        memory_megabytes=MEMORY_MEGABYTES,
        timeout_seconds=TIMEOUT_SECONDS,
    )
    looked = {number: _checked(answer) for number, answer in answers}
    return [(chosen[number][1], looked[number]) for number in sorted(looked)], tuple(kept)


def _checked(answer: object) -> Glance | None:
    """None also for a file that its worker did not survive."""
    try:
        return read_glance(answer)
    except ValueError:
        return None
