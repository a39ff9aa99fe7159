"""Relisting: what waits in the sources, by a listing of those folders alone that have changed since the one before.

``.simclr/listings.sqlite`` has a row for each folder, with its times, and one for each file that no ingest has seen.
A folder's times change when a file in it is added, removed or renamed, not when a file is overwritten in place: that
shows when everything is listed again, which a setting bounds, and after each ingest. Tables of labels are looked at
each time, since people edit them in place. A bucket or a glob has no folders with times: its listing is used again for
a while, so that a long one does not fill the time.

Nothing depends on the file. Without it everything is listed once more.
"""

import json
import logging
import posixpath
import sqlite3
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from itertools import groupby, pairwise
from pathlib import Path
from typing import NamedTuple

from deploy.folders.files import is_labels
from pipeline.ingest.files.listing import UNSEEN, File, file_stamp, folder_stamp, is_text, list_folder
from pipeline.ingest.files.selection import Selection
from pipeline.ingest.sources import Address, list_source, locate, refusing, undated, why_passed_over
from pipeline.ingest.stamps import STAMPS

LISTINGS = "listings.sqlite"  # in the workspace's scratch folder
FORMAT = 2
WAIT_SECONDS = 5.0  # for another process that is listing
SETTLED_SECONDS = 2.5  # two changes of a folder within one tick of its clock, 2 s on some disks, have the same time
KEPT_SECONDS = 30 * 24 * 3600.0  # what is known of a source that is listed no more
SHARE = 20  # a listing without folders is used again for this many times what it took
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
log = logging.getLogger("simclr.inbox")


class Terms(NamedTuple):
    """What a listing depends on but for the files. ``raw`` is the data version of the batches that the stamps were
    taken with; None: those are not the batches that are there, so nothing is known."""

    include: Sequence[str]
    exclude: Sequence[str]
    settle_seconds: float
    raw: str | None

    def text(self, scratch: Path) -> str:
        """With what the stamps are now: an ingest changes them."""
        return json.dumps([*self, _signature(scratch / STAMPS)])


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


class _WholeError(Exception):
    """A table of labels is being written, or an ingest has ended meanwhile."""


def relist(root: Path, names: Sequence[str], scratch: Path, terms: Terms, age: float) -> list[Waiting] | None:
    """What waits in each source, by a listing of at most ``age`` seconds where folders have no news.

    None: the sources have to be listed as a whole, because they overlap, a table of labels is being written, or another
    process uses the store.

    Raises:
        IngestError: a source does not exist or cannot be listed.
    """
    addresses = [*{one.identity: one for one in (locate(root, name) for name in names)}.values()]
    bases = sorted(one.url.rstrip("/") + "/" for one in addresses)
    if any(second.startswith(first) for first, second in pairwise(bases)):
        return None
    try:
        return _relist(root, addresses, scratch, terms, age)
    except _WholeError:
        return None
    except sqlite3.OperationalError as error:
        log.warning("%s: cannot be used (%s); every file is listed", scratch / LISTINGS, error)
    except sqlite3.DatabaseError as error:
        (scratch / LISTINGS).unlink(missing_ok=True)
        log.warning("%s: %s; removed, and every file is listed once more", scratch / LISTINGS, error)
    return None


def _relist(root: Path, addresses: Sequence[Address], scratch: Path, terms: Terms, age: float) -> list[Waiting]:
    stamps = scratch / STAMPS
    before, selection = _signature(stamps), Selection(terms.include, terms.exclude)
    text = terms.text(scratch)
    scratch.mkdir(parents=True, exist_ok=True)
    with _opened(scratch / LISTINGS) as database, closing(_connect(stamps)) as ingested:
        for address in addresses:
            look = Look(database, ingested if terms.raw is not None else None, address.url, terms, selection)
            row = database.execute("SELECT terms, at, took FROM source WHERE base = ?", (look.base,)).fetchone()
            elapsed = time.time() - row[1] if row and row[0] == text else -1.0
            if address.kind == "folder" and address.local:
                _list_folders(look, address, text, full=not 0 <= elapsed < age)
            elif not 0 <= elapsed < min(age, SHARE * row[2]):
                _list_whole(look, root, address, text)
        _forget_old(database, {one.url for one in addresses})
        found = [_collect(database, one.url) for one in addresses]
    if _signature(stamps) != before:
        raise _WholeError  # an ingest has ended meanwhile
    return found


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
    with suppress(sqlite3.Error), _opened(scratch / LISTINGS) as database:
        for kept, labels in database.execute("SELECT terms, labels FROM state"):
            if kept == _state_terms(scratch, terms):
                found: list[str] = json.loads(labels)
                return found
    return None


def write_state(scratch: Path, terms: object, labels: Sequence[str] | None) -> None:
    """Remember it for the next ingest; labels None: there was something."""
    with suppress(sqlite3.Error), _opened(scratch / LISTINGS) as database:
        database.execute("DELETE FROM state")
        if labels is not None:
            row = (_state_terms(scratch, terms), json.dumps(labels))
            database.execute("INSERT INTO state VALUES (?, ?)", row)


def _state_terms(scratch: Path, terms: object) -> str:
    return json.dumps([terms, _signature(scratch / STAMPS)])


def note_ingested(scratch: Path, before: str, after: Terms, seen: Iterable[tuple[str, str]]) -> None:
    """Take files (base, path) for known that an ingest has seen, so that not everything is listed again.

    Args:
        before: ``text`` of the terms of the listing that the ingest went by.
    """
    with suppress(sqlite3.Error), _opened(scratch / LISTINGS) as database:
        rows = ((base, posixpath.dirname(path), path) for base, path in seen)
        database.executemany("DELETE FROM waiting WHERE base = ? AND folder = ? AND path = ?", rows)
        database.execute("UPDATE source SET terms = ? WHERE terms = ?", (after.text(scratch), before))


class Look(NamedTuple):
    """One source in the stores: ``ingested`` is None where nothing is known."""

    database: sqlite3.Connection
    ingested: sqlite3.Connection | None
    base: str
    terms: Terms
    selection: Selection


def _list_folders(look: Look, address: Address, text: str, full: bool) -> None:
    """Bring the rows of a local folder up to date."""
    database, base, root, now = look.database, look.base, address.base, time.time()
    if full:
        _forget(database, base)
        changed = [""]
    else:
        tables = database.execute("SELECT folder, path, stamp FROM labels WHERE base = ?", (base,))
        edited = {folder for folder, path, stamp in tables if file_stamp(f"{root}/{path}") != stamp}
        rows = database.execute("SELECT folder, stamp FROM folder WHERE base = ?", (base,))
        stale = (path for path, stamp in rows if (found := _stamp_of(root, path)) is None or found[0] != stamp)
        changed = sorted({*edited, *stale}, reverse=True)
    while changed:
        folder = changed.pop()
        if not full and not _is_reached(root, folder):
            _forget_folder(database, base, folder)
            continue
        changed += _list_one(look, address, folder, full)
    if full:
        database.execute("INSERT OR REPLACE INTO source VALUES (?, ?, ?, ?)", (base, text, now, time.time() - now))


def _list_one(look: Look, address: Address, folder: str, full: bool) -> list[str]:
    """List one folder and replace its rows; returns the folders in it that have none."""
    database, base, now = look.database, look.base, time.time()
    where = f"{address.base.rstrip('/')}/{folder}" if folder else address.base
    stamp = _stamp_of(address.base, folder)
    files: list[tuple[str, File]] = []
    inner: list[str] = []
    whole = stamp is not None and stamp[1] <= now - SETTLED_SECONDS
    with refusing(address.name):
        try:
            for found in list_folder(where):
                if isinstance(found, File):
                    files.append((posixpath.join(folder, posixpath.basename(found.path)), undated(found, now)))
                elif is_text(found):
                    inner.append(posixpath.join(folder, posixpath.basename(found)))
                else:  # nothing in it is taken
                    files.append((posixpath.join(folder, repr(found)), File("", fault=f"{UNSEEN}named")))
        except OSError as error:
            if not folder:
                raise
            whole = False
            files.append((folder, File("", fault=f"{UNSEEN}listed ({error.strerror})")))
    reasons = {path: why_passed_over(path, file, look.selection) for path, file in files}
    taken = [(path, file) for path, file in files if not reasons[path]]
    since = now - look.terms.settle_seconds
    settled = {path: file for path, file in taken if file.changed is None or file.changed <= since}
    unsettled = {path: file for path, file in taken if path not in settled}
    if any(map(is_labels, unsettled)):
        raise _WholeError  # the files that it may name are not settled either
    known = _known(look, folder, settled, leaf=not inner)
    waiting = [(base, folder, path, file.stamp, file.changed, 1) for path, file in settled.items() if path not in known]
    waiting += [(base, folder, path, file.stamp, file.changed, 0) for path, file in unsettled.items()]
    trusted = stamp[0] if stamp and whole and not unsettled else ""
    database.execute("DELETE FROM waiting WHERE base = ? AND folder = ?", (base, folder))
    database.executemany("INSERT INTO waiting VALUES (?, ?, ?, ?, ?, ?)", waiting)
    row = (base, folder, trusted, len(settled), min(settled, default=""))
    database.execute("INSERT OR REPLACE INTO folder VALUES (?, ?, ?, ?, ?)", row)
    passed = {(base, folder, *reason) for reason in reasons.values() if reason}
    database.execute("DELETE FROM passed WHERE base = ? AND folder = ?", (base, folder))
    database.executemany("INSERT OR REPLACE INTO passed VALUES (?, ?, ?, ?)", passed)
    tables = [(base, folder, path, file.stamp) for path, file in settled.items() if is_labels(path)]
    database.execute("DELETE FROM labels WHERE base = ? AND folder = ?", (base, folder))
    database.executemany("INSERT INTO labels VALUES (?, ?, ?, ?)", tables)
    if full:
        return inner
    rows = "SELECT 1 FROM folder WHERE base = ? AND folder = ?"
    return [path for path in inner if not database.execute(rows, (base, path)).fetchone()]


def _known(look: Look, folder: str, files: dict[str, File], leaf: bool) -> set[str]:
    """Those of the files that an ingest has seen with their stamps."""
    if look.ingested is None or not files:
        return set()
    if leaf and folder:  # all rows in it at once
        query = "SELECT path, stamp FROM ingested WHERE base = ? AND path > ? AND path < ?"
        rows = look.ingested.execute(query, (look.base, f"{folder}/", f"{folder}0"))
        return {path for path, stamp in rows if path in files and files[path].stamp == stamp}
    query = "SELECT 1 FROM ingested WHERE base = ? AND path = ? AND stamp = ?"
    return {
        path for path, file in files.items() if look.ingested.execute(query, (look.base, path, file.stamp)).fetchone()
    }


def _list_whole(look: Look, root: Path, address: Address, text: str) -> None:
    """List a bucket, a glob or a single file."""
    began = time.time()
    source = list_source(root, address.name, look.terms.settle_seconds, look.selection)
    settled = {**source.files, **source.labels}
    known = _known(look, "", settled, leaf=False)
    waiting = [(path, file, 1) for path, file in settled.items() if path not in known]
    later = {**source.unsettled, **source.writing}
    changing = source.listed - look.terms.settle_seconds
    dated = ((path, file, file.changed and file.changed > changing) for path, file in later.items())
    waiting += [(path, file if late else file._replace(changed=None), 0) for path, file, late in dated]
    _forget(look.database, look.base)
    look.database.executemany(
        "INSERT INTO waiting VALUES (?, '', ?, ?, ?, ?)",
        [(look.base, path, file.stamp, file.changed, state) for path, file, state in waiting],
    )
    folders = [
        (look.base, folder, len(paths := [*inside]), min(paths))
        for folder, inside in groupby(sorted(settled, key=posixpath.dirname), posixpath.dirname)
    ]
    look.database.executemany("INSERT INTO folder VALUES (?, ?, '', ?, ?)", folders)
    passed = [(look.base, path, reason) for path, reason in source.passed_over.items()]
    look.database.executemany("INSERT INTO passed VALUES (?, '', ?, ?)", passed)
    tables = [(look.base, path, file.stamp) for path, file in source.labels.items()]
    look.database.executemany("INSERT INTO labels VALUES (?, '', ?, ?)", tables)
    at = 0.0 if later else began
    row = (look.base, text, at, time.time() - began)
    look.database.execute("INSERT OR REPLACE INTO source VALUES (?, ?, ?, ?)", row)


def _collect(database: sqlite3.Connection, base: str) -> Waiting:
    (files,) = database.execute("SELECT total(files) FROM folder WHERE base = ?", (base,)).fetchone()
    rows = database.execute("SELECT path, stamp, changed, settled FROM waiting WHERE base = ?", (base,))
    found: tuple[dict[str, File], dict[str, File]] = ({}, {})
    for path, stamp, changed, settled in rows:
        found[settled][path] = File(path, stamp, changed)
    unsettled, new = found
    (tables,) = database.execute("SELECT count(*) FROM labels WHERE base = ?", (base,)).fetchone()
    images = int(files) - tables + sum(not is_labels(path) for path in unsettled)
    return Waiting(base, int(files), images, new, unsettled)


def _stamp_of(root: str, folder: str) -> tuple[str, float] | None:
    return folder_stamp(f"{root.rstrip('/')}/{folder}" if folder else root, follow=not folder)


def _is_reached(root: str, folder: str) -> bool:
    """Whether each folder on the way is still one, and no link."""
    parts = folder.split("/") if folder else []
    return all(_stamp_of(root, "/".join(parts[: depth + 1])) for depth in range(len(parts)))


def _forget(database: sqlite3.Connection, base: str) -> None:
    for statement in (
        "DELETE FROM source WHERE base = ?",
        "DELETE FROM folder WHERE base = ?",
        "DELETE FROM waiting WHERE base = ?",
        "DELETE FROM labels WHERE base = ?",
        "DELETE FROM passed WHERE base = ?",
    ):
        database.execute(statement, (base,))


def _forget_old(database: sqlite3.Connection, listed: Collection[str]) -> None:
    """What is listed no more."""
    old = database.execute("SELECT base FROM source WHERE at BETWEEN 1 AND ?", (time.time() - KEPT_SECONDS,))
    for base in {base for (base,) in old.fetchall()}.difference(listed):
        _forget(database, base)


def _forget_folder(database: sqlite3.Connection, base: str, folder: str) -> None:
    """Forget a folder that is gone, with all below it."""
    for statement in (
        "DELETE FROM folder WHERE base = ? AND (folder = ? OR (folder > ? AND folder < ?))",
        "DELETE FROM waiting WHERE base = ? AND (folder = ? OR (folder > ? AND folder < ?))",
        "DELETE FROM labels WHERE base = ? AND (folder = ? OR (folder > ? AND folder < ?))",
        "DELETE FROM passed WHERE base = ? AND (folder = ? OR (folder > ? AND folder < ?))",
    ):
        database.execute(statement, (base, folder, f"{folder}/", f"{folder}0"))


def _signature(path: Path) -> list[int]:
    try:
        status = path.stat()
    except FileNotFoundError:
        return []
    return [status.st_ino, status.st_size, status.st_mtime_ns]


def _connect(path: Path) -> sqlite3.Connection:
    exists = path.exists()
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro" if exists else ":memory:", WAIT_SECONDS, uri=exists)


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
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
