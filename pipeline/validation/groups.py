"""Which accepted images are of one group, such as a patient or a part: ``groups.parquet`` in data/manifest.

The file is there only if labels.csv gives groups. A picture has the group that the newest batch gives it, in whichever
of its copies; of two in one batch, that of the copy which is used, then the first by name.
"""

from pathlib import Path

import polars as pl

from pipeline.ingest.raw import batches, read_records
from pipeline.validation.probe.scan import holding, list_all
from pipeline.validation.tables import Manifest, age, some

FILE = "groups.parquet"
GROUPS = pl.Schema({"sha256": pl.String(), "group": pl.String()})


def find_groups(raw: Path, manifest: Manifest) -> pl.DataFrame:
    """GROUPS: one row for each accepted content that has one, sorted by sha256.

    Args:
        raw: the raw batches.
        manifest: MANIFEST of all of them.
    """
    if not any(True for batch in batches(raw) for _ in read_records(batch, "group")):
        return GROUPS.to_frame()
    pictures = some(manifest, "sha256", "pixel_hash").drop_nulls().unique()
    said = holding(list_all(raw)).filter(pl.col("group").is_not_null()).join(pictures, on="sha256")
    used = some(manifest.lazy().filter(pl.col("verdict") != "quarantine"), "sha256", "pixel_hash")
    copies = used.join(said.select("pixel_hash", "group", age=age(), other="sha256"), on="pixel_hash")
    preferred = [pl.col("other") != pl.col("sha256"), pl.col("group")]
    ordered = copies.sort("sha256", "age", *preferred, descending=[False, True, False, False])
    return ordered.unique("sha256", keep="first", maintain_order=True).select(list(GROUPS))


def write(folder: Path, groups: pl.DataFrame) -> None:
    """Write GROUPS into the folder of the manifest, unless there are none."""
    if groups.height:
        groups.write_parquet(folder / FILE, compression="zstd")


def read(folder: Path) -> dict[str, str]:
    """SHA-256 → group, of each accepted content that has one."""
    path = folder / FILE
    return dict(pl.read_parquet(path).select(list(GROUPS)).iter_rows()) if path.exists() else {}
