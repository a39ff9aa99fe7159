"""What a listing found, in ``.simclr/listings.sqlite``: a row for each folder, with its times, and one for each file
that no ingest has seen.

Nothing depends on the file. Without it everything is listed once more.
"""

import json
import posixpath
import sqlite3
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from deploy.folders.files import is_labels
from pipeline.ingest.files.listing import File
from pipeline.ingest.stamps import STAMPS

LISTINGS = "listings.sqlite"  # in the workspace's scratch folder
FORMAT = 2
WAIT_SECONDS = 5.0  # for another process that is listing
KEPT_SECONDS = 30 * 24 * 3600.0  # what is known of a source that is listed no more
SCHEMA = (
    "CREATE TABLE source (base TEXT PRIMARY KEY, terms TEXT NOT NULL, at REAL NOT NULL, took REAL NOT NULL)",
    """CREATE TABLE folder (
        base TEXT NOT NULL, folder TEXT NOT NULL, stamp TEXT NOT NULL, files INTEGER NOT NULL, sample TEXT NOT NULL,
        PRIMARY KEY (base, folder)
    ) WITHOUT ROWID""",
    """CREATE TABLE passed (
        base TEXT NOT NULL, folder TEXT NOT NULL, path TEXT NOT NULL, reason TEXT NOT NULL,
        PRIMARY KEY (base, folder, path)
    ) WITHOUT ROWID""",
    "CREATE TABLE state (terms TEXT NOT NULL, labels TEXT NOT NULL)",
    """CREATE TABLE waiting (
        base TEXT NOT NULL, folder TEXT NOT NULL, path TEXT NOT NULL, stamp TEXT NOT NULL, changed REAL,
        settled INTEGER NOT NULL, PRIMARY KEY (base, folder, path)
    ) WITHOUT ROWID""",
    """CREATE TABLE labels (
        base TEXT NOT NULL, folder TEXT NOT NULL, path TEXT NOT NULL, stamp TEXT NOT NULL,
        PRIMARY KEY (base, folder, path)
    ) WITHOUT ROWID""",
    f"PRAGMA user_version = {FORMAT}",
)


class Terms(NamedTuple):
    """What a listing depends on but for the files. ``raw`` is the data version of the batches that the stamps were
    taken with; None: those are not the batches that are there, so nothing is known."""

    include: Sequence[str]
    exclude: Sequence[str]
    settle_seconds: float
    raw: str | None

    def text(self, scratch: Path) -> str:
        """With what the stamps are now: an ingest changes them."""
        return json.dumps([*self, signature(scratch / STAMPS)])


class Waiting(NamedTuple):
    """What a source holds that no ingest has seen: path → file; ``unsettled`` are still being written, or, without a
    time, wait for a table that is. ``settled`` counts all others, known ones too, and ``images`` all but the tables."""

    base: str
    settled: int
    images: int
    new: dict[str, File]
    unsettled: dict[str, File]


class Details(NamedTuple):
    """What a source holds besides: folder → number of files directly in it and the path of one, path → why a file is
    passed over. ``tables`` counts those of labels."""

    folders: dict[str, tuple[int, str]]
    passed_over: dict[str, str]
    tables: int


@contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    """The store, of this format, for one writer; without an error all is written, with one nothing."""
    with closing(sqlite3.connect(path, timeout=WAIT_SECONDS, isolation_level=None)) as database:
        database.execute("BEGIN IMMEDIATE")
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version != FORMAT:
            for (table,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
                database.execute(f"DROP TABLE {table}")
            for statement in SCHEMA:
                database.execute(statement)
        yield database
        database.execute("COMMIT")


def connect_ingested(path: Path) -> sqlite3.Connection:
    """What ingests have seen, to read; empty where there was none."""
    exists = path.exists()
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro" if exists else ":memory:", WAIT_SECONDS, uri=exists)


def signature(path: Path) -> list[int]:
    """What changes with the file; empty if the file does not exist."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return []
    return [status.st_ino, status.st_size, status.st_mtime_ns]


def collect(database: sqlite3.Connection, base: str) -> Waiting:
    """Of a source that is listed."""
    (files,) = database.execute("SELECT total(files) FROM folder WHERE base = ?", (base,)).fetchone()
    rows = database.execute("SELECT path, stamp, changed, settled FROM waiting WHERE base = ?", (base,))
    found: tuple[dict[str, File], dict[str, File]] = ({}, {})
    for path, stamp, changed, settled in rows:
        found[settled][path] = File(path, stamp, changed)
    unsettled, new = found
    (tables,) = database.execute("SELECT count(*) FROM labels WHERE base = ?", (base,)).fetchone()
    images = int(files) - tables + sum(not is_labels(path) for path in unsettled)
    return Waiting(base, int(files), images, new, unsettled)


def read_details(scratch: Path, base: str) -> Details:
    """Of a source that ``relist`` has listed."""
    with closing(sqlite3.connect(scratch / LISTINGS, timeout=WAIT_SECONDS)) as database:
        folders = database.execute("SELECT folder, files, sample FROM folder WHERE base = ? AND files > 0", (base,))
        passed = database.execute("SELECT path, reason FROM passed WHERE base = ? ORDER BY path", (base,))
        tables = database.execute("SELECT count(*) FROM labels WHERE base = ?", (base,)).fetchone()
        return Details({folder: (files, path) for folder, files, path in folders}, dict(passed.fetchall()), tables[0])


def read_state(scratch: Path, terms: object) -> list[str] | None:
    """The labels of all batches, if after an ingest under these terms there was nothing that each ingest has to judge
    again; None otherwise."""
    with suppress(sqlite3.Error), opened(scratch / LISTINGS) as database:
        for kept, labels in database.execute("SELECT terms, labels FROM state"):
            if kept == _state_terms(scratch, terms):
                found: list[str] = json.loads(labels)
                return found
    return None


def write_state(scratch: Path, terms: object, labels: Sequence[str] | None) -> None:
    """Remember it for the next ingest; labels None: there was something."""
    with suppress(sqlite3.Error), opened(scratch / LISTINGS) as database:
        database.execute("DELETE FROM state")
        if labels is not None:
            row = (_state_terms(scratch, terms), json.dumps(labels))
            database.execute("INSERT INTO state VALUES (?, ?)", row)


def _state_terms(scratch: Path, terms: object) -> str:
    return json.dumps([terms, signature(scratch / STAMPS)])


def note_ingested(scratch: Path, before: str, after: Terms, seen: Iterable[tuple[str, str]]) -> None:
    """Take files (base, path) for known that an ingest has seen, so that not everything is listed again.

    Args:
        before: ``text`` of the terms of the listing that the ingest went by.
    """
    with suppress(sqlite3.Error), opened(scratch / LISTINGS) as database:
        rows = ((base, posixpath.dirname(path), path) for base, path in seen)
        database.executemany("DELETE FROM waiting WHERE base = ? AND folder = ? AND path = ?", rows)
        database.execute("UPDATE source SET terms = ? WHERE terms = ?", (after.text(scratch), before))


def forget(database: sqlite3.Connection, base: str) -> None:
    """Forget a source."""
    for statement in (
        "DELETE FROM source WHERE base = ?",
        "DELETE FROM folder WHERE base = ?",
        "DELETE FROM waiting WHERE base = ?",
        "DELETE FROM labels WHERE base = ?",
        "DELETE FROM passed WHERE base = ?",
    ):
        database.execute(statement, (base,))


def forget_old(database: sqlite3.Connection, listed: Collection[str]) -> None:
    """What is listed no more."""
    old = database.execute("SELECT base FROM source WHERE at BETWEEN 1 AND ?", (time.time() - KEPT_SECONDS,))
    for base in {base for (base,) in old.fetchall()}.difference(listed):
        forget(database, base)


def forget_folder(database: sqlite3.Connection, base: str, folder: str) -> None:
    """Forget a folder that is gone, with all below it."""
    for statement in (
        "DELETE FROM folder WHERE base = ? AND (folder = ? OR (folder > ? AND folder < ?))",
        "DELETE FROM waiting WHERE base = ? AND (folder = ? OR (folder > ? AND folder < ?))",
        "DELETE FROM labels WHERE base = ? AND (folder = ? OR (folder > ? AND folder < ?))",
        "DELETE FROM passed WHERE base = ? AND (folder = ? OR (folder > ? AND folder < ?))",
    ):
        database.execute(statement, (base, folder, f"{folder}/", f"{folder}0"))
