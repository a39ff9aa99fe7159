"""Vectors as an index stores them: checked, and of length 1 if the metric is cosine."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.errors import ArgumentError, ZeroVectorError
from deploy.search.arrays import is_text
from deploy.search.card import LONGEST, Card, Metric
from deploy.search.exact import Vectors

UNIT = (1e-6, 1e-3)  # the length of a vector scaled to 1 differs from 1 by less than this: as float32, as float16
MOST_LOST = 2.0**-10
"""Share of a vector's length that rounding may take: twice what it takes of numbers that float16 holds normally."""


def prepare(ids: Sequence[str], vectors: NDArray[Any], card: Card, seen: set[str]) -> tuple[Vectors, float]:
    """Check ids and vectors; return the vectors as they are stored, and the largest length among them.

    The stored vectors have length 1 if the metric is cosine. The ids are added to ``seen``.

    Raises:
        ArgumentError: ids are not a sequence, ids and vectors differ in number, an id is already in ``seen``, or a
            vector has an unusable length: NaN, infinite, too large or too small for the type of the index, or zero with
            the metric cosine.
    """
    check_sequence("ids", ids)
    if vectors.ndim != 2 or vectors.shape[1] != card.dim or len(ids) != len(vectors):
        given = f"{len(ids)} ids and vectors {list(vectors.shape)}"
        raise ArgumentError(f"given {given}; give one id for each row of vectors [n, {card.dim}]")
    for row, name in enumerate(ids):
        if not isinstance(name, str) or "\0" in name or not is_text(name):
            raise ArgumentError(f"id {name!r} of row {row}: not valid; give strings of Unicode without null characters")
        if name in seen:
            raise ArgumentError(f"id {name!r} is given twice; give each vector a unique id")
        seen.add(name)
    with np.errstate(over="ignore"):  # an overflow is found below
        scaled = scale(vectors, card.metric, lambda row: f"id {ids[row]!r}")
        stored: Vectors = scaled.astype(card.dtype)
    lengths = np.linalg.norm(stored.astype(np.float64), axis=1)
    if not np.isfinite(lengths).all():
        raise ArgumentError(f"id {ids[int(lengths.argmax())]!r}: its vector is too large for float16; store float32")
    lost = np.linalg.norm(scaled - stored, axis=1) > MOST_LOST * np.linalg.norm(scaled, axis=1)
    if lost.any():
        what = f"id {ids[int(lost.argmax())]!r}: its vector is too small for {card.dtype}"
        raise ArgumentError(f"{what}; " + "store float32, or " * (card.dtype == "float16") + "scale all vectors up")
    return stored, float(lengths.max(initial=0.0))


def as_vectors(name: str, given: object) -> NDArray[Any]:
    """Return real numbers as an array; raise ArgumentError for what would have to be guessed or cut."""
    vectors = as_array(name, given)
    if vectors.dtype.kind not in "fiu":
        raise ArgumentError(f"{name} are {vectors.dtype} {list(vectors.shape)}; give rows of real numbers")
    return vectors


def as_array(name: str, given: object) -> NDArray[Any]:
    """Return an array; raise ArgumentError for rows of different lengths."""
    try:
        return np.asarray(given)
    except ValueError:
        raise ArgumentError(f"{name} are not an array; give rows of numbers, all of the same length") from None


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
    lengths = np.sqrt(np.square(rows).sum(axis=1, keepdims=True))
    usable = lengths <= LONGEST  # not of NaN
    if not usable.all():
        raise ArgumentError(
            f"{name(int(usable.argmin()))}: the vector has NaN or values that are too large; leave it out"
        )
    if metric == "inner_product":
        return rows
    if not lengths.all():
        raise ZeroVectorError(f"{name(int(lengths.argmin()))}: the vector is zero and has no direction; leave it out")
    lengths[np.abs(lengths - 1) < UNIT[vectors.dtype == np.float16]] = 1.0
    rows /= lengths
    return rows
