"""Where images come from: a folder, a glob, or any fsspec URL, listed without following a link or opening a pipe.

Listing opens no file. Of each it takes a stamp, which changes when the file does: size and time of the last change on
a disk, size and ETag in a bucket.
"""

import errno
import os
import re
import stat
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from deploy.folders.files import is_labels, passed_over
from pipeline.errors import IngestError
from pipeline.ingest.selection import ALL, LEFT_OUT, Selection
from pipeline.redact import NAMES_BEFORE_AT, redact

GRANULARITY_SECONDS = 0.05  # two changes of a file within one tick of the kernel's clock have the same time
UNSEEN = "cannot be "  # begins the fault of what may be a file and could not be looked at
FUTURE_SECONDS = 3600.0  # how far the clock of a file server may be ahead; a later time gives no information
LINK = "is a link"  # why it is passed over
SIZE_ONLY = "size:"  # begins the stamp of a file whose file system tells neither a time nor a hash


class File(NamedTuple):
    """A file where it is; ``changed`` is None where the file system does not say."""

    location: str
    stamp: str
    changed: float | None  # seconds since the epoch

    @property
    def certain(self) -> bool:
        """Whether equal stamps mean equal contents, so that the file need not be read again."""
        return not self.stamp.startswith(SIZE_ONLY)


@dataclass
class Source:
    """The files of one source by relative path, and its tables of labels; ``passed_over`` says why the others are left.

    ``base`` is the URL that the paths are relative to, the same however the source was named. ``identity`` tells the
    sources apart in the raw batches: relative to the workspace, so that it may be moved, and with the pattern of a
    glob. ``whole``: all files below the base are listed, so that what is not among them is not there; a glob sees only
    a part of its base. ``unseen`` are files and folders that could not be looked at, ``left_out`` those that the
    selection does not take.
    """

    name: str
    base: str
    identity: str
    filesystem: fsspec.AbstractFileSystem
    whole: bool
    listed: float = field(default_factory=time.time)
    files: dict[str, File] = field(default_factory=dict)
    unsettled: dict[str, File] = field(default_factory=dict)
    unseen: set[str] = field(default_factory=set)
    left_out: set[str] = field(default_factory=set)
    passed_over: dict[str, str] = field(default_factory=dict)
    labels: dict[str, File] = field(default_factory=dict)

    @property
    def skipped(self) -> list[str]:
        """Each file that was passed over, and why."""
        return [f"{path!r} {reason}" for path, reason in self.passed_over.items()]

    def settled(self, file: File) -> bool:
        """Whether a change from now on changes the stamp."""
        return file.changed is None or file.changed <= self.listed - GRANULARITY_SECONDS

    def hides(self, path: str) -> bool:
        """Whether the file may exist, although it is not one of ``files``."""
        parents = (parent.as_posix() for parent in PurePosixPath(path).parents)
        known = path in self.unsettled or path in self.unseen or path in self.left_out
        return known or not self.unseen.isdisjoint(parents)

    def read(self, path: str) -> bytes:
        """The bytes of one of ``files``.

        Raises:
            IngestError: it is gone or unreadable, or it is not a regular file any more.
        """
        return self._read(path, self.files[path])

    def _read(self, path: str, file: File) -> bytes:
        read = _read_local if isinstance(self.filesystem, LocalFileSystem) else self.filesystem.cat_file
        try:
            data: bytes = read(file.location)
        except OSError as error:
            raise IngestError(f"{path!r} cannot be read ({error.strerror or error}); fix or remove it") from None
        return data

    def read_labels(self, path: str) -> bytes:
        """The bytes of one of ``labels``; raises IngestError like ``read``."""
        return self._read(f"{self.name}/{path}", self.labels[path])


def list_source(root: Path, name: str, settle_seconds: float, selection: Selection = ALL) -> Source:
    """List a folder, glob or URL; a relative one is taken from ``root``.

    Files changed in the last ``settle_seconds`` are still being written and listed as ``unsettled``.

    Raises:
        IngestError: it does not exist, cannot be read, or its address has credentials in it.
    """
    _refuse_credentials(name)
    try:
        filesystem, path = url_to_fs(name if "://" in name else absolute(root, name))
        filesystem.invalidate_cache()  # a long-lived process would be shown the bucket as it was at its first look
        local = isinstance(filesystem, LocalFileSystem)
        glob = _is_glob(path) and not (local and os.path.lexists(path))
        base = path.partition("*")[0].partition("?")[0].partition("[")[0].rpartition("/")[0] if glob else path
        walk: Callable[[fsspec.AbstractFileSystem, str], Iterator[Entry]]
        walk = _glob if glob else _walk_local if local else _walk
        if local and Path(path).is_file():
            base, walk = str(Path(path).parent), _single
        entries = walk(filesystem, path)
        identity, whole = _identify(filesystem, path, root), walk not in (_glob, _single)
        source = Source(name, filesystem.unstrip_protocol(base), identity, filesystem, whole)
        return _sort_out(source, base, entries, settle_seconds, selection)
    except FileNotFoundError:
        raise IngestError(f"{name}: does not exist; give a folder, a glob in quotes, or an fsspec URL") from None
    except PermissionError as error:
        raise IngestError(
            f"{name}: no permission to read {error.filename or name}; allow it or run as another user"
        ) from None
    except (ImportError, ValueError, OSError) as error:  # OSError: a bucket that cannot be reached
        raise IngestError(redact(f"{name}: cannot be opened ({error})")) from None


def absolute(root: Path, name: str) -> str:
    """A local source by its one name: ``root/../photos`` and ``/photos`` are the same folder, and its files known.

    A link keeps its name, but for one that ``..`` leads out of.
    """
    path = root / Path(name).expanduser()
    if ".." not in path.parts:
        return str(path.absolute())
    after = len(path.parts) - path.parts[::-1].index("..")
    return str(Path(os.path.realpath(Path(*path.parts[:after])), *path.parts[after:]))


def _is_glob(path: str) -> bool:
    return any(sign in path for sign in "*?[")


def _identify(filesystem: fsspec.AbstractFileSystem, path: str, root: Path) -> str:
    url: str = filesystem.unstrip_protocol(path)
    return url.removeprefix(f"{LocalFileSystem().unstrip_protocol(str(root))}/")


def _refuse_credentials(name: str) -> None:
    """An address ends up in params.yaml, in logs and in the record of every run: no place for a secret."""
    found = re.search(r"([\w+.-]*)://([^/]*)@", name)
    if found and (":" in found[2] or found[1] not in NAMES_BEFORE_AT):
        raise IngestError(
            f"{redact(name)}: has credentials in its address; leave them out, and give them in the environment "
            "(AWS_ACCESS_KEY_ID and so on) or in a file of ~/.config/fsspec"
        )


class Entry(NamedTuple):
    """One thing in a listing, and why it is passed over, if it is."""

    path: str
    stamp: str = ""
    changed: float | None = None
    fault: str | None = None


def _sort_out(
    source: Source, base: str, entries: Iterator[Entry], settle_seconds: float, selection: Selection
) -> Source:
    prefix = base.rstrip("/") + "/"
    settled = source.listed - settle_seconds
    for path, stamp, changed, fault in sorted(entries, key=lambda entry: entry.path):
        relative = path[len(prefix) :] if path.startswith(prefix) else _relative(path, base)
        if changed is not None and changed > source.listed + FUTURE_SECONDS:
            changed = None
        file = File(path, stamp, changed)
        left = passed_over(relative)
        if left and not is_labels(left[0]):
            source.passed_over[left[0]] = left[1]  # a hidden folder once, however much is in it
        elif selection.excludes(relative) or (not left and selection.leaves_out(relative)):
            source.passed_over[relative] = LEFT_OUT
            source.left_out.add(relative)
        elif fault:
            source.passed_over[relative] = fault
            if fault.startswith(UNSEEN):
                source.unseen.add(relative)
        elif left:
            source.labels[relative] = file
        elif changed is not None and changed > settled:
            source.unsettled[relative] = file
        else:  # a stored object without a time is complete: it appears when its upload has ended
            source.files[relative] = file
    return source


def _relative(path: str, base: str) -> str:
    return PurePosixPath(path).relative_to(base).as_posix()


def _walk_local(_: fsspec.AbstractFileSystem, root: str) -> Iterator[Entry]:
    """Regular files below a folder: links, pipes, sockets and devices are named, never opened."""
    folders = [root]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if not entry.is_dir(follow_symlinks=False):
                        yield from _look(entry)
                    elif passed_over(entry.name):
                        yield Entry(_spelled_out(entry.path), fault="is a folder")
                    else:
                        folders.append(entry.path)
        except OSError as error:  # lost+found, say, or one that is gone by now
            if folder == root:
                raise
            yield Entry(_spelled_out(folder), fault=f"{UNSEEN}listed ({error.strerror})")


def _single(_: fsspec.AbstractFileSystem, path: str) -> Iterator[Entry]:
    """The one file that was named; an archive is not taken for an image."""
    if zipfile.is_zipfile(path) or tarfile.is_tarfile(path):
        raise IngestError(f"{path}: is an archive; unpack it and name the folder")
    yield _describe(path, os.lstat(path))


def _look(entry: os.DirEntry[str]) -> Iterator[Entry]:
    try:
        status = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return  # taken away since the folder was opened
    except OSError as error:
        yield Entry(_spelled_out(entry.path), fault=f"{UNSEEN}examined ({error.strerror})")
        return
    yield _describe(entry.path, status)


def _describe(path: str, status: os.stat_result) -> Entry:
    fault = _fault(stat.S_ISREG(status.st_mode), stat.S_ISLNK(status.st_mode))
    return _named(Entry(path, f"{status.st_size}-{status.st_mtime_ns}", status.st_mtime, fault))


def _fault(is_file: bool, is_link: bool) -> str | None:
    if is_link:
        return LINK
    return None if is_file else "is not a regular file"


def _named(entry: Entry) -> Entry:
    """The entry; if its name is not UTF-8, one that says so."""
    if _is_text(entry.path):
        return entry
    return Entry(_spelled_out(entry.path), fault="has a name that is not UTF-8")


def _spelled_out(path: str) -> str:
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _read_local(path: str) -> bytes:
    """Bytes of a regular file: a pipe or a link that has come into its place since the listing is not opened."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "no longer a regular file")
        return file.read()


def _is_text(path: str) -> bool:
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _walk(filesystem: fsspec.AbstractFileSystem, path: str) -> Iterator[Entry]:
    if not filesystem.exists(path):
        raise FileNotFoundError(path)
    for name, details in filesystem.find(path, detail=True).items():
        yield _entry(name, details)


def _glob(filesystem: fsspec.AbstractFileSystem, pattern: str) -> Iterator[Entry]:
    for name, details in filesystem.glob(pattern, detail=True).items():
        if details["type"] != "directory":
            yield _entry(name, details)


def _entry(name: str, details: dict[str, Any]) -> Entry:
    """The keys are those of fsspec's file systems: no two of them have the same."""
    size = details.get("size")
    changed = details.get("mtime") or details.get("LastModified") or details.get("last_modified")
    changed = changed or details.get("updated") or details.get("created")
    content = details.get("ETag") or details.get("etag") or details.get("md5Hash") or details.get("content_md5")
    if isinstance(changed, str):
        changed = _parse(changed)
    if isinstance(changed, datetime):
        changed = changed.timestamp()
    known = content or (f"{changed:.9f}" if changed else None)
    stamp = f"{size}-{known}" if known else f"{SIZE_ONLY}{size}"
    kind = details.get("type", "file")
    fault = _fault(kind == "file", kind == "link" or bool(details.get("islink")))
    return _named(Entry(name, stamp, changed or None, fault))


def _parse(time: str) -> datetime | None:
    try:
        return datetime.fromisoformat(time)
    except ValueError:
        return None
