"""An index of embeddings: vectors with ids, and the id of the encoder that made them. Search is exact by default.

    index = deploy.Index.build(vectors, ids, encoder)          # in memory
    index.save("photos.index")
    index = deploy.Index.open("photos.index", encoder)         # mapped into memory; refuses another encoder
    ids, rows, scores = index.search(encoder.embed("cat.jpg").vectors, k=10)

Vectors of different encoders are not comparable, and a search with the wrong ones would silently return nonsense;
therefore an index records its encoder. The metric is "cosine" (stored vectors and queries are scaled to length 1) or
"inner_product" (vectors are used as given).
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

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
    prepare,
    read_index,
    read_parts,
    scale,
    write_index,
)
from deploy.search.identity import check_same_encoder, identity_of
from deploy.search.matches import Matches, Pair

__all__ = ["Index", "Matches", "Pair"]

PathLike = str | os.PathLike[str]


class Index:
    """Vectors [count, dim] with ids. An index is immutable and safe to search from many threads.

    Attributes:
        ids: the ids in order of rows; ``ids[row]`` is a string.

    Examples:
        >>> import deploy, numpy as np
        >>> index = deploy.Index.build(np.eye(3), ["a.jpg", "b.jpg", "c.jpg"], encoder="0a1b")
        >>> index.search([0.9, 0.4, 0.0], k=2).ids
        [['a.jpg', 'b.jpg']]
    """

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
        """Build an index in memory.

        Args:
            vectors: [n, dim], of any length.
            ids: n unique strings.
            encoder: the encoder that made the vectors, or its ``id``.
            metric: "cosine", which scales vectors and queries to length 1, or "inner_product".
            dtype: "float32", or "float16", which takes half the memory and gives cosines to about 0.001.

        Raises:
            ArgumentError: an argument has a value that is not allowed; the message names the first such row.

        Examples:
            >>> import deploy
            >>> encoder = deploy.load("models/bundle")
            >>> paths = ["cat.jpg", "dog.png"]
            >>> index = deploy.Index.build(encoder.embed(paths).vectors, paths, encoder)
            >>> len(index)
            2
        """
        vectors = np.asarray(vectors)
        card = _card(encoder, vectors.shape[-1] if vectors.ndim else 0, metric, dtype)
        stored, longest = prepare(ids, vectors, card, set())
        content, ends = pack(ids)
        card = Card(card.encoder, card.name, card.dim, metric, dtype, len(stored), longest)
        return cls(card, stored, Ids(content, np.concatenate([np.zeros(1, np.int64), ends])))

    @classmethod
    def open(cls, directory: PathLike, encoder: Encoder | str | None = None, verify: bool = True) -> "Index":
        """Map a saved index into memory.

        Args:
            directory: made by ``save``, ``write``, ``merge`` or `simclr-deploy index`.
            encoder: the encoder of the queries, to check that it also made the index.
            verify: read every file once and compare its SHA-256; otherwise check only the shapes of the arrays.

        Raises:
            ArtifactError: the directory is missing or a file differs from its manifest.
            IndexFormatError: another release made it, or it is not an index.
            IndexMismatchError: another encoder made it.

        Examples:
            >>> import deploy, numpy as np
            >>> deploy.Index.build(np.eye(2), ["a.jpg", "b.jpg"], encoder="0a1b").save("saved.index")
            >>> list(deploy.Index.open("saved.index", encoder="0a1b").ids)
            ['a.jpg', 'b.jpg']
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
        metric: Metric = "cosine",
        dtype: Storage = "float32",
        approximate: bool = False,
        replace: bool = False,
    ) -> None:
        """Write an index of any size to a directory. Only one part is in memory at a time.

        Args:
            directory: directory to make; it appears when it is complete.
            parts: pairs of ids and vectors [n, dim], such as batches of ``Encoder.embed_iter``.
            encoder: the encoder that made the vectors, or its ``id``; then the first part says what ``dim`` is.
            metric, dtype: as in ``build``.
            approximate: also build the graph for approximate search (needs the extra ``search``).
            replace: replace an index in the same place.

        Raises:
            ArgumentError: as in ``build``, the directory exists, or there are no parts and no encoder to ask.
            MissingExtraError: usearch is not installed.

        Examples:
            >>> import deploy
            >>> encoder = deploy.load("models/bundle")
            >>> stream = encoder.embed_iter(["cat.jpg", "dog.png"], batch_size=1)
            >>> parts = ((part.sources, part.vectors) for part in stream)
            >>> deploy.Index.write("written.index", parts, encoder)
            >>> len(deploy.Index.open("written.index", encoder))
            2
        """
        dim, parts = _measure(encoder, iter(parts))
        write_index(Path(directory), parts, _card(encoder, dim, metric, dtype), replace, approximate)

    @classmethod
    def merge(
        cls,
        sources: Sequence[PathLike] | PathLike,
        directory: PathLike,
        encoder: Encoder | str | None = None,
        approximate: bool = False,
        replace: bool = False,
    ) -> None:
        """Write one index of all vectors in ``sources``.

        Args:
            sources: indexes, and directories made by `simclr-deploy embed`.
            directory: directory to make.
            encoder: the expected encoder of all sources; by default that of the first.
            approximate, replace: as in ``write``.

        Raises:
            IndexMismatchError: a source has another encoder, dimension, metric or data type.
            ArtifactError, IndexFormatError: a source cannot be read.
            ArgumentError: there are no sources, two contain the same id, or the directory exists.

        Examples:
            >>> import deploy, numpy as np
            >>> deploy.Index.build(np.eye(2), ["a.jpg", "b.jpg"], encoder="0a1b").save("old.index")
            >>> deploy.Index.build(np.eye(2), ["c.jpg", "d.jpg"], encoder="0a1b").save("new.index")
            >>> deploy.Index.merge(["old.index", "new.index"], "all.index")
            >>> len(deploy.Index.open("all.index"))
            4
        """
        sources = [sources] if isinstance(sources, str | os.PathLike) else sources
        if not sources:
            raise ArgumentError("nothing to index; give an index, or a directory made by `simclr-deploy embed`")
        opened = [read_parts(Path(source)) for source in sources]
        first = opened[0][0]
        for source, (card, _) in zip(sources, opened, strict=True):
            check_same_encoder(f"{source}", card.encoder, first.encoder if encoder is None else identity_of(encoder)[0])
            if (card.dim, card.metric, card.dtype) != (first.dim, first.metric, first.dtype):
                raise IndexMismatchError(
                    f"{source}: {_kind(card)}, but {sources[0]} is {_kind(first)}; index them separately"
                )
        write_index(Path(directory), chain.from_iterable(parts for _, parts in opened), first, replace, approximate)

    def save(self, directory: PathLike, approximate: bool = False, replace: bool = False) -> None:
        """Write this index to a directory; arguments and errors are those of ``write``, an example is in ``open``."""
        card = Card(self.encoder, self._card.name, self.dim, self._card.metric, self._card.dtype)
        write_index(Path(directory), blocks(self.ids, self._vectors), card, replace, approximate)

    def __len__(self) -> int:
        """Number of vectors."""
        return self._card.count

    @property
    def encoder(self) -> str:
        """The id of the encoder that made the vectors."""
        return self._card.encoder

    @property
    def dim(self) -> int:
        """Dimension of the vectors."""
        return self._card.dim

    @property
    def vectors(self) -> exact_search.Vectors:
        """The stored vectors, float32 or float16 [count, dim]; possibly mapped from the file, so do not modify them."""
        return self._vectors

    @property
    def info(self) -> dict[str, Any]:
        """Encoder id and name, dim, metric, dtype, count, and whether the index has a graph for approximate search."""
        card = self._card
        kept = {name: getattr(card, name) for name in ("encoder", "name", "dim", "metric", "dtype", "count")}
        return kept | {"approximate": self._graph is not None}

    def check_encoder(self, encoder: Encoder | str) -> None:
        """Check that ``encoder``, or the encoder with that id, made the vectors of this index.

        Raises:
            IndexMismatchError: another encoder made them; the message names both.
        """
        check_same_encoder("the index", self.encoder, identity_of(encoder)[0])

    def search(
        self,
        queries: ArrayLike,
        k: int = 10,
        encoder: Encoder | str | None = None,
        mask: NDArray[np.bool_] | None = None,
        approximate: bool = False,
    ) -> Matches:
        """Find the ``k`` nearest neighbors of each query.

        Args:
            queries: [q, dim], or [dim] for a single query.
            k: neighbors of each query; all rows if there are fewer.
            encoder: the encoder of the queries, to check that it made the index; redundant if given to ``open``.
            mask: bool [count], the rows to search; such as ``[id.startswith("2026/") for id in index.ids]``.
            approximate: take candidates from the graph. Scores are exact, but the search may miss a neighbor.

        Returns:
            Matches with ids, rows int64 [q, k] and scores float32 [q, k].

        Raises:
            ArgumentError: an argument has a value that is not allowed, or the index has no graph.
            IndexMismatchError: the queries have another encoder or dimension.

        Examples:
            >>> import deploy, numpy as np
            >>> index = deploy.Index.build(np.eye(3), ["a.jpg", "b.jpg", "c.jpg"], encoder="0a1b")
            >>> found = index.search([3.0, 4.0, 0.0], k=2)
            >>> found.ids, found.scores.round(1).tolist() == np.float32([[0.8, 0.6]]).tolist()
            ([['b.jpg', 'a.jpg']], True)
            >>> index.search([3.0, 4.0, 0.0], k=1, mask=np.array([True, False, True])).ids
            [['a.jpg']]
        """
        if encoder is not None:
            self.check_encoder(encoder)
        if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
            raise ArgumentError(f"k={k!r}; give an integer of 1 or more")
        vectors = self._queries(queries)
        if approximate:
            rows, scores = self._approximate(vectors, int(k), mask)
        else:
            chosen = None if mask is None else np.flatnonzero(self._check_mask(mask))
            rows, scores = exact_search.find_nearest(self._vectors, vectors, int(k), self._card.longest, chosen)
        return Matches([[self.ids[row] for row in found] for found in rows], rows, scores.astype(np.float32))

    def duplicates(self, threshold: float = 0.98) -> Iterator[Pair]:
        """Find all pairs with a cosine similarity of at least ``threshold`` (to 1e-6), in bounded memory.

        The time is quadratic in the number of vectors.

        Raises:
            ArgumentError: the threshold is not in (-1, 1], or the metric is not cosine.

        Examples:
            >>> import deploy
            >>> vectors = [[1, 0], [0, 1], [1, 0.01]]
            >>> index = deploy.Index.build(vectors, ["a.jpg", "b.jpg", "c.jpg"], encoder="0a1b")
            >>> [(pair.first, pair.second) for pair in index.duplicates(0.98)]
            [('a.jpg', 'c.jpg')]
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
        return scale(vectors, self._card.metric, "query {}".format).astype(np.float32)

    def _check_mask(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
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
        hits = exact_search.rescore(self._vectors, queries, self._graph.candidates(queries, k), k)
        if len(hits.rows) < len(queries) * k:  # the graph does not reach enough rows; fall back to exact search
            return exact_search.find_nearest(self._vectors, queries, k, self._card.longest)
        return hits.rows.reshape(len(queries), k), hits.scores.reshape(len(queries), k)


def _card(encoder: Encoder | str, dim: int, metric: Metric, dtype: Storage) -> Card:
    identity, name = identity_of(encoder)
    return Card(identity, name, dim, metric, dtype)


def _measure(encoder: Encoder | str, parts: Iterator[Part]) -> tuple[int, Iterator[Part]]:
    """Return the dimension of the vectors, and all parts again."""
    if isinstance(encoder, Encoder):
        return encoder.info["dim"], parts
    first = next(parts, None)
    if first is None:
        raise ArgumentError("no vectors to index; give some, or the encoder itself, which knows their dimension")
    return np.shape(first[1])[-1], chain([first], parts)


def _kind(card: Card) -> str:
    return f"{card.metric} of {card.dtype} [{card.dim}]"
