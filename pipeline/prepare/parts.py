"""The parts of a split, one for each raw batch: what is kept is taken, and the rest decoded and encoded."""

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import polars as pl

from pipeline.ingest.raw import batches, read_placed, tars
from pipeline.prepare.canonical import StoredForm, convert, require_ingested
from pipeline.prepare.kept_parts import KeptParts, Original, Part, key_of
from pipeline.prepare.pixel_sums import PixelSums, sum_pixels
from simclr_core.data.shard_writing import Shard, write_tar, write_tars
from simclr_core.data.shards import Sample
from simclr_core.progress import Bar

ORIGINALS, ORIGINAL_BYTES = 32, 64_000_000  # files that are kept as they came, and how much they may take


def prepare_parts(
    raw: Path, images: pl.DataFrame, folder: Path, form: StoredForm, kept: KeptParts
) -> list[tuple[Path, Part]]:
    """The parts of a split with their batches, oldest first; their shards are in ``folder``."""
    parts = []
    of_batch = images.partition_by("batch", as_dict=True)
    for batch in batches(raw):
        if (accepted := of_batch.get((batch.name,))) is None:
            continue
        operations = _operations(accepted)
        key = key_of(batch, folder.name, operations, form.facts)
        part = kept.take(key, folder)
        if part is None:
            part = prepare_part(batch, operations, folder, form)
            kept.keep(key, part, folder)
        parts.append((batch, part))
    found = {key for _, part in parts for key in keys_of(part.shards)}
    elsewhere = _operations(images.filter(~pl.col("sha256").is_in(found)))
    # A batch lists a content first, and a later one has its bytes, where an earlier one was removed.
    more = [(batch, prepare_part(batch, elsewhere, folder, form)) for batch in batches(raw)] if elsewhere else []
    return parts + [(batch, part) for batch, part in more if part.images]


def prepare_part(batch: Path, operations: Mapping[str, Sequence[str]], folder: Path, form: StoredForm) -> Part:
    """Decode and encode what is accepted of a raw batch, in its order, into shards in ``folder``.

    Args:
        operations: SHA-256 → what validation has recorded that is done to the content.
    """
    least = set(heapq.nsmallest(ORIGINALS // 2, operations))
    originals: list[Original] = []

    def contents() -> Iterator[tuple[str, bytes]]:
        for tar in tars(batch):
            for sha256, offset, data in read_placed(tar, operations):
                if sha256 in least:
                    originals.append(Original(sha256, tar.name, offset, len(data)))
                yield sha256, data

    sums = PixelSums()

    def samples() -> Iterator[Sample]:
        nonlocal sums
        with Bar(len(operations), "images", name="prepare") as bar:
            for sample, pixels in convert(contents(), operations, form):
                sums += sum_pixels(pixels)
                yield sample
                bar.update()

    shards = list(write_tars(folder, samples(), form.params.shard_megabytes * 1_000_000))
    return Part(shards, sums, originals)


def write_originals(folder: Path, parts: Iterable[tuple[Path, Part]], keys: Iterable[str]) -> None:
    """Write the files of the least hashes as they came, as far as they take no more than half of ORIGINAL_BYTES."""
    folder.mkdir(exist_ok=True)
    least = set(heapq.nsmallest(ORIGINALS // 2, keys))
    files: list[tuple[str, bytes]] = []
    taken = 0
    for batch, part in parts:
        for sha256, tar, offset, size in part.originals:
            if sha256 in least and taken + size <= ORIGINAL_BYTES // 2:
                taken += size
                files.append((sha256, _read_at(batch / tar, offset, size)))
                require_ingested(*files[-1])
    if files:
        write_tar(folder, files)


def keys_of(shards: Iterable[Shard]) -> list[str]:
    """The SHA-256 of every image, in the order of the shards."""
    digits = "".join(shard.placed["key"].tobytes().hex() for shard in shards)
    return [digits[start : start + 64] for start in range(0, len(digits), 64)]


def _operations(images: pl.DataFrame) -> dict[str, list[str]]:
    return dict(images.select("sha256", "operations").iter_rows())


def _read_at(path: Path, offset: int, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(size)
