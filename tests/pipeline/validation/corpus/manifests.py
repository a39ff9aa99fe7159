"""Manifests made by hand: rows of which a test says only what it is about."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl

from pipeline.reports import Statistic
from pipeline.validation import manifest
from pipeline.validation.reasons import REASONS, WARNINGS
from pipeline.validation.report.report import CONVERSIONS
from pipeline.validation.tables import MANIFEST

PIXELS = {
    "size_bytes": 9000,
    "container": "jpeg",
    "decodes": True,
    "format": "JPEG",
    "mode": "RGB",
    "bit_depth": 8,
    "width": 64,
    "height": 48,
    "short_side": 48,
    "aspect": 64 / 48,
    "frames": 1,
    "trailing_bytes": 0,
    **dict.fromkeys(("has_alpha", "has_icc_profile", "has_gps", "exif_unreadable"), False),
    **{name: 100 for name, kind in MANIFEST.items() if name.startswith("luma_p") and kind == pl.Int16},
    **{name: 100.0 for name, kind in MANIFEST.items() if name.endswith(("_mean", "_std"))},
    "entropy": 7.0,
    "edge_energy": 5.0,
    "saturation": 40.0,
    "hash_trusted": True,
}

HOSTILE = [
    "<script>alert(1)</script>.png",
    '"><img src=x onerror=alert(1)>.png',
    "' onmouseover='alert(1)",
    "{{ 7 * 7 }}{% raw %}.png",
    "line\nbreak\r\ttab.png",
    "photo\u202egnp.exe",
    "zero\u200bwidth\u2028line.png",
    "-->]]></style></svg></title><script src=//evil.example/x.js></script>",
    "&lt;script&gt;.png",
    "javascript:alert(1)",
    "../../etc/passwd",
    "https://evil.example/a.png",
    b"caf\xe9.png".decode("utf-8", "surrogateescape").encode("utf-8", "backslashreplace").decode(),
    "party\U0001f389\U000e0041.png",
    "日本 語.png",
    "שלום world مرحبا.png",
]
"""File names that try to act, to hide or to reorder what is next to them."""


def row(path: str, *reasons: str, content: str | None = None, **changes: Any) -> dict[str, Any]:
    """A file that is accepted unless ``reasons`` say otherwise; ``content`` names its bytes, its path if left out."""
    sha256 = hashlib.sha256((path if content is None else content).encode("utf-8", "surrogatepass")).hexdigest()
    known = {
        "path": path,
        "split": "train",
        "label": None,
        "batch": "0001",
        "ingest_batch": "0001",
        "sha256": sha256,
        "verdict": "quarantine" if reasons else "accept",
        "reasons": list(reasons),
        "message": "",
        "warnings": [],
        "operations": [],
        "copy_of": None,
        "near_group": None,
        "near_group_size": None,
        "pixel_hash": sha256[:32],
        "phash": int(sha256[:16], 16),
        "dhash": int(sha256[16:32], 16),
        "file_id": f"{sha256[:16]}-{hashlib.sha256(path.encode()).hexdigest()[:12]}",
    }
    return PIXELS | known | changes


def build(judged: pl.DataFrame, facts: pl.DataFrame) -> pl.DataFrame:
    """The MANIFEST of JUDGED files and the FACTS about them."""
    with TemporaryDirectory() as scratch:
        return pl.concat([MANIFEST.to_frame(), *manifest.build(judged, [facts], Path(scratch))])


def table(rows: Iterable[dict[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame(list(rows), schema=MANIFEST).sort("ingest_batch", "path", "file_id")


def statistic(name: str, effect: float, threshold: float = 0.1) -> Statistic:
    return Statistic(name, effect, threshold, effect > threshold)


def everything() -> pl.DataFrame:
    """A manifest with each reason, warning and conversion, each kind of group, leaks, and two batches."""
    return table(
        [
            *(row(f"{reason}/{number}.jpg", reason) for reason in REASONS for number in range(3)),
            *(row(f"fine/{number}.jpg", warnings=[name]) for number, name in enumerate(WARNINGS)),
            *(
                row(f"turned/{number}.jpg", verdict="convert", operations=[name])
                for number, name in enumerate(CONVERSIONS)
            ),
            *(row(f"new/{number}.jpg", batch="0002", ingest_batch="0002", luma_mean=150.0) for number in range(5)),
            row("same/a.jpg", content="same"),
            row("same/b.jpg", "exact_duplicate", content="same"),
            row("near/a.jpg", near_group="n", near_group_size=2, phash=0b1000),
            row("near/b.jpg", near_group="n", near_group_size=2, phash=0b0111),
            row("test/a.jpg", content="test", split="test", label="cat", phash=0),
            row("train/a.jpg", "test_leak", copy_of=row("", content="test")["sha256"], phash=0b11, label="dog"),
        ]
    )
