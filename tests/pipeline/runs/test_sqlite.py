"""Connections to SQLite: the log survives the last of Dagster's, and so do the records when a process is killed."""

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from queue import Queue

import dagster as dg
import pytest
from sqlalchemy import create_engine, event, text
from sqlalchemy.engine import Engine
from sqlalchemy.pool import NullPool

from pipeline.runs import sqlite
from pipeline.runs.instance import opened
from tests.processes.program import ROOT

WRITE = """
import os, signal, sys
from pathlib import Path
from tests.pipeline.runs.test_sqlite import fill, listen
engine = listen(Path(sys.argv[1]))
fill(engine, 100)
os.kill(os.getpid(), signal.SIGKILL)
"""


@dg.job
def count() -> None:
    """Nothing to do."""


def listen(path: Path) -> Engine:
    """An engine as Dagster makes it, in a database with a write-ahead log."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE IF NOT EXISTS events (number INTEGER)")
        connection.commit()
    engine = create_engine(f"sqlite:///{path}", poolclass=NullPool)
    event.listen(engine, "connect", sqlite.keep_open)
    event.listen(engine, "close", sqlite.announce)
    return engine


def fill(engine: Engine, count: int) -> None:
    for number in range(count):
        with engine.begin() as connection:
            connection.execute(text("INSERT INTO events VALUES (:number)"), {"number": number})


@pytest.fixture(autouse=True)
def _nothing_open() -> Iterator[None]:
    yield
    close_all()


def close_all() -> None:
    while sqlite._open:
        sqlite._open.popitem()[1].close()


def test_the_log_is_not_copied_each_time_that_a_connection_closes(tmp_path: Path) -> None:
    engine = listen(tmp_path / "kept.db")
    fill(engine, 3)
    assert (tmp_path / "kept.db-wal").stat().st_size > 0
    assert str(tmp_path / "kept.db") in sqlite._open

    sqlite._open.popitem()[1].close()
    with closing(sqlite3.connect(tmp_path / "kept.db")) as connection:  # the last one to close
        connection.execute("INSERT INTO events VALUES (4)")
        connection.commit()
    assert not (tmp_path / "kept.db-wal").exists()


def test_other_databases_and_those_in_memory_stay_as_they_are() -> None:
    before = dict(sqlite._open)  # other tests of this process leave some
    sqlite.keep_open(object(), None)
    with closing(sqlite3.connect(":memory:")) as connection:
        sqlite.keep_open(connection, None)
    assert sqlite._open == before


def test_no_more_files_stay_open_than_a_run_needs(tmp_path: Path) -> None:
    for number in range(sqlite.OPEN + 3):
        fill(listen(tmp_path / f"{number}.db"), 1)
    assert [Path(path).stem for path in sqlite._open] == [str(number) for number in range(3, sqlite.OPEN + 3)]


@pytest.mark.seconds
def test_a_killed_process_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "killed.db"
    done = subprocess.run([sys.executable, "-c", WRITE, str(path)], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM events").fetchone() == (100,)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_forked_process_uses_none_of_its_parents_connections(tmp_path: Path) -> None:
    fill(listen(tmp_path / "parent.db"), 1)
    if (child := os.fork()) == 0:
        os._exit(len(sqlite._open))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(sqlite._open) == 1


def test_what_is_written_shows_in_the_time_of_the_file_and_reading_does_not(tmp_path: Path) -> None:
    path = tmp_path / "watched.db"
    engine = listen(path)
    fill(engine, 1)
    os.utime(path, (0, 0))
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM events")).scalar() == 1
    assert path.stat().st_mtime == 0
    fill(engine, 1)
    assert path.stat().st_mtime > 0


@pytest.mark.seconds
def test_whatever_watches_a_run_gets_its_events_as_they_come(tmp_path: Path) -> None:
    (tmp_path / "dagster.yaml").touch()
    seen: Queue[str] = Queue()
    with opened(tmp_path) as instance:
        run = instance.create_run_for_job(count)
        instance.report_engine_event("first", run)
        close_all()  # as in the process of a run, whose file another one has made
        instance.report_engine_event("second", run)
        instance.event_log_storage.watch(
            run.run_id, None, lambda entry, _: seen.put(entry.get_dagster_event().message or "")
        )
        instance.report_engine_event("third", run)
        while seen.get(timeout=120) != "third":
            pass
