"""Metadata of the rows of an index: columns of text, whole numbers, numbers, or true and false; a value may be missing.

A column is two arrays: its distinct values in ascending order, and for each row the position of its value, -1 if it has
none. A condition on values is therefore a range of positions.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deploy.errors import ArgumentError
from deploy.search.arrays import is_text, map_array, write_array

Value = str | int | float | bool
Metadata = Mapping[str, Sequence[Value | None]]

MAX_TEXT = 1000  # characters; every value of a column takes as much memory as its longest
KINDS = {"U": "text", "i": "whole numbers", "f": "numbers", "b": "true and false"}


class Column(NamedTuple):
    """``values`` [distinct], ascending, and ``codes`` int32 [rows], positions in ``values`` or -1."""

    values: NDArray[Any]
    codes: NDArray[np.int32]

    @property
    def kind(self) -> str:
        return KINDS[self.values.dtype.kind]

    def take(self, rows: "NDArray[np.int64] | slice") -> list[Value | None]:
        values: list[Value | None] = [*self.values.tolist(), None]  # the position -1 is the last
        return [values[code] for code in self.codes[rows]]


Columns = Mapping[str, Column]


def check_metadata(metadata: object, rows: int) -> dict[str, list[Value | None]]:
    """Return plain values of the columns of ``rows`` rows.

    Raises:
        ArgumentError: a column has another number of values, or a value that a column cannot hold.
    """
    if not isinstance(metadata, Mapping):
        raise ArgumentError(f"metadata is of type {type(metadata).__name__}; give a dictionary of column and values")
    checked: dict[str, list[Value | None]] = {}
    for name, values in metadata.items():
        if not isinstance(name, str) or not 0 < len(name) <= MAX_TEXT or "\0" in name or not is_text(name):
            raise ArgumentError(f"column {name!r:.80}; give a name of 1 to {MAX_TEXT:,} characters")
        if isinstance(values, str | Mapping) or not hasattr(values, "__len__") or len(values) != rows:
            raise ArgumentError(f"column {name!r}: give a list with one value for each of the {rows} rows")
        checked[name] = [None if value is None else check_value(name, value) for value in values]
    return checked


def check_value(name: str, value: object) -> Value:
    """Return a value as Python's own type; refuse what a column cannot hold."""
    if isinstance(value, np.generic) and value.dtype.kind not in "mM":  # a time would become its nanoseconds
        value = value.item()
    if isinstance(value, str) and len(value) <= MAX_TEXT and "\0" not in value:
        return value
    if isinstance(value, bool) or (isinstance(value, int) and -(2**63) <= value < 2**63):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    allowed = f"text of at most {MAX_TEXT:,} characters, a number of at most 64 bits, true or false, or None"
    raise ArgumentError(f"column {name!r}: {value!r:.80} is not allowed; give {allowed}")


def make_columns(values: Mapping[str, Sequence[Value | None]]) -> dict[str, Column]:
    """Make columns of plain values.

    Raises:
        ArgumentError: a column mixes text, numbers, and true and false.
    """
    return {name: _column(name, rows) for name, rows in values.items()}


def _column(name: str, rows: Sequence[Value | None]) -> Column:
    known = [value for value in rows if value is not None]
    kinds: dict[str, Value] = {_kind(value): value for value in known}
    if len(kinds) > 1:
        given = " and ".join(f"{value!r:.40}" for value in list(kinds.values())[:2])
        raise ArgumentError(f"column {name!r}: holds {given}; give values of one kind, or None")
    if any(isinstance(value, float) for value in known):
        long = next((value for value in known if float(value) != value), None)
        if long is not None:
            rule = "give whole numbers alone, or all values as text"
            raise ArgumentError(f"column {name!r}: {long} next to numbers with decimals would lose digits; {rule}")
        known = [float(value) for value in known]
    array = np.array(known) if known else np.empty(0, "<U1")
    values, positions = np.unique(array, return_inverse=True)
    codes = np.full(len(rows), -1, np.int32)
    codes[[value is not None for value in rows]] = positions
    return Column(values, codes)


def _kind(value: Value) -> str:
    return "text" if isinstance(value, str) else "truth" if isinstance(value, bool) else "number"


def write_columns(directory: Path, columns: Columns) -> tuple[tuple[str, str, int], ...]:
    """Write the files of the columns; return what the card says about them."""
    described = []
    for number, (name, column) in enumerate(columns.items()):
        for path, array in zip(_paths(directory, number), column, strict=True):
            with write_array(path, array.dtype) as append:
                append(array)
        described.append((name, column.values.dtype.newbyteorder("<").str, len(column.values)))
    return tuple(described)


def map_columns(directory: Path, described: Iterable[tuple[str, str, int]], count: int) -> dict[str, Column]:
    """Map the columns of ``count`` rows.

    Raises:
        ArgumentError: the files do not match the card or each other.
    """
    columns = {}
    for number, (name, dtype, distinct) in enumerate(described):
        values, codes = _paths(directory, number)
        column = Column(map_array(values, dtype, (distinct,)), map_array(codes, "int32", (count,)))
        if dtype == "<f8" and not np.isfinite(column.values).all():
            raise ArgumentError(f"{values.name} has values that are not finite")
        if dtype.startswith("<U") and (column.values.view(np.uint32) > 0x10FFFF).any():
            raise ArgumentError(f"{values.name} has characters that do not exist")
        if (column.values[1:] <= column.values[:-1]).any():
            raise ArgumentError(f"the values in {values.name} do not ascend")
        if count and not -1 <= column.codes.min() <= column.codes.max() < distinct:
            raise ArgumentError(f"{codes.name} has positions outside of {values.name}")
        columns[name] = column
    return columns


def _paths(directory: Path, number: int) -> tuple[Path, Path]:
    return directory / f"column_{number}_values.npy", directory / f"column_{number}_codes.npy"
