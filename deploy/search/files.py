"""Write the directory of an index as a stream, and map it into memory to read it.

vectors.npy        float32 or float16 [count, dim]
ids.npy            uint8: the ids in UTF-8, concatenated
id_offsets.npy     int64 [count + 1]: where each id begins; a million ids open at once, and without pickle
neighbours.usearch the graph for approximate search, if there is one
index.json         the encoder that made the vectors, their dimension, metric, data type and number
MANIFEST.sha256    `sha256sum -c` checks the directory
"""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

from deploy import artifact
from deploy.errors import ArgumentError, IndexFormatError
from deploy.search.approximate import check_metric, write_graph
from deploy.search.exact import Vectors

Metric = Literal["cosine", "inner_product"]
Storage = Literal["float32", "float16"]
Part = tuple[Sequence[str], NDArray[Any]]

FORMAT_VERSION = 1
BLOCK = 8192  # rows in memory at a time
LONGEST = 1e18  # the product of two such lengths still fits into float32
UNIT = 1e-6  # the length of a float32 vector scaled to 1 differs from 1 by less than this


@dataclass(frozen=True)
class Card:
    """The content of index.json: ``encoder`` is the ``id`` of the encoder, ``longest`` the largest vector length."""

    encoder: str
    name: str | None
    dim: int
    metric: Metric = "cosine"
    dtype: Storage = "float32"
    count: int = 0
    longest: float = 0.0

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("metric", self.metric, ("cosine", "inner_product")),
            ("dtype", self.dtype, ("float32", "float16")),
        ):
            if value not in allowed:
                raise ArgumentError(f"{name}={value!r}; choose {' or '.join(allowed)}")
        if not isinstance(self.encoder, str) or not self.encoder:
            raise ArgumentError(f"encoder={self.encoder!r}; give the Encoder that made the vectors, or its id")
        if type(self.dim) is not int or self.dim < 1:
            raise ArgumentError(f"vectors of {self.dim} dimensions; give vectors [n, dim] with dim of 1 or more")


class Ids:
    """Strings in two arrays: their concatenated UTF-8 bytes, and where each begins."""

    def __init__(self, content: NDArray[np.uint8], offsets: NDArray[np.int64]) -> None:
        self._content, self._offsets = content, offsets

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, row: int) -> str:
        if not 0 <= row < len(self):
            raise IndexError(row)
        return self._content[self._offsets[row] : self._offsets[row + 1]].tobytes().decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return (self[row] for row in range(len(self)))


def pack(ids: Iterable[str], after: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the bytes of the ids, and where each ends if the first begins at ``after``. Any path keeps its bytes."""
    encoded = [name.encode("utf-8", "surrogateescape") for name in ids]
    lengths = [len(name) for name in encoded]
    return np.frombuffer(b"".join(encoded), np.uint8), after + np.cumsum(lengths, dtype=np.int64)


def prepare(ids: Sequence[str], vectors: NDArray[Any], card: Card, seen: set[str]) -> tuple[Vectors, float]:
    """Check ids and vectors; return the vectors as they are stored, and the largest length among them.

    The stored vectors have length 1 if the metric is cosine. The ids are added to ``seen``.

    Raises:
        ArgumentError: ids are not a sequence, ids and vectors differ in number, an id is already in ``seen``, or a
            vector has an unusable length: NaN, infinite, too large, or zero with the metric cosine.
    """
    check_sequence("ids", ids)
    if vectors.ndim != 2 or vectors.shape[1] != card.dim or len(ids) != len(vectors):
        given = f"{len(ids)} ids and vectors {list(vectors.shape)}"
        raise ArgumentError(f"given {given}; give one id for each row of vectors [n, {card.dim}]")
    for row, name in enumerate(ids):
        if not isinstance(name, str) or "\0" in name:
            raise ArgumentError(f"id {name!r} of row {row}: not valid; give strings without null characters")
        if name in seen:
            raise ArgumentError(f"id {name!r} is given twice; give each vector a unique id")
        seen.add(name)
    with np.errstate(over="ignore"):  # an overflow is found below
        stored: Vectors = scale(vectors, card.metric, lambda row: f"id {ids[row]!r}").astype(card.dtype)
    lengths = np.linalg.norm(stored.astype(np.float64), axis=1)
    if not np.isfinite(lengths).all():
        raise ArgumentError(f"id {ids[int(lengths.argmax())]!r}: its vector is too large for float16; store float32")
    return stored, float(lengths.max(initial=0.0))


def check_sequence(name: str, texts: object) -> None:
    """Raise ArgumentError for what can be iterated without being one text for each row: a string, a set, a mapping."""
    if isinstance(texts, str | Mapping) or not hasattr(texts, "__getitem__"):
        raise ArgumentError(f"{name} are of type {type(texts).__name__}; give a list with one string for each vector")


def scale(vectors: NDArray[Any], metric: Metric, name: Callable[[int], str]) -> NDArray[np.float64]:
    """Return the rows of ``vectors`` [n, dim] as float64, scaled to length 1 if the metric is cosine.

    A row that already has length 1 stays as it is, so that storing it again changes no bit. Error messages call row i
    ``name(i)``.
    """
    rows = vectors.astype(np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    wrong = np.flatnonzero(~(lengths <= LONGEST))  # NaN too
    if len(wrong):
        raise ArgumentError(f"{name(int(wrong[0]))}: the vector has NaN or values that are too large; leave it out")
    if metric == "inner_product":
        return rows
    if not lengths.all():
        raise ArgumentError(f"{name(int(lengths.argmin()))}: the vector is zero and has no direction; leave it out")
    unit: NDArray[np.float64] = rows / np.where(np.abs(lengths - 1) < UNIT, 1.0, lengths)
    return unit


def write_index(directory: Path, parts: Iterable[Part], card: Card, replace_it: bool, approximate: bool) -> None:
    """Publish an index of ``parts``, pairs of ids and vectors. Only one part and all ids are in memory at a time."""
    if approximate:
        check_metric(card.metric)
    if directory.exists() and not replace_it:
        raise ArgumentError(f"{directory}: already exists; choose another directory, or remove it")
    with artifact.publish(directory, replace=replace_it) as work:
        with ExitStack() as files:
            write_vectors = files.enter_context(_npy(work / "vectors.npy", card.dtype, card.dim))
            write_ids = files.enter_context(_npy(work / "ids.npy", np.uint8))
            write_offsets = files.enter_context(_npy(work / "id_offsets.npy", np.int64))
            write_offsets(np.zeros(1, np.int64))
            seen: set[str] = set()
            size = 0
            for ids, vectors in parts:
                stored, longest = prepare(ids, vectors, card, seen)
                content, ends = pack(ids, after=size)
                write_vectors(stored)
                write_ids(content)
                write_offsets(ends)
                size += len(content)
                card = replace(card, count=card.count + len(ids), longest=max(card.longest, longest))
        text = json.dumps({"format_version": FORMAT_VERSION, **asdict(card)}, indent=2, ensure_ascii=False)
        (work / "index.json").write_text(text + "\n", encoding="utf-8")
        if approximate:
            write_graph(work, np.load(work / "vectors.npy", mmap_mode="r"))


def read_index(directory: Path, verify: bool = True) -> tuple[Card, Vectors, Ids]:
    """Map an index into memory.

    Raises:
        ArtifactError: the directory is missing or, if ``verify``, a file differs from its manifest.
        IndexFormatError: the index has another format version, or its files do not match each other.
    """
    if verify:
        artifact.verify(directory)
    else:
        artifact.identity(directory)
    try:
        content = json.loads((directory / "index.json").read_text(encoding="utf-8"))
        version = content.pop("format_version", None)
        if version != FORMAT_VERSION:
            raise ArgumentError(f"format version {version!r}, this release reads {FORMAT_VERSION}")
        card = Card(**content)
        vectors = _map_array(directory / "vectors.npy", card.dtype, (card.count, card.dim))
        offsets = _map_array(directory / "id_offsets.npy", "int64", (card.count + 1,))
        ids = _map_array(directory / "ids.npy", "uint8", (int(offsets[-1]),))
        if offsets[0] != 0 or (np.diff(offsets) < 0).any():
            raise ArgumentError("the offsets in id_offsets.npy do not ascend from 0")
    except (OSError, EOFError, ValueError, TypeError, AttributeError) as error:
        raise IndexFormatError(f"{directory}: {error}; build the index again") from error
    return card, vectors, Ids(ids, offsets)


def read_parts(directory: Path) -> tuple[Card, Iterator[Part]]:
    """Read an index, or the output of `simclr-deploy embed`: return its card, and blocks of its rows.

    Raises:
        ArtifactError, IndexFormatError: as in ``read_index``.
    """
    if (directory / "index.json").exists():
        card, vectors, ids = read_index(directory)
        return replace(card, count=0, longest=0.0), blocks(ids, vectors)
    artifact.verify(directory)
    for needed in ("embedding.json", "vectors.npy", "ids.csv"):
        if not (directory / needed).exists():
            made = "`simclr-deploy index`, or `simclr-deploy embed` with the format npy"
            raise IndexFormatError(f"{directory}: has no {needed}; give a directory made by {made}")
    try:
        about = json.loads((directory / "embedding.json").read_text(encoding="utf-8"))
        card = Card(about["encoder"], about["name"], about["dim"])
        vectors = _map_array(directory / "vectors.npy", "float32", (about["rows"], card.dim))
        with (directory / "ids.csv").open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            names = [row["path"] for row in csv.DictReader(file)]
        if len(names) != len(vectors):
            raise ArgumentError(f"ids.csv lists {len(names)} of {len(vectors)} rows")
    except (OSError, EOFError, ValueError, TypeError, KeyError, csv.Error) as error:
        raise IndexFormatError(f"{directory}: {error}; embed the images again") from error
    return card, blocks(names, vectors)


def blocks(ids: Sequence[str] | Ids, vectors: Vectors) -> Iterator[Part]:
    """Yield ids and vectors of consecutive rows, at most BLOCK at a time."""
    for start in range(0, len(vectors), BLOCK):
        stop = min(start + BLOCK, len(vectors))
        yield [ids[row] for row in range(start, stop)], vectors[start:stop]


def _map_array(path: Path, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """Map a file as a plain array: slices of np.memmap are slower."""
    array = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    if array.dtype != np.dtype(dtype) or array.shape != shape or not array.flags.c_contiguous:
        raise ArgumentError(f"{path.name} is {array.dtype} {list(array.shape)}, not {dtype} {list(shape)}")
    return array


@contextmanager
def _npy(path: Path, dtype: DTypeLike, *shape: int) -> Iterator[Callable[[NDArray[Any]], None]]:
    """Write an .npy file [n, *shape]: the yielded function appends rows."""
    rows, stored = 0, np.dtype(dtype).newbyteorder("<")

    def write_header() -> None:  # numpy pads it, so its length does not depend on the number of rows
        about = {"descr": stored.str, "fortran_order": False, "shape": (rows, *shape)}
        np.lib.format.write_array_header_1_0(file, about)

    def append(array: NDArray[Any]) -> None:
        nonlocal rows
        file.write(np.ascontiguousarray(array, stored).data)
        rows += len(array)

    with path.open("wb") as file:
        write_header()
        yield append
        file.seek(0)
        write_header()
