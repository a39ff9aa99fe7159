"""Verdict: the facts about every file → accept, convert or quarantine, with reasons from a closed vocabulary.

``accept``: the pixels are used as they are. ``convert``: they are turned, flattened or brought to 8-bit sRGB on the
way; the operations are recorded. ``quarantine``: not used; the first reason is the primary one. Nothing is moved or
deleted.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from pipeline.validation.container import EXTENSIONS, TERMINATED
from pipeline.validation.facts import Facts

REASONS = {
    "unsafe_path": "the name leads out of its folder",
    "io_error": "the bytes could not be had",
    "empty_file": "no bytes",
    "too_large": "more bytes than max_megabytes",
    "not_an_image": "something else under an image's name",
    "unsupported_format": "an image in a format that is not read",
    "bomb": "more pixels than max_megapixels",
    "metadata_bomb": "its metadata unpacks to more than is sane",
    "truncated": "the file ends too early",
    "corrupt": "damaged inside",
    "unsupported_depth": "pixels whose range is unknown",
    "fully_transparent": "nothing to see",
    "worker_crash": "its decoder died, twice",
    "timeout": "its decoder did not finish, twice",
    "animated": "several frames",
    "multi_page": "several pages",
    "too_small": "shorter side below min_side",
    "extreme_aspect": "longer over shorter side above max_aspect",
    "low_information": "one colour, or nearly",
    "label_conflict": "the same image under different labels",
    "test_leak": "a training copy of a test image",
    "exact_duplicate": "the same bytes as another file",
    "pixel_duplicate": "the same pixels as another file",
}
"""Every reason for quarantine, and what it means."""

WARNINGS = {
    "extension_mismatch": "named as another format; the bytes are believed",
    "trailing_bytes": "bytes behind the end of the image",
    "unterminated": "the end that its format prescribes is missing, though all pixels were there",
    "exif_unreadable": "damaged EXIF block, ignored",
    "gps_present": "the file tells where it was taken; that is dropped",
    "elongated": "longer side over four times the shorter",
    "dark": "almost black",
    "light": "almost white",
}
"""What is worth knowing of an accepted image."""

# Thresholds of CleanVision (Apache-2.0) for dark and light images, on 0..1.
DARK_P99, LIGHT_P05 = 0.32, 0.95
ELONGATED = 4.0

LOSSLESS = {"gray_to_rgb", "palette_to_rgb"}  # another layout of the same pixel values: not worth calling a conversion


@dataclass(frozen=True)
class File:
    """One file as the user had it."""

    path: str
    split: str
    label: str | None
    sha256: str
    batch: str  # that holds the bytes
    ingest_batch: str  # that tells of this file: a later one if the file was relabelled


@dataclass(frozen=True)
class Verdict:
    """What becomes of one file; ``message`` explains the first reason."""

    file: File
    facts: Facts
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]
    message: str

    @property
    def verdict(self) -> str:
        if self.reasons:
            return "quarantine"
        return "convert" if set(self.facts.operations) - LOSSLESS else "accept"


Fault = tuple[str, str]
"""A reason and its message."""


def judge(
    files: Sequence[File],
    facts: Mapping[str, Facts],
    *,
    min_side: int,
    max_aspect: float,
    min_standard_deviation: float,
    allow_animated: bool,
) -> list[Verdict]:
    """One verdict per file, in their order. ``facts`` has an entry for the SHA-256 of every file."""
    faults: list[list[Fault]] = []
    for file in files:
        known = facts[file.sha256]
        content = _decode_faults(known) or [
            *_frame_faults(known, allow_animated),
            *_pixel_faults(known, min_side, max_aspect, min_standard_deviation),
        ]
        faults.append([*_path_faults(file.path), *content])
    clean = [index for index, found in enumerate(faults) if not found]
    for index, fault in _copies(files, facts, clean):
        faults[index].append(fault)
    return [
        Verdict(
            file,
            facts[file.sha256],
            reasons=tuple(reason for reason, _ in found),
            warnings=tuple(_warnings(file, facts[file.sha256])),
            message=found[0][1] if found else "",
        )
        for file, found in zip(files, faults, strict=True)
    ]


def _path_faults(path: str) -> Iterable[Fault]:
    name = PurePosixPath(path)
    if name.is_absolute() or ".." in name.parts or "\0" in path:
        yield "unsafe_path", "an absolute name, or one with '..'; rename it and ingest it again"


def _decode_faults(facts: Facts) -> list[Fault]:
    return [(facts.reason, facts.message)] if facts.reason else []


def _frame_faults(facts: Facts, allow_animated: bool) -> Iterable[Fault]:
    if facts.frames and facts.frames > 1 and not allow_animated:
        reason = "multi_page" if facts.format == "TIFF" else "animated"
        yield reason, f"{facts.frames} frames; set validate.animated to first_frame to use the first of them"


def _pixel_faults(facts: Facts, min_side: int, max_aspect: float, min_standard_deviation: float) -> Iterable[Fault]:
    short, long = facts.sides
    if short < min_side:
        yield "too_small", f"{facts.width} x {facts.height} pixels; validate.min_side is {min_side}"
    if long > max_aspect * short:
        yield "extreme_aspect", f"{facts.width} x {facts.height} pixels; validate.max_aspect is {max_aspect:g}"
    if facts.liveliest_std < min_standard_deviation:
        limit = f"validate.min_standard_deviation is {min_standard_deviation:g}"
        yield "low_information", f"standard deviation {facts.liveliest_std:.2f} in its liveliest channel; {limit}"


def _copies(files: Sequence[File], facts: Mapping[str, Facts], clean: Iterable[int]) -> Iterable[tuple[int, Fault]]:
    """The files that repeat a better one, or contradict each other. Files with the same pixels form a group.

    The newest batch that labels a group is right about it: that is how a wrong label is corrected.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for index in clean:
        pixel_hash = facts[files[index].sha256].pixel_hash
        assert pixel_hash, "a decoded image has a pixel hash"
        groups[pixel_hash].append(index)
    for group in groups.values():
        newest = max((files[index].ingest_batch for index in group if files[index].label is not None), default="")
        kept, *others = sorted(group, key=lambda index: _preference(files[index], newest))
        current = [files[kept], *(files[index] for index in others if files[index].ingest_batch == newest)]
        labels = sorted({file.label for file in current if file.label is not None})
        if len(labels) > 1:
            yield from ((index, ("label_conflict", f"labelled {' and '.join(labels)}")) for index in group)
            continue
        seen = {files[kept].sha256}
        for index in others:
            yield index, _copy_fault(files[index], files[kept], seen)
            seen.add(files[index].sha256)


def _preference(file: File, newest: str) -> tuple[bool, bool, bool, str, str, str]:
    """Sorts first what is kept: a test image, then a labelled one, then one of the newest labels, then the oldest."""
    relabelled = file.ingest_batch != newest
    return file.split != "test", file.label is None, relabelled, file.ingest_batch, file.path, file.sha256


def _copy_fault(file: File, kept: File, seen: set[str]) -> Fault:
    same = "bytes" if file.sha256 == kept.sha256 else "pixels"
    if kept.split == "test" and file.split != "test":
        return "test_leak", f"the same {same} as {kept.path} of the test set"
    reason = "exact_duplicate" if file.sha256 in seen else "pixel_duplicate"
    return reason, f"the same {same} as {kept.path}"


def _warnings(file: File, facts: Facts) -> Iterable[str]:
    if not facts.decodes:
        return
    extension = PurePosixPath(file.path).suffix[1:].lower()
    if extension and extension not in EXTENSIONS.get(facts.container, ()):
        yield "extension_mismatch"
    if facts.trailing_bytes:
        yield "trailing_bytes"
    if facts.trailing_bytes is None and facts.container in TERMINATED:
        yield "unterminated"
    if facts.exif_unreadable:
        yield "exif_unreadable"
    if facts.has_gps:
        yield "gps_present"
    short, long = facts.sides
    if long > ELONGATED * short:
        yield "elongated"
    if (facts.luma_p99 or 0) < DARK_P99 * 255:
        yield "dark"
    if (facts.luma_p05 or 0) > LIGHT_P05 * 255:
        yield "light"
