"""Relisting: what waits in the sources, by a listing of those folders alone that have changed since the one before.

A folder's times change when a file in it is added, removed or renamed, not when a file is overwritten in place: that
shows when everything is listed again, which a setting bounds, and after each ingest. Tables of labels are looked at
each time, since people edit them in place. A bucket or a glob has no folders with times: its listing is used again for
a while, so that a long one does not fill the time.
"""

import logging
import posixpath
import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from itertools import groupby, pairwise
from pathlib import Path
from typing import NamedTuple

from deploy.folders.files import is_labels
from pipeline.ingest.files.listing import UNSEEN, File, file_stamp, folder_stamp, is_text, list_folder
from pipeline.ingest.files.selection import Selection
from pipeline.ingest.relisting.store import (
    LISTINGS,
    Terms,
    Waiting,
    collect,
    connect_ingested,
    forget,
    forget_folder,
    forget_old,
    opened,
    signature,
)
from pipeline.ingest.sources import Address, list_source, locate, refusing, undated, why_passed_over
from pipeline.ingest.stamps import STAMPS

SETTLED_SECONDS = 2.5  # two changes of a folder within one tick of its clock, 2 s on some disks, have the same time
SHARE = 20  # a listing without folders is used again for this many times what it took
log = logging.getLogger("simclr.inbox")


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
    before, selection = signature(stamps), Selection(terms.include, terms.exclude)
    text = terms.text(scratch)
    scratch.mkdir(parents=True, exist_ok=True)
    with opened(scratch / LISTINGS) as database, closing(connect_ingested(stamps)) as ingested:
        for address in addresses:
            look = Look(database, ingested if terms.raw is not None else None, address.url, terms, selection)
            row = database.execute("SELECT terms, at, took FROM source WHERE base = ?", (look.base,)).fetchone()
            elapsed = time.time() - row[1] if row and row[0] == text else -1.0
            if address.kind == "folder" and address.local:
                _list_folders(look, address, text, full=not 0 <= elapsed < age)
            elif not 0 <= elapsed < min(age, SHARE * row[2]):
                _list_whole(look, root, address, text)
        forget_old(database, {one.url for one in addresses})
        found = [collect(database, one.url) for one in addresses]
    if signature(stamps) != before:
        raise _WholeError  # an ingest has ended meanwhile
    return found


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
        forget(database, base)
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
            forget_folder(database, base, folder)
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
    forget(look.database, look.base)
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


def _stamp_of(root: str, folder: str) -> tuple[str, float] | None:
    return folder_stamp(f"{root.rstrip('/')}/{folder}" if folder else root, follow=not folder)


def _is_reached(root: str, folder: str) -> bool:
    """Whether each folder on the way is still one, and no link."""
    parts = folder.split("/") if folder else []
    return all(_stamp_of(root, "/".join(parts[: depth + 1])) for depth in range(len(parts)))
