"""Metadata of images in a CSV file: the column ``path`` names the image, every other one becomes a column."""

import csv
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from deploy.errors import ArgumentError
from deploy.search.columns import KINDS, Value
from deploy.search.files import Part
from deploy.search.filters import TRUTH

Table = Mapping[str, Mapping[str, Value | None]]  # column → path → value

WHOLE = re.compile(r"[+-]?(0|[1-9][0-9]{0,18})")
NUMBER = re.compile(r"[+-]?((0|[1-9][0-9]*)\.[0-9]*|\.[0-9]+|(0|[1-9][0-9]{0,14})(?=$|[eE]))([eE][+-]?[0-9]+)?")
"""Texts that say no more than their number: not 007 and 2024_01, which Python reads as numbers, nor nan."""


def read_table(file: Path, known: Mapping[str, str] | None = None) -> Table:
    """Read a CSV file; an empty field is a missing value.

    Args:
        known: column → its kind in the index that there is already. Other columns are whole numbers, numbers, or true
            and false if all their values are, otherwise text; so are those with 007, nan or more than 64 bits.

    Raises:
        ArgumentError: the file is not a table in UTF-8 with a column ``path``, it names a path or a column twice, or a
            value is not of the kind of its column.
    """
    try:
        with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as opened:
            header, *rows = [row for row in csv.reader(opened, strict=True) if row] or [[]]
    except csv.Error as error:
        raise ArgumentError(f"{file}: {error}; give a CSV file") from None
    if "path" not in header or len(set(header)) < len(header):
        raise ArgumentError(f"{file}: its columns are {', '.join(header)[:200]!r}; give path and others, each once")
    wrong = next((number for number, row in enumerate(rows, start=2) if len(row) != len(header)), None)
    if wrong:
        raise ArgumentError(f"{file}: line {wrong} does not have {len(header)} fields; give one for each column")
    paths = [row[header.index("path")] for row in rows]
    if len(set(paths)) < len(paths):
        twice = Counter(paths).most_common(1)[0][0]
        raise ArgumentError(f"{file}: names {twice!r} twice; give one row for each path")
    columns = {name: [row[number] for row in rows] for number, name in enumerate(header) if name != "path"}
    kinds = {} if known is None else known
    read = {name: _read(file, name, texts, kinds.get(name)) for name, texts in columns.items()}
    return {name: dict(zip(paths, values, strict=True)) for name, values in read.items()}


def with_metadata(parts: Iterable[Part], table: Table) -> Iterator[Part]:
    """Add to each part what the table says about its ids."""
    for ids, vectors, *_ in parts:
        yield ids, vectors, {name: [values.get(one) for one in ids] for name, values in table.items()}


def _read(file: Path, name: str, texts: list[str], known: str | None) -> list[Value | None]:
    try:
        read = READERS[known or _guess([text for text in texts if text])]
        return [read(text) if text else None for text in texts]
    except (ValueError, KeyError):
        rule = f"column {name!r} holds {known} in the index; give such values, or leave them empty"
        raise ArgumentError(f"{file}: {rule}") from None


def _guess(texts: list[str]) -> str:
    """The kind of a column, by all of its values."""
    stripped = [text.strip() for text in texts]
    if all(WHOLE.fullmatch(text) and -(2**63) <= int(text) < 2**63 for text in stripped):
        return KINDS["i"]
    if all(NUMBER.fullmatch(text) and math.isfinite(float(text)) for text in stripped):
        return KINDS["f"]
    return KINDS["b"] if all(text.lower() in TRUTH for text in texts) else KINDS["U"]


def _read_whole(text: str) -> int:
    if not -(2**63) <= (value := int(text)) < 2**63:
        raise ValueError
    return value


def _read_number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value) or (WHOLE.fullmatch(text.strip()) and int(text) != value):
        raise ValueError
    return value


READERS: Mapping[str, Callable[[str], Value]] = {
    KINDS["i"]: _read_whole,
    KINDS["f"]: _read_number,
    KINDS["b"]: lambda text: TRUTH[text.lower()],
    KINDS["U"]: str,
}
