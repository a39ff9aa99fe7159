"""Dagster's records in SQLite, without waiting for the disk at each of the hundreds of events of a run.

Dagster opens a connection for every statement. With the write-ahead log that it chooses, the last connection to close
copies the log into the database, and each commit is flushed: several waits for the disk per event. One connection that
stays open leaves the copying to SQLite, which does it every thousand pages; flushed is then the log at each copying. A
process may be killed at any time without a loss; when the power fails, the last events may be missing, and the records
stay whole (SQLite, "Write-Ahead Logging" and ``PRAGMA synchronous``).

The page of a run shows its events as they come: Dagster notices them when the database changes, and now only the log
does. So each connection that has written touches the database when it closes.
"""

import os
import sqlite3
from collections import OrderedDict
from contextlib import suppress
from typing import Any

OPEN = 4  # records of runs, of events, of schedules, and the file of the present run

_open: OrderedDict[str, sqlite3.Connection] = OrderedDict()
_of_the_parent: list[sqlite3.Connection] = []


def keep_open(connection: Any, _: object) -> None:
    """For SQLAlchemy's event ``connect``; connections to other databases stay as they are."""
    if not isinstance(connection, sqlite3.Connection):
        return
    connection.execute("PRAGMA synchronous=NORMAL")
    path = _file(connection)
    if not path or path in _open:
        return
    kept = sqlite3.connect(path, check_same_thread=False)
    kept.execute("SELECT count(*) FROM sqlite_master").fetchone()  # from here on it is one that reads the log
    _open[path] = kept
    if len(_open) > OPEN:
        _open.popitem(last=False)[1].close()


def announce(connection: Any, _: object) -> None:
    """For SQLAlchemy's event ``close``: what was written shows in the time of the file, and reading it does not."""
    with suppress(sqlite3.Error, OSError):
        if isinstance(connection, sqlite3.Connection) and connection.total_changes and (path := _file(connection)):
            os.utime(path)


def _file(connection: sqlite3.Connection) -> str:
    path: str = connection.execute("PRAGMA database_list").fetchone()[2]
    return path


def _forget() -> None:
    """SQLite's connections must not be used, nor closed, in a process that was forked."""
    _of_the_parent.extend(_open.values())
    _open.clear()


os.register_at_fork(after_in_child=_forget)
