"""Add vectors to an index in a directory, replace some, and delete some.

The directory is replaced as a whole: a reader, and a machine that stops at any moment, has the old index or the new
one. The unchanged rows are copied; the graph, which takes the time, is only extended.
"""

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import numpy as np

from deploy.encoder import Encoder
from deploy.errors import ArgumentError
from deploy.plural import listed
from deploy.search.files import Contents, Part, change_index, read_index, writing
from deploy.search.identity import check_same_encoder, identity_of

SHOWN = 3


def add(directory: Path, parts: Iterable[Part], encoder: Encoder | str) -> None:
    """Add the vectors of new ids after those of the index."""
    with writing(directory):
        old = _open(directory, encoder)
        there = set(old.ids)
        change_index(directory, old, np.arange(old.card.count), _only_new(parts, there))


def update(directory: Path, parts: Iterable[Part], encoder: Encoder | str) -> None:
    """Replace the vectors and the metadata of ids of the index; they are its last rows then."""
    with writing(directory):
        old = _open(directory, encoder)
        given = list(parts)  # what they replace has to be known before the other rows are copied
        change_index(directory, old, _without(old, [name for part in given for name in part[0]]), given)


def delete(directory: Path, ids: Collection[str], encoder: Encoder | str | None) -> None:
    """Delete the rows of ids of the index; the others keep their order."""
    if isinstance(ids, str | bytes) or not isinstance(ids, Iterable):
        raise ArgumentError(f"ids={ids!r:.80}; give a list of ids")
    names = list(ids)
    with writing(directory):
        old = _open(directory, encoder)
        change_index(directory, old, _without(old, names), ())


def _open(directory: Path, encoder: Encoder | str | None) -> Contents:
    old = read_index(directory)
    if encoder is not None:
        check_same_encoder(f"{directory}", old.card.encoder, identity_of(encoder)[0])
    return old


def _without(old: Contents, ids: Collection[str]) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    """Return the rows of all other ids."""
    wrong = next((name for name in ids if not isinstance(name, str)), None)
    if wrong is not None:
        raise ArgumentError(f"id {wrong!r:.80} is of type {type(wrong).__name__}; give strings")
    gone = set(ids)
    kept = [row for row, name in enumerate(old.ids) if name not in gone]
    if len(gone) + len(kept) > old.card.count:
        there = set(old.ids)
        missing = [repr(name) for name in ids if name not in there]
        raise ArgumentError(f"not in the index: {listed(missing, SHOWN)}; give ids that it has, or add them")
    return np.array(kept, np.int64)


def _only_new(parts: Iterable[Part], there: set[str]) -> Iterator[Part]:
    for part in parts:
        known = [name for name in part[0] if name in there]
        if known:
            raise ArgumentError(f"id {known[0]!r} is in the index already; update it instead of adding it")
        yield part
