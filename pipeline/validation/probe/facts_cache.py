"""What earlier scans have found out, by content: a scan reads the bytes of new files only.

    .simclr/facts/<key>/<digest>.parquet

The key is of all that decides facts besides the bytes: the probe's version, the decoders' and the limits. A part is
named by the SHA-256 of its bytes, and that is checked before it is parsed: a damaged one is dropped with a warning, and
its contents are probed again. Parts are written whole or not at all and never changed, so two processes may share it.
"""

import hashlib
import json
import re
import shutil
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from io import BytesIO
from pathlib import Path

import polars as pl

from deploy.artifact import write_atomically
from deploy.images import heif, tiff_channels
from pipeline.validation.probe.probe import FULL_DEPTH_VERSION, PROBE_VERSION
from pipeline.validation.tables import FACTS

CACHED = pl.Schema({**FACTS, "tar": pl.String()})
"""Facts, and in which tar the bytes were: when it is gone, they are searched for again."""

CHANCE = ("worker_crash", "timeout", "io_error")
"""Reasons that tell of this machine at that moment, not of the bytes: they are not kept."""

MERGED_ROWS = 20_000
SMALL_BYTES, MANY_PARTS = 4_000_000, 16  # more small parts than this are merged
DIGEST = 32  # hexadecimal digits


def versions(probed: Collection[str] = ()) -> dict[str, str]:
    """Whatever gives the same bytes other facts when it changes, with these arguments of the probe."""
    packages = {name: version(name) for name in ("pillow", "simplejpeg", "numpy")}
    heic = version("pi-heif") if heif.is_installed() else "not installed"
    tiff = {"tifffile": version("tifffile") if tiff_channels.is_installed() else "not installed"}
    of_channels = tiff | {"full_depth": str(FULL_DEPTH_VERSION)} if "channels" in probed else {}
    return {"probe": str(PROBE_VERSION), **packages, "pi-heif": heic, **of_channels}


def place(cache: Path, probed: Mapping[str, object]) -> Path:
    """The folder for facts that this version of the probe finds with these arguments."""
    return cache / _digest(json.dumps(versions(probed) | dict(probed), sort_keys=True).encode())


def read(folder: Path) -> pl.DataFrame:
    """All that is known, with the columns of ``CACHED``; a content may be there twice, with the same facts."""
    return pl.concat([pl.DataFrame(schema=CACHED), *(rows for _, rows in portions(folder))])


def portions(folder: Path, columns: Sequence[str] = tuple(CACHED)) -> list[tuple[str, pl.DataFrame]]:
    """These columns of all that is known, with the name of each part, which is for ``load``."""
    while True:
        listed = _parts(folder)
        parts = [(path.name, rows) for path in listed if (rows := _load(path, columns)) is not None]
        if len(parts) == len(listed):  # else another process has merged some, and their rows are in a new part
            return parts


def load(folder: Path, name: str, columns: Sequence[str]) -> pl.DataFrame | None:
    """These columns of a part; None where it was merged into another, or was damaged."""
    rows = _load(folder / name, columns)
    return None if rows is None or rows.is_empty() else rows


def append(folder: Path, rows: pl.DataFrame) -> pl.DataFrame:
    """Keep rows with the columns of ``CACHED``, but for those that may be chance, which are returned."""
    may_be_chance = pl.col("reason").is_in(CHANCE).fill_null(value=False)
    kept = rows.filter(~may_be_chance)
    if not kept.is_empty():
        _write(folder, kept)
    return rows.filter(may_be_chance)


def forget(folder: Path, sha256s: Iterable[str]) -> None:
    """Drop what is known of these contents, in this folder and those within, so that the next scan probes them."""
    forgotten = pl.DataFrame({"sha256": list(sha256s)}, schema={"sha256": pl.String})
    for path in sorted(folder.rglob("*.parquet")):
        if (rows := _load(path)) is None:
            continue
        kept = rows.join(forgotten, on="sha256", how="anti", maintain_order="left")
        if len(kept) < len(rows):
            append(path.parent, kept)
            path.unlink(missing_ok=True)


def tidy(cache: Path, folder: Path) -> None:
    """Merge many small parts, and remove what was found with other limits or by another version of the probe."""
    small = [path for path in _parts(folder) if _size(path) < SMALL_BYTES]
    if len(small) > MANY_PARTS:
        _merge(folder, small)
    for other in cache.glob("*"):
        if other != folder and re.fullmatch(f"[0-9a-f]{{{DIGEST}}}", other.name):
            shutil.rmtree(other, ignore_errors=True)


def _merge(folder: Path, parts: list[Path]) -> None:
    """The new part is complete before the old ones go: killed between, a content is there twice."""
    group: list[Path] = []
    rows = pl.DataFrame(schema=CACHED)
    for path in parts:
        group.append(path)
        if (loaded := _load(path)) is not None:
            rows = pl.concat([rows, loaded])
        if len(rows) >= MERGED_ROWS or path == parts[-1]:
            merged = _write(folder, rows.unique("sha256", keep="first", maintain_order=True))
            for old in group:
                if old != merged:
                    old.unlink(missing_ok=True)
            group, rows = [], pl.DataFrame(schema=CACHED)


def _write(folder: Path, rows: pl.DataFrame) -> Path:
    content = BytesIO()
    rows.write_parquet(content)
    path = folder / f"{_digest(content.getvalue())}.parquet"
    write_atomically(path, content.getvalue())
    return path


def _load(path: Path, columns: Sequence[str] = tuple(CACHED)) -> pl.DataFrame | None:
    """The rows of a part; none when it is damaged, and then it is removed. None when another process has merged it."""
    try:
        data = path.read_bytes()
        if _digest(data) != path.stem:
            raise ValueError("other bytes than were written")
        if pl.read_parquet_schema(BytesIO(data)) != CACHED:
            raise ValueError("other columns than are written")
        return pl.read_parquet(BytesIO(data), columns=list(columns))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, pl.exceptions.PolarsError) as error:
        print(f"warning: {path}: {error}; it is removed, and its images are probed again", file=sys.stderr)
        with suppress(OSError):
            path.unlink()
        return pl.DataFrame(schema=CACHED).select(columns)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # another process has merged it
        return 0


def _parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.parquet"))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:DIGEST]
