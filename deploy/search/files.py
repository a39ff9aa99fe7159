"""Write the directory of an index as a stream, and map it into memory to read it.

vectors.npy            float32 or float16 [count, dim]
ids.npy                uint8: the ids in UTF-8, concatenated
id_offsets.npy         int64 [count + 1]: where each id begins; a million ids open at once, and without pickle
column_<n>_values.npy  the distinct values of a column of metadata, ascending
column_<n>_codes.npy   int32 [count]: the position of each row's value, -1 if it has none
neighbours.usearch     the graph for approximate search, if there is one
graph_rows.npy         int64: the row of each vector in the graph, -1 if it was deleted
index.json             the encoder that made the vectors, their dimension, metric, data type and number
MANIFEST.sha256        `sha256sum -c` checks the directory
"""

import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deploy import artifact
from deploy.encoder import Encoder
from deploy.errors import ArgumentError, ArtifactError, IndexFormatError, IndexMismatchError
from deploy.lock import acquire
from deploy.search.approximate import GRAPH, GRAPH_ROWS, Graph, check_metric, write_graph
from deploy.search.arrays import Ids, map_array, map_ids, pack, write_array
from deploy.search.card import Card, read_card, write_card
from deploy.search.columns import Columns, Metadata, Value, check_metadata, make_columns, map_columns, write_columns
from deploy.search.exact import Vectors
from deploy.search.identity import check_same_encoder
from deploy.search.vectors import as_vectors, check_sequence, prepare

Part = tuple[Sequence[str], NDArray[Any]] | tuple[Sequence[str], NDArray[Any], Metadata]
"""Ids, vectors [n, dim] and, if there is any, metadata of consecutive rows."""
Block = tuple[Sequence[str], Vectors, Metadata]

BLOCK = 8192  # rows in memory at a time
OPENINGS = 20  # attempts to open an index while another process replaces it


class Contents(NamedTuple):
    """An index in memory; ``graph`` is None if it has none."""

    card: Card
    vectors: Vectors
    ids: Ids
    columns: Columns
    graph: Graph | None = None


def write_index(directory: Path, parts: Iterable[Part], card: Card, replace_it: bool, approximate: bool) -> None:
    """Publish an index of ``parts``. Only one part, and all ids and metadata, are in memory at a time."""
    if approximate:
        check_metric(card.metric)
    if directory.exists() and not replace_it:
        raise ArgumentError(f"{directory}: already exists; choose another directory, or remove it")
    check_replaceable(directory)
    with writing(directory):
        publish_index(directory, parts, card, approximate)


def check_replaceable(directory: Path) -> None:
    """Raise ArgumentError if something other than an index is there: it would be lost, such as a folder of images."""
    if directory.exists() and not all((directory / name).exists() for name in (artifact.MANIFEST, "index.json")):
        raise ArgumentError(f"{directory}: is not an index and would be lost; choose another directory, or remove it")


def change_index(directory: Path, old: Contents, kept: NDArray[np.int64], parts: Iterable[Part]) -> None:
    """Replace an index by its rows ``kept``, in ascending order, and those of ``parts`` after them.

    The caller holds the lock of the index.
    """
    publish_index(directory, chain(blocks(old, kept), parts), old.card, old.graph is not None, old.graph, kept)


def publish_index(
    directory: Path,
    parts: Iterable[Part],
    card: Card,
    approximate: bool,
    graph: Graph | None = None,
    kept: NDArray[np.int64] | None = None,
) -> None:
    """Write an index and put it in the place of ``directory`` when it is complete.

    Args:
        graph, kept: the graph of an earlier state, and which of its rows come first; the other rows are added to it.
    """
    with artifact.publish(directory, replace=True) as work:
        card = _write_rows(work, parts, card)
        if approximate:
            entries = write_graph(work, np.load(work / "vectors.npy", mmap_mode="r"), graph, kept)
            card = replace(card, graph=entries)
        write_card(work / "index.json", card)


def _write_rows(work: Path, parts: Iterable[Part], card: Card) -> Card:
    """Write all files but the graph and index.json; return the card with what was found."""
    seen: set[str] = set()
    metadata: dict[str, list[Value | None]] = {}
    count, size, longest = 0, 0, 0.0
    with ExitStack() as files:
        write_vectors = files.enter_context(write_array(work / "vectors.npy", card.dtype, card.dim))
        write_ids = files.enter_context(write_array(work / "ids.npy", np.uint8))
        write_offsets = files.enter_context(write_array(work / "id_offsets.npy", np.int64))
        write_offsets(np.zeros(1, np.int64))
        for ids, vectors, *about in parts:
            stored, length = prepare(ids, np.asarray(vectors), card, seen)
            content, ends = pack(ids, after=size)
            write_vectors(stored)
            write_ids(content)
            write_offsets(ends)
            _extend(metadata, check_metadata(about[0] if about else {}, len(ids)), count, len(ids))
            count, size, longest = count + len(ids), size + len(content), max(longest, length)
    columns = write_columns(work, make_columns(metadata))
    return replace(card, count=count, longest=longest, columns=columns, graph=None)


def _extend(
    metadata: dict[str, list[Value | None]], more: dict[str, list[Value | None]], before: int, rows: int
) -> None:
    """Append the metadata of ``rows`` rows; what is not there is missing."""
    for name in more:  # in their order, so that the same rows give the same bytes
        if name not in metadata:
            metadata[name] = [None] * before
    for name, values in metadata.items():
        values += more.get(name, [None] * rows)


def read_index(directory: Path, verify: bool = True) -> Contents:
    """Map an index into memory; all files of the same state, even if another process replaces it meanwhile.

    Raises:
        ArtifactError: the directory is missing or, if ``verify``, a file differs from its manifest.
        IndexFormatError: the index has another format version, or its files do not match each other.
    """
    for _ in range(OPENINGS):
        before, fault = _state(directory), None
        try:
            contents = _read_index(directory, verify)
        except (ArtifactError, IndexFormatError, FileNotFoundError) as error:
            fault = error
        if _state(directory) == before:
            break
    if fault is not None:
        raise fault
    return contents


def _state(directory: Path) -> tuple[int, int] | None:
    try:
        status = directory.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_ctime_ns


def _read_index(directory: Path, verify: bool) -> Contents:
    if verify:
        artifact.verify(directory)
    else:
        artifact.identity(directory)
    try:
        card = read_card(directory / "index.json")
        vectors: Vectors = map_array(directory / "vectors.npy", card.dtype, (card.count, card.dim))
        if verify:
            _check_lengths(vectors, card.longest)
        ids = map_ids(directory / "ids.npy", directory / "id_offsets.npy", card.count)
        columns = map_columns(directory, card.columns, card.count)
        graph = _map_graph(directory, card, verify)
    except (OSError, ValueError) as error:
        raise IndexFormatError(f"{directory}: {error}; build the index again with `simclr-deploy index`") from error
    return Contents(card, vectors, ids, columns, graph)


def _check_lengths(vectors: Vectors, longest: float) -> None:
    for start in range(0, len(vectors), BLOCK):
        lengths = np.linalg.norm(vectors[start : start + BLOCK].astype(np.float64), axis=1)
        if not (lengths <= longest * (1 + 1e-9)).all():  # not of NaN
            raise ArgumentError(
                f"vectors.npy has a vector that is longer than {longest:g}, the most that index.json says"
            )


def _map_graph(directory: Path, card: Card, verify: bool) -> Graph | None:
    if not (directory / GRAPH).exists():
        return None
    rows = None
    if card.graph is not None:
        rows = map_array(directory / GRAPH_ROWS, "int64", (card.graph,))
        if not np.array_equal(np.sort(rows[rows != -1]), np.arange(card.count)):
            raise ArgumentError(f"{GRAPH_ROWS} does not name each of the {card.count} rows once")
    return Graph(directory / GRAPH, rows, card.count, card.dim, verify)


def in_memory(ids: Sequence[str], vectors: NDArray[Any], metadata: Metadata, card: Card) -> Contents:
    """Make an index that is in no directory. Errors are those of ``prepare`` and ``check_metadata``."""
    stored, longest = prepare(ids, vectors, card, set())
    content, ends = pack(ids)
    columns = make_columns(check_metadata(metadata, len(ids)))
    starts = np.concatenate([np.zeros(1, np.int64), ends])
    return Contents(replace(card, count=len(stored), longest=longest), stored, Ids(content, starts), columns)


def merge_indexes(
    sources: Sequence[Path], directory: Path, encoder: str | None, approximate: bool, replace_it: bool
) -> None:
    """Write one index of all vectors in ``sources``; ``encoder`` is the id of the one that has to have made them."""
    if not sources:
        raise ArgumentError("nothing to index; give an index, or a directory made by `simclr-deploy embed`")
    opened = [read_parts(source) for source in sources]
    first = opened[0][0]
    for source, (card, _) in zip(sources, opened, strict=True):
        check_same_encoder(f"{source}", card.encoder, encoder or first.encoder)
        if (card.dim, card.metric, card.dtype) != (first.dim, first.metric, first.dtype):
            raise IndexMismatchError(
                f"{source}: {_kind(card)}, but {sources[0]} is {_kind(first)}; index them separately"
            )
    write_index(directory, chain.from_iterable(parts for _, parts in opened), first, replace_it, approximate)


def check_parts(parts: Iterable[Part]) -> Iterator[Part]:
    """Yield the parts as they are.

    Raises:
        ArgumentError: they are not an iterable of ids, vectors and perhaps metadata.
    """
    asked = "give an iterable of (ids, vectors) or (ids, vectors, metadata)"
    if not isinstance(parts, Iterable) or isinstance(parts, str | bytes | Mapping):
        raise ArgumentError(f"parts are of type {type(parts).__name__}; {asked}")
    return (_check_part(part, asked) for part in parts)


def _check_part(part: Part, asked: str) -> Part:
    if not isinstance(part, Sequence) or isinstance(part, str | bytes) or len(part) not in (2, 3):
        raise ArgumentError(f"a part is {part!r:.80}; {asked}")
    check_sequence("ids", part[0])
    vectors = as_vectors("vectors", part[1])
    return (part[0], vectors, *part[2:])


def measure(encoder: Encoder | str, parts: Iterator[Part]) -> tuple[int, Iterator[Part]]:
    """Return the dimension of the vectors, and all parts again."""
    if isinstance(encoder, Encoder):
        return encoder.info["dim"], parts
    first = next(parts, None)
    if first is None:
        raise ArgumentError("no vectors to index; give some, or the encoder itself, which knows their dimension")
    return int(first[1].shape[-1]) if first[1].ndim else 0, chain([first], parts)


def _kind(card: Card) -> str:
    return f"{card.metric} of {card.dtype} [{card.dim}]"


def read_parts(directory: Path) -> tuple[Card, Iterator[Part]]:
    """Read an index, or the output of `simclr-deploy embed`: return its card, and blocks of its rows.

    Raises:
        ArtifactError, IndexFormatError: as in ``read_index``.
    """
    if (directory / "index.json").exists():
        contents = read_index(directory)
        return contents.card, blocks(contents)
    artifact.verify(directory)
    for needed in ("embedding.json", "vectors.npy", "ids.csv"):
        if not (directory / needed).exists():
            made = "`simclr-deploy index`, or `simclr-deploy embed` with the format npy"
            raise IndexFormatError(f"{directory}: has no {needed}; give a directory made by {made}")
    try:
        about = json.loads((directory / "embedding.json").read_text(encoding="utf-8"))
        card = Card(about["encoder"], about["name"], about["dim"])
        vectors = map_array(directory / "vectors.npy", "float32", (about["rows"], card.dim))
        with (directory / "ids.csv").open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            names = [row["path"] for row in csv.DictReader(file)]
        if len(names) != len(vectors):
            raise ArgumentError(f"ids.csv lists {len(names)} of {len(vectors)} rows")
    except (OSError, EOFError, ValueError, TypeError, KeyError, RecursionError, csv.Error) as error:
        raise IndexFormatError(f"{directory}: {error}; embed the images again") from error
    steps = range(0, len(names), BLOCK)
    return card, ((names[start : start + BLOCK], vectors[start : start + BLOCK]) for start in steps)


def blocks(contents: Contents, rows: NDArray[np.int64] | None = None) -> Iterator[Block]:
    """Yield ids, vectors and metadata of consecutive rows, or of the given ones, at most BLOCK at a time."""
    for start in range(0, contents.card.count if rows is None else len(rows), BLOCK):
        stop = min(start + BLOCK, contents.card.count if rows is None else len(rows))
        chosen = np.arange(start, stop) if rows is None else rows[start:stop]
        names = contents.ids.take(chosen)
        metadata = {name: column.take(chosen) for name, column in contents.columns.items()}
        yield names, contents.vectors[start:stop] if rows is None else contents.vectors[chosen], metadata


@contextmanager
def writing(directory: Path) -> Iterator[None]:
    """Hold the lock of an index, a hidden file next to it, which disappears with the writer.

    Raises:
        ArgumentError: another writer holds it.
    """
    path = directory.parent / f".{directory.name}.lock"
    directory.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        if not acquire(file) or not _is_file(file, path):  # else its last holder has just removed it
            raise ArgumentError(f"{directory}: another process is writing it; wait until it is done")
        try:
            yield
        finally:
            path.unlink()


def _is_file(file: IO[str], path: Path) -> bool:
    return path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())
