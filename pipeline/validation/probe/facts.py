"""The facts about one content: what ``probe`` measures, ``verdict`` judges and the manifest keeps."""

import re
from dataclasses import dataclass, field, fields
from math import isfinite
from typing import Any, get_args

from pipeline.validation.reasons import REASONS

SKETCH_CELLS = (16, 8, 8)  # a side, of brightness, blue and red in ``Facts.sketch``
SKETCH_BYTES = sum(cells**2 for cells in SKETCH_CELLS)


@dataclass(frozen=True)
class Facts:
    """None means that the file could not be read far enough to know.

    Statistics are of the canonical image reduced to at most 256 pixels a side, so that large and small images compare.
    """

    sha256: str
    size_bytes: int
    container: str  # by its signature: see ``container.sniff``
    decodes: bool
    reason: str | None = None  # why there are no pixels: one of ``reasons.REASONS``
    message: str = ""  # the same for a person, with the remedy
    format: str | None = None  # as Pillow calls it
    mode: str | None = None  # Pillow's, before conversion
    bit_depth: int | None = None  # of one channel, as the file stores it
    width: int | None = None  # pixels, upright if it decodes
    height: int | None = None
    frames: int | None = None
    has_alpha: bool | None = None
    has_icc_profile: bool | None = None
    has_gps: bool | None = None
    exif_unreadable: bool | None = None
    exif_orientation: int | None = None  # 1..8, as the file says it; 1 without a word
    trailing_bytes: int | None = None  # behind the end that the container declares
    stream_fault: str | None = None  # what a strict decoder says of a JPEG that a tolerant one reads without a word
    flat_tail: float | None = None  # share of the height, from below, that is one mid gray: what a cut JPEG leaves
    operations: list[str] = field(default_factory=list)  # what ``deploy.images.preprocess.canonicalize`` did
    pixel_hash: str | None = None  # 128 bits, of the canonical pixels and their shape
    phash: int | None = None  # 64 bits of the low frequencies of brightness; equal or nearly so for near copies
    dhash: int | None = None  # 64 bits, whether brightness falls from each of 9 x 8 cells to its right neighbor
    sketch: str | None = None  # brightness and color in a coarse grid: see ``hashes.sketch``
    hash_trusted: bool | None = None  # large and lively enough for both hashes to mean something
    luma_mean: float | None = None  # 0..255, as all that follow except entropy
    luma_std: float | None = None
    luma_p01: int | None = None  # percentiles
    luma_p05: int | None = None
    luma_p50: int | None = None
    luma_p95: int | None = None
    luma_p99: int | None = None
    entropy: float | None = None  # of the luma histogram, bits
    edge_energy: float | None = None  # mean absolute difference of neighbors in luma
    saturation: float | None = None  # mean of (largest - smallest channel)
    red_mean: float | None = None
    green_mean: float | None = None
    blue_mean: float | None = None
    red_std: float | None = None
    green_std: float | None = None
    blue_std: float | None = None


_TYPES = {one.name: set(get_args(one.type) or (one.type,)) for one in fields(Facts)} | {"operations": {list}}
_BITS = dict.fromkeys(("bit_depth", "exif_orientation", *(name for name in _TYPES if "luma_p" in name)), 15)
_BITS |= {"width": 31, "height": 31, "frames": 31, "size_bytes": 63, "trailing_bytes": 63, "phash": 64, "dhash": 64}
_SKETCH = re.compile(f"[A-Za-z0-9+/]{{{SKETCH_BYTES * 4 // 3}}}")
_IF_DECODED = set(_TYPES) - {"reason", "trailing_bytes", "stream_fault"}


def read_facts(answer: object) -> Facts:
    """What a worker said about a file, as facts.

    Raises:
        ValueError: it is nothing that ``tables.FACTS`` could hold. Its author may be a file that took over its decoder.
    """
    if not isinstance(answer, dict) or answer.keys() != _TYPES.keys():
        raise ValueError("the facts about a file are a record of all fields of Facts and no other")
    for name, value in answer.items():
        if type(value) not in _TYPES[name] or not _in_range(name, value):
            raise ValueError(f"{name} has an impossible value")
    facts = Facts(**answer)
    if facts.decodes and any(answer[name] is None for name in _IF_DECODED):
        raise ValueError("facts that every image has are missing")
    if facts.reason not in ([None] if facts.decodes else REASONS):
        raise ValueError("a file either decodes or has a reason why it does not")
    return facts


def _in_range(name: str, value: Any) -> bool:
    """Whether a column of ``tables.FACTS`` can hold a value of the right type."""
    kind = type(value)
    if kind is int:
        return bool(0 <= value < 1 << _BITS[name])
    if kind is float:
        return isfinite(value)
    if kind is str:
        return bool(_SKETCH.fullmatch(value)) if name == "sketch" else _is_text(value)
    return kind is not list or all(type(each) is str and _is_text(each) for each in value)


def _is_text(value: str) -> bool:
    """Whether it can be written as UTF-8, which lone surrogates cannot."""
    return value.isascii() or not any("\ud800" <= character <= "\udfff" for character in value)
