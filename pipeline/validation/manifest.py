"""The manifest: one row per file with everything known of it, and what follows from it, as parquet tables.

    manifest/<ingest_batch>-<NNNN>.parquet   every file; a new batch leaves the parts of earlier ones as they are
    accepted.parquet                         one row per content that is trained or tested on, sorted by (batch, sha256)
    quarantine.parquet                       every file that is not used, and why
    groups.parquet                           which contents are of one group (see ``groups``), only if there are groups

The same images, parameters and library versions give the same bytes: nothing tells when or where they were made.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, repeat
from pathlib import Path

import PIL
import polars as pl

from pipeline.ingest import raw
from pipeline.validation.probe.probe import PROBE_VERSION
from pipeline.validation.tables import ACCEPTED, MANIFEST, QUARANTINE, age

PART_ROWS = 20_000
VERSIONS = {"probe_version": str(PROBE_VERSION), "pillow_version": PIL.__version__}


def build(judged: pl.DataFrame, facts: Iterable[pl.DataFrame], scratch: Path) -> Iterator[pl.DataFrame]:
    """MANIFEST, some rows after the others: the JUDGED files with the facts about their contents, sorted by
    (ingest_batch, path, file_id).

    Args:
        facts: FACTS, some contents after the others. They wait in files until their rows are due.
        scratch: an empty folder for those.
    """
    files = judged.with_columns(file_id=_file_ids(judged)).sort(age(), "path", "file_id")
    turns = pl.Series("turn", _turns(files["ingest_batch"].rle().struct.field("len").to_list()), pl.UInt32)
    if turns.is_empty():
        return
    wanted = files.select("sha256", turns).unique()
    for number, portion in enumerate(facts):
        for (turn,), some in portion.join(wanted, on="sha256").group_by("turn"):
            some.write_ipc(scratch / f"{turn}-{number}.arrow")
    for turn, rows in enumerate(files.with_columns(turns).partition_by("turn", maintain_order=True, include_key=False)):
        waiting = sorted(scratch.glob(f"{turn}-*.arrow"))
        known = pl.concat(pl.read_ipc(path) for path in waiting)
        for path in waiting:
            path.unlink()
        yield _joined(rows, known)


def _turns(sizes: Sequence[int]) -> Iterator[int]:
    """For each file the number of its turn: parts stay whole, and a turn has PART_ROWS files at most."""
    turn, taken = 0, 0
    for size in sizes:
        for part in chain(repeat(PART_ROWS, size // PART_ROWS), [size % PART_ROWS]):
            if taken + part > PART_ROWS:
                turn, taken = turn + 1, 0
            yield from repeat(turn, part)
            taken += part


def _joined(files: pl.DataFrame, facts: pl.DataFrame) -> pl.DataFrame:
    table = files.join(facts.drop("reason", "message", "turn"), on="sha256", how="left", maintain_order="left")
    short, long = pl.min_horizontal("width", "height"), pl.max_horizontal("width", "height")
    sides = pl.when(short > 0).then(pl.struct(short_side=short, aspect=long / short))
    return table.with_columns(sides.struct.unnest()).select(list(MANIFEST)).cast(MANIFEST)


def spool(table: Iterable[pl.DataFrame], folder: Path) -> Iterator[pl.DataFrame]:
    """The same rows, which are in an empty folder afterwards: ``spooled`` reads them from fewer files than there are
    parts."""
    for number, rows in enumerate(table):
        rows.write_parquet(folder / f"{number:08d}.parquet", compression="lz4")
        yield rows


def spooled(folder: Path) -> pl.LazyFrame:
    """What ``spool`` has written; of its columns only those are read that are asked for."""
    files = sorted(folder.iterdir())
    return pl.scan_parquet(files, glob=False) if files else MANIFEST.to_frame().lazy()


def write(folder: Path, table: Iterable[pl.DataFrame]) -> None:
    """Write the MANIFEST, of which rows come after each other, and what follows from it into an empty folder."""
    parts = folder / "manifest"
    parts.mkdir()
    used, refused = [MANIFEST.to_frame().select(ACCEPTED)], [MANIFEST.to_frame().select(QUARANTINE)]
    quarantined = pl.col("verdict") == "quarantine"
    written: Counter[object] = Counter()
    for rows in table:
        for (batch,), files in rows.group_by("ingest_batch", maintain_order=True):
            for part in files.iter_slices(PART_ROWS):
                _write(parts / f"{batch}-{written[batch]:04d}.parquet", part)
                written[batch] += 1
        used.append(rows.filter(~quarantined).select(ACCEPTED))
        refused.append(rows.filter(quarantined).select(QUARANTINE))
    _write(folder / "accepted.parquet", pl.concat(used).sort(age("batch"), "sha256"))
    _write(folder / "quarantine.parquet", pl.concat(refused))


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
