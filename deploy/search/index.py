"""An index: vectors with ids, searched exactly by default, that knows which encoder made them.

    index = deploy.Index.build(vectors, ids, encoder)          # in memory
    index.save("photos.index")
    index = deploy.Index.open("photos.index", encoder)         # mapped into memory; another encoder's is refused
    ids, rows, scores = index.search(encoder.embed("cat.jpg").vectors, k=10)

Vectors of two encoders have nothing to do with each other, and a search among the wrong ones fails without any error:
therefore an index names its encoder. The metric is "cosine" (vectors are scaled to length 1 when they are stored, and
queries when they are searched) or "inner_product" (nothing is scaled).
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deploy.encoder import Encoder
from deploy.errors import ArgumentError, IndexMismatchError
from deploy.search import exact as exact_search
from deploy.search.approximate import GRAPH, Graph
from deploy.search.files import (
    Card,
    Ids,
    Metric,
    Part,
    Storage,
    blocks,
    pack,
    prepared,
    read_index,
    read_parts,
    scaled,
    write_index,
)

PathLike = str | os.PathLike[str]


class Matches(NamedTuple):
    """The nearest neighbours of each query, nearest first; of equal scores, the first row first.

    Attributes:
        ids: of each query, the ids of its neighbours.
        rows: int64 [queries, k], their rows in the index.
        scores: float32 [queries, k], cosine similarities or inner products.
    """

    ids: list[list[str]]
    rows: NDArray[np.int64]
    scores: NDArray[np.float32]


class Pair(NamedTuple):
    """Two vectors that are as good as the same."""

    first: str
    second: str
    cosine: float


class Index:
    """Vectors [count, dim] with ids. Nothing in it ever changes, so it may be searched from many threads."""

    def __init__(self, card: Card, vectors: exact_search.Vectors, ids: Ids, graph: Graph | None = None) -> None:
        self._card, self._vectors, self.ids, self._graph = card, vectors, ids, graph

    @classmethod
    def build(
        cls,
        vectors: NDArray[Any],
        ids: Sequence[str],
        encoder: Encoder | str,
        metric: Metric = "cosine",
        dtype: Storage = "float32",
    ) -> "Index":
        """An index in memory.

        Args:
            vectors: [n, dim], any length.
            ids: n different strings.
            encoder: what made the vectors, or its ``id``.
            metric: see above.
            dtype: "float16" takes half the room and knows cosines to about 0.001.

        Raises:
            ArgumentError: an argument has a value that is not allowed; the message names the first such row.
        """
        vectors = np.asarray(vectors)
        card = _card(encoder, vectors.shape[-1] if vectors.ndim else 0, metric, dtype)
        stored, longest = prepared(ids, vectors, card, set())
        content, ends = pack(ids)
        card = Card(card.encoder, card.name, card.dim, metric, dtype, len(stored), longest)
        return cls(card, stored, Ids(content, np.concatenate([np.zeros(1, np.int64), ends])))

    @classmethod
    def open(cls, directory: PathLike, encoder: Encoder | str | None = None, verify: bool = True) -> "Index":
        """Map a saved index into memory.

        Args:
            encoder: with which it will be searched.
            verify: read every file once to compare its SHA-256. Off: only their shapes are checked.

        Raises:
            ArtifactError: the directory is missing or a file differs from its manifest.
            IndexFormatError: it was made by another release, or is no index.
            IndexMismatchError: another encoder made it.
        """
        directory = Path(directory)
        card, vectors, ids = read_index(directory, verify)
        graph = directory / GRAPH
        index = cls(card, vectors, ids, Graph(graph, (card.count, card.dim)) if graph.exists() else None)
        if encoder is not None:
            index.check_encoder(encoder)
        return index

    @staticmethod
    def write(
        directory: PathLike,
        parts: Iterable[Part],
        encoder: Encoder | str,
        dim: int,
        metric: Metric = "cosine",
        dtype: Storage = "float32",
        approximate: bool = False,
        replace: bool = False,
    ) -> None:
        """Publish an index of any size: ``parts`` are pairs of ids and vectors, one of them in memory at a time.

        Args:
            approximate: also build the graph for approximate search (needs the extra ``search``).
            replace: an index that is there already.

        Raises:
            ArgumentError: as in ``build``, or the directory exists.
            MissingExtraError: usearch is not installed.
        """
        write_index(Path(directory), parts, _card(encoder, dim, metric, dtype), replace, approximate)

    @classmethod
    def merge(
        cls,
        sources: Sequence[PathLike],
        directory: PathLike,
        encoder: Encoder | str | None = None,
        approximate: bool = False,
        replace: bool = False,
    ) -> None:
        """Publish an index of what lies in ``sources``: indexes, and directories made by `simclr-deploy embed`.

        Raises:
            IndexMismatchError: they are of different encoders, or of another one than ``encoder``.
            ArtifactError, IndexFormatError, ArgumentError: a source cannot be used, or two hold the same id.
        """
        if not sources:
            raise ArgumentError("nothing to index; give an index, or a directory made by `simclr-deploy embed`")
        opened = [read_parts(Path(source)) for source in sources]
        first = opened[0][0]
        for source, (card, _) in zip(sources, opened, strict=True):
            _check_same_encoder(f"{source}", card.encoder, first.encoder if encoder is None else _identity(encoder)[0])
            if (card.dim, card.metric, card.dtype) != (first.dim, first.metric, first.dtype):
                raise IndexMismatchError(
                    f"{source}: {_kind(card)}, but {sources[0]} is {_kind(first)}; keep them apart"
                )
        write_index(Path(directory), chain.from_iterable(parts for _, parts in opened), first, replace, approximate)

    def save(self, directory: PathLike, approximate: bool = False, replace: bool = False) -> None:
        """Publish this index; arguments and errors as in ``write``."""
        card = Card(self.encoder, self._card.name, self.dim, self._card.metric, self._card.dtype)
        write_index(Path(directory), blocks(self.ids, self._vectors), card, replace, approximate)

    def __len__(self) -> int:
        return self._card.count

    @property
    def encoder(self) -> str:
        """The id of the encoder that made the vectors."""
        return self._card.encoder

    @property
    def dim(self) -> int:
        return self._card.dim

    @property
    def vectors(self) -> exact_search.Vectors:
        """The stored vectors, [count, dim]; a part of the file, so do not write to them."""
        return self._vectors

    @property
    def info(self) -> dict[str, Any]:
        """Encoder id and name, dim, metric, dtype, count, and whether approximate search is there."""
        card = self._card
        kept = {name: getattr(card, name) for name in ("encoder", "name", "dim", "metric", "dtype", "count")}
        return kept | {"approximate": self._graph is not None}

    def check_encoder(self, encoder: Encoder | str) -> None:
        """Refuse any encoder, given itself or as its id, but the one that made the vectors.

        Raises:
            IndexMismatchError: names both.
        """
        _check_same_encoder("the index", self.encoder, _identity(encoder)[0])

    def search(
        self,
        queries: ArrayLike,
        k: int = 10,
        encoder: Encoder | str | None = None,
        mask: NDArray[np.bool_] | None = None,
        approximate: bool = False,
    ) -> Matches:
        """The ``k`` nearest neighbours of each query; all rows when there are fewer.

        Args:
            queries: [q, dim], or [dim] for one.
            encoder: what made the queries, to be checked; not needed when it was given to ``open``.
            mask: bool [count], the rows to search; such as ``[id.startswith("2026/") for id in index.ids]``.
            approximate: take candidates from the graph. Scores are exact, but a neighbour may be missed.

        Raises:
            ArgumentError: an argument has a value that is not allowed, or there is no graph.
            IndexMismatchError: the queries are of another encoder, or of another dimension.
        """
        if encoder is not None:
            self.check_encoder(encoder)
        if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
            raise ArgumentError(f"k={k!r}; give an integer of 1 or more")
        vectors = self._queries(queries)
        if approximate:
            rows, scores = self._approximate(vectors, int(k), mask)
        else:
            chosen = None if mask is None else np.flatnonzero(self._checked(mask))
            rows, scores = exact_search.nearest(self._vectors, vectors, int(k), self._card.longest, chosen)
        return Matches([[self.ids[row] for row in found] for found in rows], rows, scores.astype(np.float32))

    def duplicates(self, threshold: float = 0.98) -> Iterator[Pair]:
        """All pairs with a cosine of ``threshold`` or more (to 1e-6), in bounded memory; the time is quadratic.

        Raises:
            ArgumentError: the threshold is not in (-1, 1], or the metric is not cosine.
        """
        if self._card.metric != "cosine" or not -1 < threshold <= 1:
            given = f"metric={self._card.metric}, threshold={threshold}"
            raise ArgumentError(f"{given}; duplicates need the metric cosine and a threshold above -1, up to 1")
        return self._duplicates(threshold)

    def _duplicates(self, threshold: float) -> Iterator[Pair]:
        for hits in exact_search.pairs_above(self._vectors, threshold - 1e-6, self._card.longest):
            for first, second, cosine in zip(*hits, strict=True):
                yield Pair(self.ids[first], self.ids[second], float(cosine))

    def _queries(self, queries: ArrayLike) -> NDArray[np.float32]:
        vectors = np.atleast_2d(np.asarray(queries))
        if vectors.ndim != 2 or vectors.shape[1] != self.dim or vectors.dtype.kind not in "fiu":
            given = f"{vectors.dtype} {list(vectors.shape)}"
            raise IndexMismatchError(
                f"queries are {given}, the index holds vectors [{self.dim}]; give numbers [q, {self.dim}]"
            )
        return scaled(vectors, self._card.metric, "query {}".format).astype(np.float32)

    def _checked(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        mask = np.asarray(mask)
        if mask.shape != (len(self),) or mask.dtype != np.bool_:
            raise ArgumentError(f"mask is {mask.dtype} {list(mask.shape)}; give bool [{len(self)}], one for each row")
        return mask

    def _approximate(
        self, queries: NDArray[np.float32], k: int, mask: NDArray[np.bool_] | None
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        if self._graph is None or mask is not None:
            fault = (
                "a mask needs exact search" if self._graph else "the index has no graph; save it with approximate=True"
            )
            raise ArgumentError(f"{fault}, or search without approximate=True")
        k = min(k, len(self))
        hits = exact_search.rescored(self._vectors, queries, self._graph.candidates(queries, k), k)
        if len(hits.rows) < len(queries) * k:  # a graph that does not reach enough rows; the exact answer is one, too
            return exact_search.nearest(self._vectors, queries, k, self._card.longest)
        return hits.rows.reshape(len(queries), k), hits.scores.reshape(len(queries), k)


def _identity(encoder: Encoder | str) -> tuple[str, str | None]:
    return (encoder.id, encoder.info["name"]) if isinstance(encoder, Encoder) else (encoder, None)


def _card(encoder: Encoder | str, dim: int, metric: Metric, dtype: Storage) -> Card:
    identity, name = _identity(encoder)
    return Card(identity, name, dim, metric, dtype)


def _kind(card: Card) -> str:
    return f"{card.metric} of {card.dtype} [{card.dim}]"


def _check_same_encoder(what: str, made: str, given: str) -> None:
    if made != given:
        raise IndexMismatchError(
            f"{what}: made by encoder {_short(made)}, not {_short(given)}; use that encoder, or embed and index again"
        )


def _short(identity: str) -> str:
    bundle, colon, variant = identity.partition(":")
    return bundle[:12] + colon + variant
