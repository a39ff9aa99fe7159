"""Change rows of a table of labels that a person keeps: every other line stays as it is, byte for byte.

What is changed is known by the path that ingest reads of each row (``pipeline.ingest.labels``), and the result is read
as ingest reads it before it is written. Columns that a row needs and the table lacks are added at the end of the first
line; the other rows may be shorter than that.
"""

import codecs
import csv
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from deploy.artifact import write_atomically
from deploy.lock import in_turn
from pipeline.errors import IngestError
from pipeline.ingest.labels.columns import RECORDED
from pipeline.ingest.labels.labels_csv import SEPARATOR, decode, header, read_rows
from pipeline.ingest.labels.matching import find_rows

Cells = Mapping[str, str]
"""Column → what is in it."""

NAME = "labels.csv"
NEW = ("path", "label", "split", *RECORDED)  # the columns of a new table
ATTEMPTS = 5  # to write a table that another program changes without a lock, such as an editor


class Edited(NamedTuple):
    """The new table, and the cells that the row of each path had before and has now; None for no row."""

    data: bytes
    before: dict[str, Cells | None]
    after: dict[str, Cells | None]


def change_file(path: Path, change: Callable[[bytes | None], bytes]) -> None:
    """Replace a file by what ``change`` makes of its content, None for a file that does not exist yet.

    Processes that use this function on files of one folder wait for each other. What another program has written
    meanwhile is not lost: ``change`` is asked again.

    Raises:
        IngestError: that happened each time.
    """
    with in_turn(path.parent):
        for _ in range(ATTEMPTS):
            before = _read(path)
            after = change(before)
            if _read(path) == before:
                write_atomically(path, after)
                return
    raise IngestError(f"{path}: another program keeps changing it; close that, and decide again")


def edit(
    where: str,
    data: bytes | None,
    rows: Mapping[str, Cells | None],
    base: str,
    expected: Mapping[str, Cells | None] | None = None,
) -> Edited:
    """Set cells of the rows of some files, or remove rows.

    Args:
        where: the table, for messages.
        data: its bytes; None if there is no table yet.
        rows: path → cells to set, the others of a row stay; None removes the row. A path without a row gets one.
        base: address of the source.
        expected: what the row of each path has to be for this to be done; by default anything.

    Raises:
        IngestError: the table cannot be read, or a row is not as expected.
    """
    table = _Table(where, data or (",".join(NEW) + "\n").encode())
    lines = table.find([*rows], base)
    before = {path: table.cells(lines.get(path)) for path in rows}
    for path in rows if expected is not None else ():
        if before[path] != (expected or {})[path]:
            raise IngestError(f"{where}: the row of {path!r} was changed since; correct it there")
    for path, cells in rows.items():
        table.set(path, lines.get(path), cells)
    written = _Table(where, table.written())
    lines = written.find([*rows], base)
    return Edited(table.written(), before, {path: written.cells(lines.get(path)) for path in rows})


class _Table:
    """A table as its lines, of which some are to be replaced."""

    def __init__(self, where: str, data: bytes) -> None:
        self._where, self._data = where, data
        self._rows = read_rows(where, data)
        text = decode(where, data)
        self._delimiter, columns = header(SEPARATOR.sub("\n", text))
        self._columns, self._given = [*columns], len(columns)
        self._newline = "\r\n" if "\r\n" in text else "\n"
        # The text of each record by its last line, and its cells; a record in quotes may have several lines.
        self._texts: dict[int, str] = {}
        self._cells: dict[int, list[str]] = {}
        lines = io.StringIO(text, newline="").readlines()
        plain = io.StringIO(SEPARATOR.sub("\n", text), newline="")
        reader, start = csv.reader(plain, delimiter=self._delimiter, skipinitialspace=True), 0
        for cells in reader:
            end = reader.line_num
            self._texts[end], self._cells[end], start = "".join(lines[start:end]), cells, end
        self._head = next(end for end, cells in self._cells.items() if cells)
        self._added: list[dict[str, str]] = []

    def find(self, paths: list[str], base: str) -> dict[str, int]:
        """The last line of the record of each path that has one."""
        return {path: row.line for path, row in find_rows(self._where, self._rows, NAME, base, paths)[0].items()}

    def cells(self, end: int | None) -> Cells | None:
        if end is None:
            return None
        cells = self._cells[end]
        return {name: cells[n] if n < len(cells) else "" for n, name in enumerate(self._columns[: self._given])}

    def set(self, path: str, end: int | None, cells: Cells | None) -> None:
        if cells is None:
            if end is not None:
                self._texts[end] = ""
            return
        if "labels" in self._columns and "label" in cells:
            cells = {("labels" if name == "label" else name): cell for name, cell in cells.items()}
        # Without a column split, ingest takes one with words such as "test" in it for that.
        self._columns += [name for name in dict.fromkeys(["split", *cells]) if name not in self._columns]
        row = {
            "path": path,
            **(self.cells(end) or {}),
            **{name: cell for name, cell in cells.items() if name != "path"},
        }
        if end is None:
            self._added.append(row)
        else:
            self._texts[end] = self._line(row)

    def written(self) -> bytes:
        """The bytes, in the encoding that they had."""
        texts = dict(self._texts)
        if self._columns[self._given :]:
            head = texts[self._head].rstrip("\r\n")
            texts[self._head] = self._delimiter.join([head, *self._columns[self._given :]]) + self._newline
        last = max((end for end, text in texts.items() if text), default=self._head)
        if not texts[last].endswith(("\n", "\r")):
            texts[last] += self._newline
        text = "".join([*texts.values(), *map(self._line, self._added)])
        if self._data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return text.encode("utf-16")
        return (codecs.BOM_UTF8 if self._data.startswith(codecs.BOM_UTF8) else b"") + text.encode()

    def _line(self, row: Mapping[str, str]) -> str:
        content = io.StringIO()
        writer = csv.writer(content, delimiter=self._delimiter, lineterminator=self._newline)
        writer.writerow([row.get(name, "") for name in self._columns])
        return content.getvalue()


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
