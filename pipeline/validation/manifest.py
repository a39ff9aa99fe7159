"""The manifest: one row per file with everything known of it, and what follows from it, as three parquet tables.

    manifest.parquet      every file
    accepted.parquet      one row per content that is trained or tested on, sorted by (batch, sha256)
    quarantine.parquet    every file that is not used, and why

The same images, parameters and library versions give the same bytes: nothing tells when or where they were made.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import PIL
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.validation.facts import Facts
from pipeline.validation.probe import PROBE_VERSION
from pipeline.validation.verdict import REASONS, Verdict


def _always(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


SCHEMA = pa.schema(
    [
        _always("file_id", pa.string()),  # begins as its sha256 does
        _always("path", pa.string()),
        _always("split", pa.string()),
        pa.field("label", pa.string()),
        _always("sha256", pa.string()),
        _always("batch", pa.string()),  # that holds the bytes
        _always("ingest_batch", pa.string()),  # that tells of this file
        _always("verdict", pa.string()),
        _always("reasons", pa.list_(pa.string())),  # the first is the primary one
        _always("message", pa.string()),
        _always("warnings", pa.list_(pa.string())),
        _always("operations", pa.list_(pa.string())),  # what canonicalise does to it
        _always("size_bytes", pa.int64()),
        _always("container", pa.string()),
        _always("decodes", pa.bool_()),
        pa.field("format", pa.string()),
        pa.field("mode", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("short_side", pa.int32()),
        pa.field("aspect", pa.float64()),  # longer over shorter side
        pa.field("frames", pa.int32()),
        pa.field("has_alpha", pa.bool_()),
        pa.field("has_icc_profile", pa.bool_()),
        pa.field("has_gps", pa.bool_()),
        pa.field("exif_unreadable", pa.bool_()),
        pa.field("trailing_bytes", pa.int64()),
        pa.field("pixel_hash", pa.string()),
        *(pa.field(f"luma_{name}", pa.float64()) for name in ("mean", "std")),
        *(pa.field(f"luma_p{percent:02}", pa.int16()) for percent in (1, 5, 50, 95, 99)),
        *(pa.field(name, pa.float64()) for name in ("entropy", "edge_energy", "saturation")),
        *(pa.field(f"{channel}_mean", pa.float64()) for channel in ("red", "green", "blue")),
        *(pa.field(f"{channel}_std", pa.float64()) for channel in ("red", "green", "blue")),
    ],
    metadata={"probe_version": str(PROBE_VERSION), "pillow_version": PIL.__version__},
)
_FACTS = pa.schema([SCHEMA.field(one.name) for one in fields(Facts) if one.name in SCHEMA.names])
_ALWAYS = {one.name for one in _FACTS if not one.nullable}
_IF_DECODED = set(_FACTS.names) - {"trailing_bytes"}

QUARANTINE = ["path", "sha256", "batch", "split", "label", "reasons", "message"]
ACCEPTED = ["sha256", "batch", "path", "split", "label", "operations", "width", "height"]


def read_facts(answer: object) -> Facts:
    """What a worker said about a file, as facts.

    Raises:
        ValueError: it is nothing that the manifest could hold. Its author may be a file that took over its decoder.
    """
    if not isinstance(answer, dict):
        raise ValueError("the facts about a file are a record")
    try:
        facts = Facts(**answer)
        pa.RecordBatch.from_pylist([vars(facts)], _FACTS)
    except (TypeError, OverflowError) as error:
        raise ValueError(str(error)) from error
    known = {name for name, value in vars(facts).items() if value is not None and value == value}  # NaN is not itself
    if not known >= (_IF_DECODED if facts.decodes else _ALWAYS):
        raise ValueError("facts that every file has are missing")
    if facts.reason not in ([None] if facts.decodes else list(REASONS)):
        raise ValueError("a file either decodes or has a reason why it does not")
    return facts


def manifest(verdicts: Iterable[Verdict]) -> pa.Table:
    """All files, sorted by (ingest_batch, path)."""
    rows = sorted(
        (_row(verdict) for verdict in verdicts), key=lambda row: (row["ingest_batch"], row["path"], row["file_id"])
    )
    return pa.Table.from_pylist(rows, SCHEMA)


def accepted(manifest: pa.Table) -> pa.Table:
    """The rows that are used, sorted by (batch, sha256)."""
    used = manifest.filter(pc.field("verdict") != "quarantine")
    return used.sort_by([("batch", "ascending"), ("sha256", "ascending")])


def write_tables(directory: Path, manifest: pa.Table) -> None:
    quarantined = manifest.filter(pc.field("verdict") == "quarantine")
    pq.write_table(manifest, directory / "manifest.parquet", compression="zstd")
    pq.write_table(accepted(manifest).select(ACCEPTED), directory / "accepted.parquet", compression="zstd")
    pq.write_table(quarantined.select(QUARANTINE), directory / "quarantine.parquet", compression="zstd")


def _row(verdict: Verdict) -> dict[str, Any]:
    file, facts = verdict.file, verdict.facts
    short, long = facts.sides
    return asdict(facts) | {
        **asdict(file),
        "file_id": _file_id(file.sha256, file.ingest_batch, file.path, file.split, file.label or ""),
        "short_side": short or None,
        "aspect": long / short if short else None,
        "verdict": verdict.verdict,
        "reasons": list(verdict.reasons),
        "message": verdict.message,
        "warnings": list(verdict.warnings),
    }


def _file_id(sha256: str, *identity: str) -> str:
    """Tells files with equal bytes apart, and leads to the member of the raw batch."""
    return f"{sha256[:16]}-{hashlib.sha256(chr(0).join(identity).encode()).hexdigest()[:12]}"
