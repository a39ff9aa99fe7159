"""Scan: raw batches → every file as its user had it, and the facts about every content.

Only contents that no earlier scan has seen are read (``facts_cache``), in workers that a file may crash (``pool``): on
this machine, or on a Ray cluster (``ray_engine``). The rows are the same either way.
"""

import json
import os
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import polars as pl

from deploy.failpoint import failpoint
from deploy.images.background import WHITE
from pipeline.errors import ValidationError
from pipeline.ingest.raw import OCCURRENCES, REPLACED, batches, list_tar, read_tar, tars
from pipeline.validation.probe import facts_cache
from pipeline.validation.probe.container import sniff
from pipeline.validation.probe.facts import Facts, read_facts
from pipeline.validation.probe.known_facts import KnownFacts
from pipeline.validation.probe.pool import Failure, isolated_map
from pipeline.validation.probe.probe import probe
from pipeline.validation.probe.ray_engine import flat_map
from pipeline.validation.tables import FILES
from simclr_core.progress import Bar
from simclr_core.reporter import emit

SAVED_CONTENTS, SAVED_SECONDS = 2_000, 30.0  # what a killed scan may have to do again
BYTES_AT_ONCE = 4_000_000  # of the records of a batch
MISSING = "no raw batch holds its bytes; restore data/raw with `dvc checkout data/raw`"
CHANGED = "its bytes changed after they were ingested; restore data/raw with `dvc checkout data/raw`"
NONSENSE = "its worker gave an invalid answer"

_SEEN = pl.Schema(dict.fromkeys(("sha256", "path", "split", "label", "source", "group"), pl.String()))
_TEXT, _OR_NULL = r'"(?P<%s>[^"\\]*)"', r'(?:"(?P<%s>[^"\\]*)"|null)'
_PLAIN = (
    rf'^\{{"sha256": {_TEXT}, "occurrences": \[\{{"path": {_TEXT}, "split": {_TEXT}, '
    rf'"label": {_OR_NULL}, "source": {_OR_NULL}(?:, "group": {_OR_NULL})?\}}\]\}}$'
) % tuple(_SEEN)
"""A record of one file whose names need no escape: what JSON takes five times as long for."""

_ALL = pl.Schema(
    {name: kind for name, kind in FILES.items() if name != "batch"}
    | {"number": pl.Int64(), "source": pl.String(), "group": pl.String()}
)

Probe = Callable[..., dict[str, Any]]
Portion = tuple[Path, frozenset[str]]
"""A tar, and which of its contents are to be probed."""
Answer = tuple[Facts, str]
"""The facts about a content, and the name of the tar that holds it."""


@dataclass(frozen=True)
class Limits:
    """What a file may be, and what it may cost to find that out."""

    max_megabytes: float  # of the file
    max_megapixels: float  # by its header
    memory_megabytes: int  # address space of a worker
    timeout_seconds: float  # for one file
    background: str = WHITE  # what transparent images are judged on
    channels: int | None = None  # of the images, which then keep their depth

    @property
    def probed(self) -> dict[str, Any]:
        """The arguments of ``probe``."""
        given: dict[str, Any] = {
            "max_megabytes": float(self.max_megabytes),
            "max_megapixels": float(self.max_megapixels),
        }
        given |= {} if self.background == WHITE else {"background": self.background}
        return given if self.channels is None else given | {"channels": self.channels}


def scan(
    raw: Path,
    cache: Path,
    *,
    limits: Limits,
    engine: Literal["local", "ray"] = "local",
    address: str | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[pl.DataFrame, KnownFacts]:
    """Every file of the raw batches in their order (``FILES``), and the facts about each content.

    Args:
        cache: the folder in which facts are kept from scan to scan.
        address: of the Ray cluster, as ``deploy.cluster.connection`` takes it.
        workers: processes of the local engine; None: one for each core.
        progress: called after each content with the number done and the total.

    Raises:
        ValidationError: there are no raw images, no worker can start, or the Ray cluster cannot be used.
    """
    listed = list_all(raw)
    files = current(listed)
    if files.is_empty():
        raise ValidationError(f"{raw}: no raw images; put images into inbox/ and run `simclr ingest`")
    contents = files.select("sha256").unique(maintain_order=True)
    store = facts_cache.place(cache, limits.probed)
    there = [tar_name(path) for batch in batches(raw) for path in tars(batch)]
    stored = [
        rows.filter(pl.col("tar").is_in(there)).select("sha256")
        for _, rows in facts_cache.portions(store, ["sha256", "tar"])
    ]
    unknown = contents.join(pl.concat([contents.clear(), *stored]), "sha256", "anti", maintain_order="left")
    opened = set(listed.join(unknown, "sha256", "semi")["ingest_batch"])
    del listed
    portions = _portions([batch for batch in batches(raw) if batch.name in opened], set(unknown["sha256"]))
    if engine == "ray":
        answers = _on_ray(probe, portions, limits, address)
    else:
        answers = _examine(probe, portions, limits, workers or len(os.sched_getaffinity(0)))
    done = _watched(answers, len(contents) - len(unknown), len(contents), progress)
    found, left = zip(*_saved(done, store), strict=True)
    lost = unknown.join(pl.concat(found), "sha256", "anti")
    missing = [(Facts(sha256, 0, "missing", False, "io_error", MISSING), "") for sha256 in lost["sha256"]]
    facts_cache.tidy(cache, store)
    return files, KnownFacts(store, contents, there, pl.concat([_table(missing), *left]))


def list_all(raw: Path) -> pl.DataFrame:
    """Every file of the raw batches, in their order, with the first batch that lists its content; see ``current``."""
    frames = [pl.DataFrame(schema=_ALL)]
    for number, batch in enumerate(batches(raw)):
        for rows in _listed(batch):
            placed = rows.with_columns(ingest_batch=pl.lit(batch.name), number=pl.lit(number, pl.Int64))
            frames.append(placed.select(list(_ALL)))
    listed = pl.concat(frames)
    homes = listed.select("sha256", batch="ingest_batch").unique("sha256", keep="first", maintain_order=True)
    return listed.join(homes, "sha256", "left", maintain_order="left")


def _listed(batch: Path) -> Iterator[pl.DataFrame]:
    """The files of a batch, some at a time, with ``_SEEN``."""
    with (batch / OCCURRENCES).open("rb") as file:
        while lines := file.readlines(BYTES_AT_ONCE):
            table = pl.DataFrame({"line": lines}, {"line": pl.Binary}).with_row_index("place")
            plain = pl.col("line").cast(pl.String).str.strip_chars_end("\n").str.extract_groups(_PLAIN).alias("found")
            found = table.with_columns(plain).unnest("found")
            others = found.filter(pl.col("path").is_null()).select("place", "line")
            parsed = [(place, *seen) for place, line in others.iter_rows() for seen in _parsed(line)]
            rest = pl.DataFrame(parsed, schema={"place": pl.UInt32, **_SEEN}, orient="row")
            yield pl.concat([found.drop("line").drop_nulls("path"), rest]).sort("place", maintain_order=True)


def _parsed(line: bytes) -> Iterator[tuple[str | None, ...]]:
    """What a record says, as ``_SEEN``."""
    record = json.loads(line)
    for seen in record["occurrences"] if "sha256" in record else ():
        yield record["sha256"], *(one and _text(one) for one in map(seen.get, list(_SEEN)[1:]))


def current(listed: pl.DataFrame) -> pl.DataFrame:
    """FILES: those of ``holding``."""
    return holding(listed).select(FILES.names())


def holding(listed: pl.DataFrame) -> pl.DataFrame:
    """What each source said last of a content, and what batches say without a source, unless a source did."""
    last = pl.col("number") == pl.col("number").max().over("sha256", "source")
    has_source = pl.col("source").is_not_null()
    counts = pl.when(has_source).then(last).otherwise(~has_source.any().over("sha256"))
    return listed.filter(counts & (pl.col("split") != REPLACED))


def _portions(opened: Iterable[Path], unknown: set[str]) -> Iterator[Portion]:
    """The tars with unknown contents; each content in the first tar that holds it."""
    left = set(unknown)
    for batch in opened:
        for path in tars(batch):
            wanted = left.intersection(_members(path))
            if wanted:
                left -= wanted
                yield path, frozenset(wanted)


def _members(path: Path) -> Iterator[str]:
    """As far as the tar can be read: what is behind counts as missing."""
    with suppress(tarfile.TarError):
        yield from list_tar(path)


def _read(path: Path, wanted: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    left = set(wanted)
    with suppress(tarfile.TarError):
        for sha256, data in read_tar(path, left):
            left.discard(sha256)
            yield sha256, data


def _examine(function: Probe, portions: Iterable[Portion], limits: Limits, workers: int) -> Iterator[Answer]:
    """Facts in any order; from workers that crash or hang, facts that say so."""
    members = (
        ((tar_name(path), sha256, len(data), sniff(data)), data)
        for path, wanted in portions
        for sha256, data in _read(path, wanted)
    )
    answers = isolated_map(
        function,
        members,
        options=limits.probed,
        workers=workers,
        memory_megabytes=limits.memory_megabytes,
        timeout_seconds=limits.timeout_seconds,
    )
    for (tar, sha256, size, container), answer in answers:
        yield _facts(sha256, size, container, answer), tar


def _facts(sha256: str, size: int, container: str, answer: dict[str, Any] | Failure) -> Facts:
    if isinstance(answer, Failure):
        return Facts(sha256, size, container, False, answer.reason, answer.message)
    try:
        facts = read_facts(answer)
    except ValueError:
        return Facts(sha256, size, container, False, "worker_crash", NONSENSE)
    return facts if facts.sha256 == sha256 else Facts(sha256, size, container, False, "io_error", CHANGED)


def _on_ray(function: Probe, portions: Iterable[Portion], limits: Limits, address: str | None) -> Iterator[Answer]:
    task = partial(_examine_tar, function=function, limits=limits, versions=facts_cache.versions(limits.probed))
    for facts, tar in flat_map(task, [(str(path.resolve()), sorted(wanted)) for path, wanted in portions], address):
        yield read_facts(facts), tar


def _examine_tar(
    item: tuple[str, list[str]], function: Probe, limits: Limits, versions: Mapping[str, str]
) -> Iterator[tuple[dict[str, Any], str]]:
    """What a node of the cluster does with one tar."""
    path, wanted = Path(item[0]), frozenset(item[1])
    if (own := facts_cache.versions(limits.probed)) != versions:
        raise ValidationError(
            f"a node of the Ray cluster has {own}, this machine {versions}: results could "
            "differ; install the same versions on all"
        )
    if not path.exists():
        raise ValidationError(
            f"{path}: does not exist on a node of the Ray cluster; keep the workspace on storage that all nodes share, "
            "under the same path, or set validate.engine to local in .simclr/compute.yaml"
        )
    for facts, tar in _examine(function, [(path, wanted)], limits, workers=1):
        yield vars(facts), tar


def _watched(
    answers: Iterable[Answer], done: int, total: int, progress: Callable[[int, int], None] | None
) -> Iterator[Answer]:
    with Bar(total, "images", done, name="validate") as bar:
        for answer in answers:
            done += 1
            bar.update()
            if done % max(1, total // 10) == 0:
                emit("progress", stage="validate", message=f"{done} of {total} images probed", images=done)
            if progress:
                progress(done, total)
            yield answer


def _saved(answers: Iterable[Answer], store: Path) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
    """Put the answers into the cache, some at a time, so that a killed scan continues from there; the contents that
    were answered, and the rows that may be chance, which the cache does not take."""
    rows: list[Answer] = []
    since = time.monotonic()
    for answer in answers:
        rows.append(answer)
        if len(rows) >= SAVED_CONTENTS or time.monotonic() - since >= SAVED_SECONDS:
            yield _save(rows, store)
            rows, since = [], time.monotonic()
    yield _save(rows, store)


def _save(rows: list[Answer], store: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    table = _table(rows)
    left = facts_cache.append(store, table)
    failpoint("scan.saved")
    return table.select("sha256"), left


def _table(rows: list[Answer]) -> pl.DataFrame:
    return pl.DataFrame([(*vars(facts).values(), tar) for facts, tar in rows], schema=facts_cache.CACHED, orient="row")


def tar_name(tar: Path) -> str:
    """The tar by its place in data/raw, and its size: a tar that was cut is another one, and looked into again."""
    return f"{tar.parent.name}/{tar.name}:{tar.stat().st_size}"


def _text(name: str) -> str:
    """A name whose bytes are not UTF-8 has lone surrogates, which no parquet file can hold: spell them out."""
    return name.encode("utf-8", "backslashreplace").decode()
