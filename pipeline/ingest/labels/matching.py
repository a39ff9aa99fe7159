"""Which file of a source each row of a table names.

A path is relative to the folder of the table. The ways in which programs spell the same path are understood where they
mean one file: an address of the source, backslashes, other capitals. In a folder of the source, a table may also give
paths relative to the source, for files of that folder, or if each of its rows is such a path: a row whose file is gone
does not name another one that has its name elsewhere.
"""

import posixpath
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from pipeline.errors import IngestError
from pipeline.ingest.labels.labels_csv import Row
from pipeline.ingest.labels.names import fold

ADDRESS = re.compile(r"\s*(?!file:)[a-z][a-z0-9+.-]+://", re.IGNORECASE)


class Matched(NamedTuple):
    """The row of each file that is named, and a sentence about the rows that name none, if there are any."""

    rows: dict[str, Row]
    lost: str


def match_rows(where: str, rows: Sequence[Row], table: str, base: str, files: Collection[str]) -> Matched:
    """Which of the ``files`` of a source each row names.

    Args:
        where: the table, for messages.
        rows: what ``read_rows`` returned.
        table: path of the table, relative to the source.
        base: address of the source.
        files: their paths, relative to the source.

    Raises:
        IngestError: two rows name one file, or none names any.
    """
    matched, lost = find_rows(where, rows, table, base, files)
    if lost and not matched and files:
        raise IngestError(
            f"{where}: none of its paths ({len(rows):,}) is a file of this source, such as {lost[0].path!r}"
            f"{_hint(lost[0].path, files)}; paths are relative to the folder of labels.csv"
        )
    return Matched(matched, _describe(where, lost, len(rows), files) if lost and files else "")


def find_rows(
    where: str, rows: Sequence[Row], table: str, base: str, files: Collection[str]
) -> tuple[dict[str, Row], list[Row]]:
    """The row of each of the ``files`` that is named, and the rows that name none of them; arguments and errors as in
    ``match_rows``, which accepts no table of which all rows do."""
    found = _find_all([row.path for row in rows], posixpath.dirname(table), base, files)
    matched: dict[str, Row] = {}
    lost = []
    for row, path in zip(rows, found, strict=True):
        if path is None:
            lost.append(row)
        elif path in matched:
            raise IngestError(f"{where}: line {row.line} names {row.path!r} again; give each file one row")
        else:
            matched[path] = row
    return matched, lost


def _find_all(paths: Sequence[str], folder: str, base: str, files: Collection[str]) -> list[str | None]:
    """The file that each path names; None if none."""
    found = [next((one for one in _near(path, folder, base) if one in files), None) for path in paths]
    if None not in found:
        return found
    names = _names(base, files)
    beyond = [next((one for one in _beyond(path, names) if one in files), None) for path in paths]
    within = f"{folder}/" if folder else ""
    found = _fill(found, (one if one and one.startswith(within) else None for one in beyond))
    if None in found:
        spelled = _by_spelling(files)
        found = _fill(found, (spelled.get(_spell(posixpath.join(folder, path))) for path in paths))
    return list(beyond) if None not in beyond and not any(found) else found


def _fill(found: Sequence[str | None], others: Iterable[str | None]) -> list[str | None]:
    return [one or other for one, other in zip(found, others, strict=True)]


def _near(path: str, folder: str, base: str) -> Iterator[str]:
    """How a path may be meant in the folder of its table, or with the address of the source before it.

    A path may be a URL of the scheme ``file`` (RFC 8089), as annotation tools write them.
    """
    given, plain, root = path.strip(), _plain(path), _root(base)
    yield posixpath.join(folder, path)
    if given.startswith(f"{base.rstrip('/')}/"):
        yield given.removeprefix(f"{base.rstrip('/')}/")
    yield posixpath.normpath(posixpath.join(folder, plain))
    if plain.startswith(f"{root}/"):
        yield plain.removeprefix(f"{root}/")


def _names(base: str, files: Iterable[str]) -> tuple[str, ...]:
    """What paths relative to the folder that the source is in begin with, unless a folder in it has the same name."""
    name = f"{posixpath.basename(_root(base))}/"
    return () if any(file.startswith(name) for file in files) else (name,)


def _beyond(path: str, names: Sequence[str]) -> Iterator[str]:
    """How a path may be meant in the source, or in the folder that the source is in."""
    plain = _plain(path)
    yield plain
    yield from (plain.removeprefix(name) for name in names if plain.startswith(name))


def _plain(path: str) -> str:
    given = path.strip()
    local = unquote(urlsplit(given).path) if given.casefold().startswith("file:") else given
    return posixpath.normpath(local.replace("\\", "/"))


def _root(base: str) -> str:
    return base.removeprefix("file://").rstrip("/")


def _spell(path: str) -> str:
    return fold(posixpath.normpath(path.replace("\\", "/")))


def _by_spelling(files: Iterable[str]) -> dict[str, str]:
    """The files by their path without capitals and Unicode forms, where that is one file."""
    found = defaultdict[str, list[str]](list)
    for path in files:
        found[_spell(path)].append(path)
    return {spelling: paths[0] for spelling, paths in found.items() if len(paths) == 1}


def _describe(where: str, lost: Sequence[Row], total: int, files: Iterable[str]) -> str:
    path = lost[0].path
    return f"{where}: {len(lost):,} of {total:,} rows name no file, such as {path!r}{_hint(path, files)}"


def _hint(path: str, files: Iterable[str]) -> str:
    """Which of the files a path that names none may mean, by its last part."""
    stem = PurePosixPath(path.replace("\\", "/")).stem
    if like := next((one for one in sorted(files) if PurePosixPath(one).stem == stem), None):
        if like == _plain(path):
            return "; that is a file of another folder, and paths are relative to the folder of the table"
        return f"; is {like!r} meant?"
    return "; nothing is downloaded: put the files into this folder and give their paths" if ADDRESS.match(path) else ""
