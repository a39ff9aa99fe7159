"""``labels.csv``: which file has which label or group and, if wanted, which split, as spreadsheets write it.

    path,label,split,group
    cats/1.png,cat,train,animal 7

Where images have several labels, the column is ``labels``, and its cells are ``cat|dog``, ``cat``, ``-`` for none of
the classes, or blank where nothing is known (``simclr_core.data.label_sets``).

A group is a thing of which there are several images, such as a patient, a part or a video. A table has a column of
labels or of groups, or both; what it has no column for, it does not say. The order and the capitals of the columns do
not matter, nor do other columns, unless one seems to say what is held out (``columns``); commas, semicolons or tabs
separate them. The text is UTF-8, or UTF-16 with a byte order mark. A letter that cannot be read is an error: with it
replaced, two labels could become one. Which file a row names, ``matching`` finds out.
"""

import codecs
import csv
import io
import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from deploy.failure import printable
from pipeline.errors import IngestError
from pipeline.ingest.labels.columns import names_files, says_what_is_held_out
from pipeline.ingest.labels.names import clean
from simclr_core.data import label_sets

SHOWN = 80  # letters of a first line, or of a cell
SHOWN_CELLS = 4
SPLITS = ("train", "test")
OTHER_SEPARATORS = (";", ",")  # that programs write between the labels of a cell
DELIMITERS = (",", ";", "\t")
SEPARATOR = re.compile(r"\A\s*sep=.\r?\n")  # a first line for spreadsheets


class Row(NamedTuple):
    """What one line says; ``label`` and ``group`` None: the file has none; ``split`` None: the table does not say.
    ``label`` may be that of a set; ``labels`` is whether the table has a column of labels."""

    line: int
    path: str
    label: str | None
    split: str | None
    group: str | None = None
    labels: bool = True


def columns_of(data: bytes) -> list[str]:
    """The names in the first line of a table, as ``read_rows`` compares them."""
    text = data.decode("utf-16" if _is_utf16(data) else "utf-8-sig", errors="replace")
    return header(SEPARATOR.sub("\n", text))[1]


def read_rows(where: str, data: bytes) -> list[Row]:
    """The lines of a table.

    Raises:
        IngestError: it is not text, lacks the columns, or a line has an unknown split or no label cell.
    """
    text = SEPARATOR.sub("\n", decode(where, data))  # the lines keep their numbers
    delimiter, columns = header(text)
    if not names_files(columns):
        found = f"has the columns {printable(','.join(columns), SHOWN)}" if columns else "has no first line"
        raise IngestError(
            f"{where}: {found}; give it a first line path,label and optionally split and group, or path,group, "
            "or path,labels where an image may have several, separated by commas, semicolons or tabs, and save it as "
            "CSV UTF-8"
        )
    twice = [column for column in ("path", "label", "labels", "split", "group") if columns.count(column) > 1]
    if twice:
        raise IngestError(f"{where}: has two columns named {twice[0]!r}; remove or rename one of them")
    if {"label", "labels"} <= set(columns):
        raise IngestError(
            f"{where}: has a column label and a column labels; keep label if each image has one class, or labels if an "
            "image may have several, separated by |"
        )
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    try:
        next(cells for cells in lines if cells)
        cells = [(lines.line_num, cells) for cells in lines if any(cells)]
    except csv.Error as error:
        raise IngestError(f"{where}: line {lines.line_num} is not CSV ({error}); correct it") from None
    if "split" not in columns:
        _refuse_other_splits(where, columns, [found for _, found in cells])
    rows = [_row(where, line, columns, found) for line, found in cells]
    if "labels" in columns:
        _refuse_other_separators(where, rows)
    *counts, last = [len(found) for _, found in cells] or [0]
    if not text.endswith(("\n", "\r")) and counts and (last < min(counts) or _is_cut_off(rows)):
        raise IngestError(
            f"{where}: line {rows[-1].line} ends without a line break, and in the middle of a word or row, it seems; "
            "copy the whole table again, or end this line with a line break if it is right"
        )
    return rows


def _refuse_other_splits(where: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Raise IngestError where another column than split seems to say what is held out: it would be trained on."""
    for number, column in enumerate(columns):
        cells = [row[number] if number < len(row) else "" for row in rows]
        if says_what_is_held_out(column, cells):
            shown = ", ".join(repr(printable(cell, SHOWN)) for cell in [*dict.fromkeys(cells)][:SHOWN_CELLS])
            raise IngestError(
                f"{where}: its column {column!r} says what is held out, it seems, with {shown} in it, and only one "
                "named split is read; name it split, with train, test or nothing in each cell, or remove it"
            )


def _refuse_other_separators(where: str, rows: Sequence[Row]) -> None:
    """Raise IngestError where no cell has several labels, and one could have, were they separated otherwise."""
    if any(label_sets.is_set(row.label) for row in rows):
        return
    for row in rows:
        if row.label and any(separator in row.label for separator in OTHER_SEPARATORS):
            written = label_sets.BETWEEN.join(part.strip() for part in re.split("[,;]", row.label))
            raise IngestError(
                f"{where}: line {row.line} has the labels {row.label!r}, and labels are separated by | ; write "
                f"{written!r}, or name the column label if that is one class"
            )


def _is_cut_off(rows: Sequence[Row]) -> bool:
    """Whether a label or the group of the last row is in no other, and the beginning of one."""
    *before, end = rows
    labels = label_sets.members_of(row.label for row in before)
    groups = {row.group for row in before if row.group}
    pairs = [(last, labels) for last in label_sets.members(end.label or "")] + [(end.group, groups)]
    return any(
        last is not None and last not in others and any(other.startswith(last) for other in others)
        for last, others in pairs
    )


def _row(table: str, line: int, columns: Sequence[str], found: Sequence[str]) -> Row:
    where, cells = f"{table}: line {line}", dict(zip(columns, found, strict=False))
    if any(found[len(columns) :]):
        raise IngestError(
            f"{where} has {len(found)} cells, the first line names {len(columns)} columns; put what has a comma or "
            "semicolon in it between double quotes"
        )
    for name in ("path", "label", "labels", "group"):
        if name in columns and name not in cells:
            named = "group" if name == "group" else "label"
            raise IngestError(f"{where} ends before the {named}; leave the cell empty for an image without a {named}")
    label, group = (_name(where, name, cells.get(name, "")) for name in ("label", "group"))
    if "labels" in columns:
        label = _set(where, cells["labels"])
    split = cells.get("split", "").strip()
    if split and split.casefold() not in SPLITS:
        raise IngestError(
            f"{where} has split {split!r}; allowed: {', '.join(SPLITS)}, or nothing; a validation set is 'test' here"
        )
    return Row(line, cells["path"], label, split.casefold() or None, group, bool({"label", "labels"} & set(columns)))


def _set(where: str, cell: str) -> str | None:
    """The set of labels that a cell names; None where nothing is said."""
    if clean(cell) is None:
        return None
    names = [name for part in cell.split(label_sets.BETWEEN) if (name := _name(where, "label", part))]
    if names == [label_sets.NOTHING]:
        return label_sets.NONE_OF_THEM
    if not names or label_sets.NOTHING in names:
        raise IngestError(
            f"{where} has the labels {cell.strip()!r}; give names separated by | , a single - for an image of none of "
            "the classes, or leave the cell empty where the labels are not known"
        )
    return label_sets.join(names)


def _name(where: str, column: str, cell: str) -> str | None:
    """The label or group that a cell names."""
    name = clean(cell)
    if name and any(unicodedata.category(letter) in ("Cc", "Zl", "Zp") for letter in name):
        raise IngestError(
            f"{where} has {column} {name!r}, with a line break or control character in it; is a double quote missing?"
        )
    if name and "\ufffd" in name:
        raise IngestError(
            f"{where} has {column} {name!r}, in which a letter was lost when it was saved; write it again"
        )
    return name


def _is_utf16(data: bytes) -> bool:
    return data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))


def decode(where: str, data: bytes) -> str:
    """The text of a table.

    Raises:
        IngestError: it is neither UTF-8 nor UTF-16.
    """
    try:
        return data.decode("utf-16" if _is_utf16(data) else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise IngestError(
            f"{where}: line {line} is not UTF-8 (byte {data[error.start]:#04x}); save the table as "
            "CSV UTF-8, so that no letter of a label is lost"
        ) from None


def header(text: str) -> tuple[str, list[str]]:
    """The delimiter, and the names of the columns in lower case."""
    first = text.lstrip("\r\n").splitlines()[:1]
    for delimiter in DELIMITERS:
        columns = [cell.strip().casefold() for cell in next(csv.reader(first, delimiter=delimiter), [])]
        if names_files(columns):
            return delimiter, columns
    return ",", [cell.strip() for cell in next(csv.reader(first), [])]
