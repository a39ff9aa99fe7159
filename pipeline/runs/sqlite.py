"""Dagster's records in SQLite, without waiting for the disk at each of the hundreds of events of a run.

Dagster opens a connection for every statement. With the write-ahead log that it chooses, the last connection to close
copies the log into the database, and each commit is flushed: several waits for the disk per event. One connection that
stays open leaves the copying to SQLite, which does it every thousand pages; flushed is then the log at each copying. A
process may be killed at any time without a loss; when the power fails, the last events may be missing, and the records
stay whole (SQLite, "Write-Ahead Logging" and ``PRAGMA synchronous``).
"""

import os
import sqlite3
from collections import OrderedDict
from typing import Any

OPEN = 4  # records of runs, of events, of schedules, and the file of the present run

_open: OrderedDict[str, sqlite3.Connection] = OrderedDict()
_of_the_parent: list[sqlite3.Connection] = []


def keep_open(connection: Any, _: object) -> None:
    """For SQLAlchemy's event ``connect``; connections to other databases stay as they are."""
    if not isinstance(connection, sqlite3.Connection):
        return
    connection.execute("PRAGMA synchronous=NORMAL")
    path = connection.execute("PRAGMA database_list").fetchone()[2]
    if not path or path in _open:
        return
    kept = sqlite3.connect(path, check_same_thread=False)
    kept.execute("SELECT count(*) FROM sqlite_master").fetchone()  # from here on it is one that reads the log
    _open[path] = kept
    if len(_open) > OPEN:
        _open.popitem(last=False)[1].close()


def _forget() -> None:
    """SQLite's connections must not be used, nor closed, in a process that was forked."""
    _of_the_parent.extend(_open.values())
    _open.clear()


os.register_at_fork(after_in_child=_forget)
