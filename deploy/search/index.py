"""An index of embeddings: vectors with ids, and the id of the encoder that made them. Search is exact by default.

    index = deploy.Index.build(vectors, ids, encoder)          # in memory
    index.save("photos.index")
    index = deploy.Index.open("photos.index", encoder)         # mapped into memory; refuses another encoder
    ids, rows, scores = index.search(encoder.embed("cat.jpg").vectors, k=10)

Vectors of different encoders cannot be compared; therefore an index records its encoder. The metric is "cosine" (stored
vectors and queries are scaled to length 1) or "inner_product" (vectors are used as given).
"""

import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deploy.encoder import Encoder
from deploy.errors import ArgumentError, as_paths, require_path, require_truth
from deploy.search import changes
from deploy.search.card import Card, Metric, Storage
from deploy.search.columns import Columns, Metadata, Value
from deploy.search.duplicates import pairs_above
from deploy.search.exact import Vectors
from deploy.search.files import (
    Contents,
    Part,
    blocks,
    check_parts,
    in_memory,
    measure,
    merge_indexes,
    read_index,
    write_index,
)
from deploy.search.filters import Range, Where
from deploy.search.identity import check_same_encoder, identity_of
from deploy.search.neighbors import Matches, Pair, find_neighbors
from deploy.search.vectors import as_vectors

__all__ = ["Index", "Matches", "Pair", "Range"]

PathLike = str | os.PathLike[str]


class Index:
    """Vectors [count, dim] with ids and metadata. An open index is immutable and safe to search from many threads.

    ``add``, ``update`` and ``delete`` change an index in a directory; what has it open keeps searching the old one.

    Attributes:
        ids: the ids in order of rows; ``ids[row]`` is a string.
        encoder: the id of the encoder that made the vectors.
        dim: dimension of the vectors.

    Examples:
        >>> import deploy, numpy as np
        >>> index = deploy.Index.build(np.eye(3), ["a.jpg", "b.jpg", "c.jpg"], encoder="0a1b")
        >>> index.search([0.9, 0.4, 0.0], k=2).ids
        [['a.jpg', 'b.jpg']]
    """

    def __init__(self, contents: Contents) -> None:
        self._contents, self.ids = contents, contents.ids
        self.encoder, self.dim = contents.card.encoder, contents.card.dim

    @classmethod
    def build(
        cls,
        vectors: NDArray[Any],
        ids: Sequence[str],
        encoder: Encoder | str,
        metric: Metric = "cosine",
        dtype: Storage = "float32",
        metadata: Metadata | None = None,
    ) -> "Index":
        """Build an index in memory.

        Args:
            vectors: [n, dim], of any length.
            ids: n unique strings.
            encoder: the encoder that made the vectors, or its ``id``.
            metric: "cosine", which scales vectors and queries to length 1, or "inner_product".
            dtype: "float32", or "float16", which takes half the memory and gives cosines to about 0.001.
            metadata: column → n values, all text, numbers or bool; None for a missing one.

        Raises:
            ArgumentError: an argument has a value that is not allowed; the message names the first such row.

        Examples:
            >>> import deploy
            >>> encoder, paths = deploy.load("models/bundle"), ["cat.jpg", "dog.png"]
            >>> index = deploy.Index.build(encoder.embed(paths).vectors, paths, encoder)
            >>> len(index)
            2
        """
        vectors = as_vectors("vectors", vectors)
        card = Card(*identity_of(encoder), vectors.shape[-1] if vectors.ndim else 0, metric, dtype)
        return cls(in_memory(ids, vectors, {} if metadata is None else metadata, card))

    @classmethod
    def open(cls, directory: PathLike, encoder: Encoder | str | None = None, verify: bool = True) -> "Index":
        """Map a saved index into memory.

        Args:
            directory: made by ``save``, ``write``, ``merge`` or `simclr-deploy index`.
            encoder: the encoder of the queries, to check that it also made the index.
            verify: read every file once and compare its SHA-256; otherwise check only the shapes of the arrays.

        Raises:
            ArtifactError: the directory is missing or a file differs from its manifest.
            IndexFormatError: another release made it, or it is not an index of this format.
            IndexMismatchError: another encoder made it.

        Examples:
            >>> import deploy, numpy as np
            >>> deploy.Index.build(np.eye(2), ["a.jpg", "b.jpg"], encoder="0a1b").save("saved.index")
            >>> list(deploy.Index.open("saved.index", encoder="0a1b").ids)
            ['a.jpg', 'b.jpg']
        """
        require_path(directory=directory)
        require_truth(verify=verify)
        index = cls(read_index(Path(directory), verify))
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
            parts: ids and vectors [n, dim], such as batches of ``Encoder.embed_iter``, and metadata if there is any.
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
        require_path(directory=directory)
        require_truth(approximate=approximate, replace=replace)
        dim, given = measure(encoder, check_parts(parts))
        write_index(Path(directory), given, Card(*identity_of(encoder), dim, metric, dtype), replace, approximate)

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
            encoder: the expected encoder of all sources; by default that of the first.
            directory, approximate, replace: as in ``write``.

        Raises:
            IndexMismatchError: a source has another encoder, dimension, metric or data type.
            ArtifactError, IndexFormatError: a source cannot be read.
            ArgumentError: there are no sources, two contain the same id, or the directory exists.

        Examples:
            >>> import deploy, numpy as np
            >>> for name in ("old", "new"):
            ...     deploy.Index.build(np.eye(2), [f"{name} a.jpg", f"{name} b.jpg"], encoder="0a1b").save(name)
            >>> deploy.Index.merge(["old", "new"], "all.index")
            >>> len(deploy.Index.open("all.index"))
            4
        """
        given = as_paths(sources=sources)
        require_path(directory=directory)
        require_truth(approximate=approximate, replace=replace)
        expected = None if encoder is None else identity_of(encoder)[0]
        merge_indexes(given, Path(directory), expected, approximate, replace)

    @staticmethod
    def add(directory: PathLike, parts: Iterable[Part], encoder: Encoder | str) -> None:
        """Add vectors of new ids to a saved index. ``update`` and ``delete`` are like it.

        The index is replaced as a whole: a reader, and a machine that stops at any moment, has the old or the new one.
        Arguments are those of ``write``.

        Raises:
            ArgumentError: as in ``build``, an id is in the index already, or another process is writing the index.
            IndexMismatchError, ArtifactError, IndexFormatError: as in ``open``.

        Examples:
            >>> import deploy, numpy as np
            >>> deploy.Index.build(np.eye(2), ["a.jpg", "b.jpg"], encoder="0a1b").save("kept.index")
            >>> deploy.Index.add("kept.index", [(["c.jpg"], np.ones((1, 2)))], encoder="0a1b")
            >>> deploy.Index.delete("kept.index", ["a.jpg"])
            >>> list(deploy.Index.open("kept.index").ids)
            ['b.jpg', 'c.jpg']
        """
        require_path(directory=directory)
        changes.add(Path(directory), check_parts(parts), encoder)

    @staticmethod
    def update(directory: PathLike, parts: Iterable[Part], encoder: Encoder | str) -> None:
        """Replace vectors and metadata of ids that a saved index has; they become its last rows. Errors: as ``add``."""
        require_path(directory=directory)
        changes.update(Path(directory), check_parts(parts), encoder)

    @staticmethod
    def delete(directory: PathLike, ids: Collection[str], encoder: Encoder | str | None = None) -> None:
        """Delete ids that a saved index has; the other rows keep their order. Errors: as ``add``."""
        require_path(directory=directory)
        changes.delete(Path(directory), ids, encoder)

    def save(self, directory: PathLike, approximate: bool = False, replace: bool = False) -> None:
        """Write this index to a directory; arguments and errors are those of ``write``, an example is in ``open``."""
        require_path(directory=directory)
        require_truth(approximate=approximate, replace=replace)
        write_index(Path(directory), blocks(self._contents), self._contents.card, replace, approximate)

    def parts(self) -> Iterator[tuple[Sequence[str], Vectors, Metadata]]:
        """Yield ids, vectors and metadata of consecutive rows, as ``write`` and ``add`` take them."""
        return blocks(self._contents)

    def __len__(self) -> int:
        """Number of vectors."""
        return self._contents.card.count

    @property
    def vectors(self) -> Vectors:
        """The stored vectors, float32 or float16 [count, dim]; possibly mapped from the file, so do not modify them."""
        return self._contents.vectors

    @property
    def columns(self) -> Columns:
        """Column of metadata → its ``values``, ascending, and ``codes`` int32 [count]; -1 is a missing value."""
        return self._contents.columns

    @property
    def info(self) -> dict[str, Any]:
        """Encoder id and name, dim, metric, dtype, count, columns, and whether it has a graph."""
        card = self._contents.card
        kept = {name: getattr(card, name) for name in ("encoder", "name", "dim", "metric", "dtype", "count")}
        columns = {name: column.kind for name, column in self.columns.items()}
        return kept | {"columns": columns, "approximate": self._contents.graph is not None}

    def metadata(self, row: int) -> dict[str, Value]:
        """Return the metadata of a row, without missing values."""
        if isinstance(row, bool) or not isinstance(row, int | np.integer) or not 0 <= row < len(self):
            raise ArgumentError(f"row={row!r:.80}; give an integer from 0 to below {len(self):,}, the number of rows")
        found = {name: column.take(slice(row, row + 1))[0] for name, column in self.columns.items()}
        return {name: value for name, value in found.items() if value is not None}

    def check_encoder(self, encoder: Encoder | str) -> None:
        """Raise IndexMismatchError, which names both, unless ``encoder``, or that with this id, made the vectors."""
        check_same_encoder("the index", self.encoder, identity_of(encoder)[0])

    def search(
        self,
        queries: ArrayLike,
        k: int = 10,
        encoder: Encoder | str | None = None,
        mask: NDArray[np.bool_] | None = None,
        approximate: bool = False,
        where: Where | None = None,
    ) -> Matches:
        """Find the ``k`` nearest neighbors of each query.

        Args:
            queries: [q, dim], or [dim] for a single query.
            k: neighbors of each query; all rows if there are fewer.
            encoder: the encoder of the queries, to check that it made the index; redundant if given to ``open``.
            mask: bool [count], the rows to search; such as ``[id.startswith("2026/") for id in index.ids]``.
            approximate: take candidates from the graph: scores are exact, a neighbor may be missed.
            where: conditions on metadata: column → a value, a list of values, or a ``Range``. All have to hold.

        Returns:
            Matches with ids, rows int64 [q, k] and scores float32 [q, k].

        Raises:
            ArgumentError: an argument has a value that is not allowed, or the index has no graph or no such column.
            IndexMismatchError: the queries have another encoder or dimension.

        Examples:
            >>> import deploy, numpy as np
            >>> metadata = {"year": [2024, 2025, 2026]}
            >>> index = deploy.Index.build(np.eye(3), ["a.jpg", "b.jpg", "c.jpg"], "0a1b", metadata=metadata)
            >>> found = index.search([3.0, 4.0, 0.0], k=2)
            >>> found.ids, found.scores.round(1).tolist() == np.float32([[0.8, 0.6]]).tolist()
            ([['b.jpg', 'a.jpg']], True)
            >>> from deploy.search.filters import Range
            >>> index.search([3.0, 4.0, 1.0], k=2, where={"year": Range(least=2025)}).ids
            [['b.jpg', 'c.jpg']]
        """
        if encoder is not None:
            self.check_encoder(encoder)
        rows, scores = find_neighbors(self._contents, queries, k, mask, where, approximate)
        return Matches([self.ids.take(found) for found in rows], rows, scores.astype(np.float32))

    def duplicates(self, threshold: float = 0.98) -> Iterator[Pair]:
        """Find all pairs with a cosine similarity of at least ``threshold`` (to 1e-6), and no other.

        A bound from 64 coordinates leaves out most pairs. Memory beyond the vectors: 65 numbers for each row.

        Raises:
            ArgumentError: the threshold is not in (-1, 1], or the metric is not cosine.

        Examples:
            >>> import deploy
            >>> vectors = [[1, 0], [0, 1], [1, 0.01]]
            >>> index = deploy.Index.build(vectors, ["a.jpg", "b.jpg", "c.jpg"], encoder="0a1b")
            >>> [(pair.first, pair.second) for pair in index.duplicates(0.98)]
            [('a.jpg', 'c.jpg')]
        """
        card = self._contents.card
        if isinstance(threshold, bool) or not isinstance(threshold, int | float | np.integer | np.floating):
            raise ArgumentError(f"threshold={threshold!r:.80}; give a number above -1, up to 1")
        if card.metric != "cosine" or not -1 < threshold <= 1:
            given = f"metric={card.metric}, threshold={threshold}"
            raise ArgumentError(f"{given}; duplicates need the metric cosine and a threshold above -1, up to 1")
        found = pairs_above(self.vectors, threshold - 1e-6, card.longest)
        pairs = (pair for hits in found for pair in zip(*hits, strict=True))
        return (Pair(self.ids[first], self.ids[second], float(cosine)) for first, second, cosine in pairs)
