"""What the sources held when they were last seen, by stamps: ``.simclr/inbox.sqlite``, one row for each file there.

It spares reading a file again whose stamp is known. Nothing depends on it: without it, or with a damaged one, every
file is read once more and found to be known by its contents.
"""

import logging
import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

STAMPS = "inbox.sqlite"  # in the workspace's scratch folder
FORMAT = 1
KEPT_SECONDS = 90 * 24 * 3600.0  # what is known of a source that is listed no more
WAIT_SECONDS = 10.0  # for another process that is writing, which takes it well under a second
SCHEMA = (
    """CREATE TABLE IF NOT EXISTS ingested (
        base TEXT NOT NULL, path TEXT NOT NULL, stamp TEXT NOT NULL, sha256 TEXT NOT NULL, PRIMARY KEY (base, path)
    ) WITHOUT ROWID""",
    "CREATE TABLE IF NOT EXISTS state (raw TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS listed (base TEXT PRIMARY KEY, at REAL NOT NULL)",
    f"PRAGMA user_version = {FORMAT}",
)
log = logging.getLogger("simclr.inbox")

Key = tuple[str, str]  # base of the source, path relative to it


class Stamps:
    """What the ingests so far have seen; ``raw`` is the data version of data/raw after the last of them.

    A file that is damaged, or written by another version of this program, is set aside and counts as empty.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._usable = path.exists()
        versions = self._read("PRAGMA user_version")
        if versions and versions != [(FORMAT,)]:
            self._set_aside(f"has format {versions[0][0]}, not {FORMAT}")
        self.raw: str | None = next((raw for (raw,) in self._read("SELECT raw FROM state")), None)

    @cached_property
    def _known(self) -> dict[Key, tuple[str, str]]:
        """Everything, in memory: what lists all files needs it."""
        known: dict[Key, tuple[str, str]] = {}
        self._read(
            "SELECT base, path, stamp, sha256 FROM ingested",
            take=lambda rows: known.update(((base, name), (stamp, sha256)) for base, name, stamp, sha256 in rows),
        )
        return known if self._usable else {}

    @cached_property
    def _listed(self) -> set[str]:
        there = self._read("SELECT name FROM sqlite_master WHERE name = 'listed'")  # not at first
        return {base for (base,) in self._read("SELECT base FROM listed")} if there else set()

    def _read(self, query: str, *values: str, take: Callable[[Iterable[Any]], list[Any] | None] = list) -> list[Any]:
        """The rows of a query; none if the file cannot be read."""
        if not self._usable:
            return []
        try:
            with _transaction(self.path) as database:
                return take(database.execute(query, values)) or []
        except sqlite3.OperationalError as error:  # busy or not readable; its contents may be sound
            self._usable, self.raw = False, None
            log.warning("%s: cannot be read (%s); every file counts as new", self.path, error)
        except sqlite3.DatabaseError as error:
            self._set_aside(str(error))
        return []

    def find(self, base: str, path: str, stamp: str) -> str | None:
        """The SHA-256 of a file that has been ingested with this stamp."""
        before, sha256 = self._known.get((base, path), ("", ""))
        return sha256 if before == stamp else None

    def last(self, base: str, path: str) -> str | None:
        """The SHA-256 of the file that was there when the source was last seen."""
        row = self._known.get((base, path))
        return row[1] if row else None

    def row(self, base: str, path: str) -> tuple[str, str] | None:
        """Stamp and SHA-256 of the file that was there when the source was last seen."""
        return self._known.get((base, path))

    def held(self, base: str) -> set[str] | None:
        """The contents that the source had when it was last seen; None if that is not known."""
        if base not in self._listed:
            return None
        return {sha256 for (one, _), (_, sha256) in self._known.items() if one == base}

    def count_held(self, base: str) -> int:
        """How many contents the source had when it was last seen; 0 if that is not known."""
        counted = self._read("SELECT count(DISTINCT sha256) FROM ingested WHERE base = ?", base)
        return counted[0][0] if counted and base in self._listed else 0

    def count(self, base: str) -> int:
        """How many files the source had when it was last seen."""
        return sum(number for (number,) in self._read("SELECT count(*) FROM ingested WHERE base = ?", base))

    def not_images(self, base: str, mark: str) -> list[str]:
        """The paths of files of which the content is noted with this mark."""
        rows = self._read("SELECT path FROM ingested WHERE base = ? AND sha256 = ?", base, mark)
        return [path for (path,) in rows]

    def record(self, seen: Mapping[Key, tuple[str, str]], raw: str, whole: Collection[str]) -> None:
        """Remember (stamp, SHA-256) of what was ingested, all or nothing; to fail costs time at the next ingest.

        Args:
            seen: with an empty stamp, the file is read again at the next ingest.
            whole: sources that were listed in full. Files that are not there any more are forgotten.
        """
        now = time.time()
        gone = [key for key in self._known if key[0] in whole and key not in seen] if whole else []
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with _transaction(self.path) as database:
                for statement in SCHEMA:
                    database.execute(statement)
                database.execute("DELETE FROM state")
                database.execute("INSERT INTO state VALUES (?)", (raw,))
                database.executemany("DELETE FROM ingested WHERE base = ? AND path = ?", gone)
                rows = [(*key, *value) for key, value in seen.items() if not whole or self._known.get(key) != value]
                database.executemany("INSERT OR REPLACE INTO ingested VALUES (?, ?, ?, ?)", rows)
                listed = [(base, now) for base in {*whole, *(base for base, _ in seen)}]
                database.executemany("INSERT OR REPLACE INTO listed VALUES (?, ?)", listed)
                database.execute("INSERT OR IGNORE INTO listed SELECT DISTINCT base, ? FROM ingested", (now,))
                old = database.execute("SELECT base FROM listed WHERE at < ?", (now - KEPT_SECONDS,)).fetchall()
                database.executemany("DELETE FROM ingested WHERE base = ?", old)
                database.executemany("DELETE FROM listed WHERE base = ?", old)
        except (sqlite3.Error, OSError) as error:
            log.warning("%s: cannot be written (%s); the next ingest reads every file again", self.path, error)

    def _set_aside(self, why: str) -> None:
        numbered = (self.path.with_name(f"{self.path.name}.damaged-{number}") for number in range(1, 10_000))
        aside = next(name for name in numbered if not name.exists())
        self._usable, self.raw = False, None
        self.path.rename(aside)
        log.warning("%s: %s; set aside as %s, and every file is read once more", self.path, why, aside.name)


@contextmanager
def _transaction(path: Path) -> Iterator[sqlite3.Connection]:
    database = sqlite3.connect(path, timeout=WAIT_SECONDS, isolation_level=None)
    try:
        database.execute("BEGIN")
        yield database
        database.execute("COMMIT")
    finally:
        database.close()  # rolls back what was not committed
