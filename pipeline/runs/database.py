"""What is wrong when Dagster's records cannot be reached or read: where they are, and what to do, on one line."""

import logging
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import dagster as dg
import yaml
from sqlalchemy.exc import SQLAlchemyError

from deploy.failure import one_line
from pipeline.errors import ServiceError
from pipeline.redact import redactor

FOLDERS = ("history", "storage", "schedules")  # of SQLite, in the workspace
EXAMPLE = "postgresql+psycopg2://USER:PASSWORD@HOST:5432/dagster"
DAMAGED = ("not a database", "malformed", "disk image")


@contextmanager
def foreseen(root: Path) -> Iterator[None]:
    """Translate database errors raised in the block into a one-line ServiceError.

    Raises:
        ServiceError: instead of them.
    """
    said = logging.getLogger()
    said.addFilter(_is_not_retry)
    try:
        yield
    except Exception as error:
        if not unreachable(error):
            raise
        raise ServiceError(redactor(root)(describe(root, error))) from None
    finally:
        said.removeFilter(_is_not_retry)


@contextmanager
def settings_foreseen(root: Path) -> Iterator[None]:
    """Faults of dagster.yaml in the block, and what it asks for and is not there.

    Raises:
        ServiceError: instead of them.
    """
    try:
        yield
    except dg.DagsterInvalidConfigError as error:
        raise ServiceError(redactor(root)(_settings(root, error))) from None
    except yaml.YAMLError as error:
        raise ServiceError(f"{root / 'dagster.yaml'}: is not valid YAML ({one_line(error)}); fix it") from None


def _is_not_retry(record: logging.LogRecord) -> bool:
    """Dagster logs every attempt to connect, on several lines; its last word is enough."""
    return not str(record.msg).startswith("Retrying failed database connection")


def unreachable(error: BaseException) -> bool:
    """Whether the database is the cause."""
    cause: BaseException | None = error
    while cause is not None:
        # By its name, because dagster-postgres is not installed everywhere.
        if isinstance(cause, SQLAlchemyError) or type(cause).__name__ == "DagsterPostgresException":
            return True
        cause = cause.__cause__
    return False


def describe(root: Path, error: BaseException) -> str:
    """One line for a person; may hold secrets of the address."""
    kind, variables = _storage(root)
    reason = _reason(error)
    if kind != "sqlite":
        fix = f"start it, or correct {' and '.join(variables) or 'the block `storage` of dagster.yaml'}"
        named = f" ({', '.join(variables)})" if variables else ""
        return f"Dagster's records in {kind}{named} cannot be reached: {reason}; {fix}, and try again"
    where = f"Dagster's records in SQLite, {root}"
    if any(word in reason for word in DAMAGED):
        damaged = _damaged(root) or ["a file of history/, storage/ or schedules/"]
        return (
            f"{where}: {', '.join(damaged)} cannot be read ({reason}); restore a copy from a backup, or move it away "
            "while `simclr ui` is stopped: data, models and releases do not depend on it, only the history of runs does"
        )
    return f"{where}: {reason}; see whether the disk is full, the folder writable, or another process holds them"


def _settings(root: Path, error: Exception) -> str:
    text = one_line(error)
    kind, variables = _storage(root)
    missing = re.search(r'environment variable "?(\w+)"?', text)
    if missing and missing[1] in variables:
        return (
            f"Dagster's records are in {kind}, and {missing[1]} is not set; set it to the address of the database, "
            f"as {EXAMPLE}"
        )
    found = f"{missing[1]} is not set" if missing else text.partition("Stack Trace")[0].strip()
    return f"{root / 'dagster.yaml'}: {found}; correct it, and try again"


def _storage(root: Path) -> tuple[str, list[str]]:
    """Which database, and the variables of the environment that say where it is."""
    try:
        settings = yaml.safe_load((root / "dagster.yaml").read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError):
        return "sqlite", []
    block = settings.get("storage") or {}
    kind = next(iter(block), "sqlite")
    variables = re.findall(r"env: (\w+)", yaml.safe_dump(block))
    return {"postgres": "PostgreSQL", "mysql": "MySQL"}.get(kind, kind), variables


def _reason(error: BaseException) -> str:
    """The first line of the database's own words."""
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    text = str(getattr(cause, "orig", None) or cause).strip()
    return (text.splitlines() or [type(cause).__name__])[0].strip()


def _damaged(root: Path) -> list[str]:
    found = []
    for file in sorted(path for folder in FOLDERS for path in (root / folder).rglob("*.db")):
        try:
            with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
                connection.execute("PRAGMA quick_check(1)").fetchall()
        except sqlite3.DatabaseError:
            found.append(file.relative_to(root).as_posix())
    return found
