"""The manifest: one row per file with everything known of it, and what follows from it, as parquet tables.

    manifest/<ingest_batch>-<NNNN>.parquet   every file; a new batch leaves the parts of earlier ones as they are
    accepted.parquet                         one row per content that is trained or tested on, sorted by (batch, sha256)
    quarantine.parquet                       every file that is not used, and why
    groups.parquet                           which contents are of one group (see ``groups``), only if there are groups

The same images, parameters and library versions give the same bytes: nothing tells when or where they were made.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import PIL
import polars as pl

from pipeline.ingest import raw
from pipeline.validation.probe.probe import PROBE_VERSION
from pipeline.validation.tables import ACCEPTED, MANIFEST, QUARANTINE, age

PART_ROWS = 250_000
VERSIONS = {"probe_version": str(PROBE_VERSION), "pillow_version": PIL.__version__}


def build(judged: pl.DataFrame, facts: pl.DataFrame) -> pl.DataFrame:
    """MANIFEST: the JUDGED files with the FACTS about their contents, sorted by (ingest_batch, path, file_id)."""
    files = judged.with_columns(file_id=_file_ids(judged)).sort(age(), "path", "file_id")
    table = files.join(facts.drop("reason", "message"), on="sha256", how="left", maintain_order="left")
    short, long = pl.min_horizontal("width", "height"), pl.max_horizontal("width", "height")
    sides = pl.when(short > 0).then(pl.struct(short_side=short, aspect=long / short))
    return table.with_columns(sides.struct.unnest()).select(list(MANIFEST)).cast(MANIFEST)


def write(folder: Path, table: pl.DataFrame) -> None:
    """Write the MANIFEST and what follows from it into an empty folder."""
    parts = folder / "manifest"
    parts.mkdir()
    for (batch,), files in table.group_by("ingest_batch", maintain_order=True):
        for number, part in enumerate(files.iter_slices(PART_ROWS)):
            _write(parts / f"{batch}-{number:04d}.parquet", part)
    quarantined = pl.col("verdict") == "quarantine"
    _write(folder / "accepted.parquet", table.filter(~quarantined).sort(age("batch"), "sha256").select(ACCEPTED))
    _write(folder / "quarantine.parquet", table.filter(quarantined).select(QUARANTINE))


def read(folder: Path, columns: Sequence[str] | None = None) -> pl.DataFrame:
    """All parts of the manifest in ``folder``, or these columns of them, in the order in which it was written.

    A column that the version that wrote it did not know is null.
    """
    parts = sorted((folder / "manifest").glob("*.parquet"), key=_order)
    names = list(columns or MANIFEST)
    if not parts:
        return MANIFEST.to_frame().select(names)
    return pl.concat([_read(part, names) for part in parts])


def _read(part: Path, names: Sequence[str]) -> pl.DataFrame:
    known = pl.read_parquet_schema(part)
    rows = pl.read_parquet(part, columns=[name for name in names if name in known], glob=False)
    absent = [pl.lit(None, MANIFEST[name]).alias(name) for name in names if name not in known]
    return rows.with_columns(absent).select(names)


def _order(part: Path) -> tuple[tuple[int, str], str]:
    batch, number = part.stem.rsplit("-", 1)
    return raw.age(batch), number


def _write(path: Path, table: pl.DataFrame) -> None:
    table.write_parquet(path, compression="zstd", row_group_size=PART_ROWS, metadata=VERSIONS)


def _file_ids(files: pl.DataFrame) -> pl.Series:
    """Tells files with equal bytes apart, and leads to the member of the raw batch."""
    label = pl.col("label").fill_null("")
    identities = files.select(pl.concat_str("ingest_batch", "path", "split", label, separator="\0")).to_series()
    digests = [hashlib.sha256(identity.encode()).hexdigest()[:12] for identity in identities]
    return files["sha256"].str.head(16) + "-" + pl.Series(digests, dtype=pl.String)
