"""The tables of validation as polars schemas: facts of contents, files as users had them, and the manifest of both."""

import polars as pl

from simclr_core.data import label_sets

BATCH_DIGITS = 20


def age(column: str = "ingest_batch") -> pl.Expr:
    """Text that sorts the names of batches, oldest first, as ``raw.age`` does: 10000 is newer than 9999."""
    digits = pl.col(column).str.extract("^([0-9]+)").fill_null("").str.zfill(BATCH_DIGITS)
    return pl.concat_str(digits, pl.col(column))


def shown_label(label: pl.Expr) -> pl.Expr:
    """Labels, each of which may be that of a set, as people write them."""
    without = label.str.replace(f"^{label_sets.NONE_OF_THEM}$", label_sets.NOTHING)
    return without.str.replace_all(label_sets.SEPARATOR, label_sets.BETWEEN, literal=True)


Manifest = pl.DataFrame | pl.LazyFrame
"""MANIFEST, in memory, or in files of which only the columns are read that are asked for."""


def some(manifest: Manifest, *columns: str) -> pl.DataFrame:
    """These columns."""
    return manifest.lazy().select(columns).collect()


def newest(files: Manifest) -> str:
    """The newest batch that tells of one of these files; there is at least one."""
    batch = files.lazy().select(pl.col("ingest_batch").unique()).collect().sort(age()).item(-1, 0)
    assert isinstance(batch, str), "a manifest without rows"
    return batch


FACTS = pl.Schema(
    {
        "sha256": pl.String(),
        "size_bytes": pl.Int64(),
        "container": pl.String(),
        "decodes": pl.Boolean(),
        "reason": pl.String(),
        "message": pl.String(),
        "format": pl.String(),
        "mode": pl.String(),
        "bit_depth": pl.Int16(),
        "width": pl.Int32(),
        "height": pl.Int32(),
        "frames": pl.Int32(),
        "has_alpha": pl.Boolean(),
        "has_icc_profile": pl.Boolean(),
        "has_gps": pl.Boolean(),
        "exif_unreadable": pl.Boolean(),
        "exif_orientation": pl.Int16(),
        "trailing_bytes": pl.Int64(),
        "stream_fault": pl.String(),
        "flat_tail": pl.Float64(),
        "operations": pl.List(pl.String()),
        "pixel_hash": pl.String(),
        "phash": pl.UInt64(),
        "dhash": pl.UInt64(),
        "sketch": pl.String(),
        "hash_trusted": pl.Boolean(),
        **{f"luma_{name}": pl.Float64() for name in ("mean", "std")},
        **{f"luma_p{percent:02}": pl.Int16() for percent in (1, 5, 50, 95, 99)},
        **dict.fromkeys(("entropy", "edge_energy", "saturation"), pl.Float64()),
        **{f"{channel}_mean": pl.Float64() for channel in ("red", "green", "blue")},
        **{f"{channel}_std": pl.Float64() for channel in ("red", "green", "blue")},
    }
)
"""One row per content: the fields of ``facts.Facts``, in their order."""

FILES = pl.Schema(
    {
        "path": pl.String(),
        "split": pl.String(),  # train or test
        "label": pl.String(),  # null: unlabeled; of several labels as simclr_core.data.label_sets joins them
        "sha256": pl.String(),
        "batch": pl.String(),  # that holds the bytes
        "ingest_batch": pl.String(),  # that tells of this file: a later one if the file was relabeled
    }
)
"""One row per file as the user had it, in the order of the raw batches."""

JUDGMENTS = pl.Schema(
    {
        "verdict": pl.String(),  # accept, convert or quarantine
        "reasons": pl.List(pl.String()),  # the first is the primary one
        "message": pl.String(),  # explains the primary reason; empty without one
        "warnings": pl.List(pl.String()),
        "copy_of": pl.String(),  # sha256 of the file that this one repeats or nearly repeats
        "near_group": pl.String(),  # the smallest sha256 of all that look nearly alike; null: nothing else does
        "near_group_size": pl.Int32(),  # contents in it
    }
)
"""What ``verdict.judge`` adds to each file."""

JUDGED = pl.Schema({**FILES, **JUDGMENTS})

MANIFEST = pl.Schema(
    {
        "file_id": pl.String(),  # begins as its sha256 does
        **JUDGED,
        "short_side": pl.Int32(),
        "aspect": pl.Float64(),  # longer over shorter side
        **{name: kind for name, kind in FACTS.items() if name not in ("sha256", "reason", "message")},
    }
)
"""One row per file with everything known of it and what follows from that, sorted by (ingest_batch, path, file_id)."""

ACCEPTED = ("sha256", "batch", "path", "split", "label", "operations", "width", "height")
QUARANTINE = ("path", "sha256", "batch", "split", "label", "reasons", "message", "copy_of")
