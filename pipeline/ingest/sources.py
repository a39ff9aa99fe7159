"""Where images come from: a folder, a glob, or any fsspec URL, and which of the files there are taken.

Listing (``pipeline.ingest.files.listing``) opens no file; a file is read when its stamp is not known.
"""

import os
import posixpath
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from deploy.folders.files import is_labels, passed_over
from pipeline.errors import IngestError, WorkspaceError
from pipeline.ingest.files.listing import UNSEEN, File, list_glob, list_local, list_remote, list_single, read_local
from pipeline.ingest.files.reading import READERS, Spool, read_ahead
from pipeline.ingest.files.selection import ALL, LEFT_OUT, Selection
from pipeline.redact import NAMES_BEFORE_AT, redact
from pipeline.workspace import expand_home

LOCAL = "file://"  # before the path of a folder on this machine
GRANULARITY_SECONDS = 0.05  # two changes of a file within one tick of the kernel's clock have the same time
FUTURE_SECONDS = 3600.0  # how far the clock of a file server may be ahead; a later time gives no information


@dataclass
class Source:
    """The files of one source by relative path, and its tables of labels; ``passed_over`` says why the others are left.

    ``base`` is the URL that the paths are relative to, the same however the source was named. ``identity`` tells the
    sources apart in the raw batches: relative to the workspace, so that it may be moved, and with the pattern of a
    glob. ``whole``: all files below the base are listed, so that what is not among them is not there; a glob sees only
    a part of its base. ``unseen`` are files and folders that could not be looked at, ``left_out`` those that the
    selection does not take. ``writing`` are the tables that changed a moment ago; the files that they may name are
    ``unsettled`` with them, since half a table says less than the whole one, or something else. ``arrays``: arrays of
    numpy are images. ``spool`` keeps bytes that were read from a bucket, so that none is asked for twice.
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
    writing: dict[str, File] = field(default_factory=dict)
    arrays: bool = False
    spool: Spool | None = None

    @property
    def paths(self) -> set[str]:
        """Everything that was listed."""
        return {*self.files, *self.unsettled, *self.labels, *self.writing, *self.passed_over}

    @property
    def skipped(self) -> list[str]:
        """Each file that was passed over, and why."""
        return [f"{path!r} {reason}" for path, reason in self.passed_over.items()]

    def changing(self, settle_seconds: float) -> list[float]:
        """When each file and table changed that is still being written."""
        files = (*self.unsettled.values(), *self.writing.values())
        return [file.changed for file in files if file.changed and file.changed > self.listed - settle_seconds]

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
        kept = self.spool.read((self.base, path)) if self.spool else None
        return self._read(path, self.files[path]) if kept is None else kept

    def read_all(self, paths: Iterable[str]) -> Iterator[tuple[str, bytes | IngestError]]:
        """The bytes of ``files`` in their order, or why they cannot be read; ``READERS`` at once of a bucket."""
        if self.local:
            yield from map(self._try, paths)
            return
        with ThreadPoolExecutor(READERS) as pool:
            yield from read_ahead(pool, self._try, paths, 2 * READERS)

    def _try(self, path: str) -> tuple[str, bytes | IngestError]:
        try:
            return path, self.read(path)
        except IngestError as error:
            return path, error

    def keep(self, path: str, data: bytes) -> None:
        """Keep the bytes for the batch, if reading them again would be another request."""
        if self.spool and not self.local:
            self.spool.keep((self.base, path), data)

    @property
    def local(self) -> bool:
        return isinstance(self.filesystem, LocalFileSystem)

    def _read(self, path: str, file: File) -> bytes:
        try:
            data: bytes = (read_local if self.local else self.filesystem.cat_file)(file.path)
        except Exception as error:
            if self.local and not isinstance(error, OSError):
                raise
            raise IngestError(f"{path!r} cannot be read ({_said(error)}); fix or remove it") from None
        return data

    def read_labels(self, path: str) -> bytes:
        """The bytes of one of ``labels``; raises IngestError like ``read``."""
        return self._read(f"{self.name}/{path}", self.labels[path])


class Address(NamedTuple):
    """Where a source is. ``kind`` is "folder", "glob" or "file"; ``base`` is the path that its files are relative to,
    ``identity`` tells it apart from other sources."""

    name: str
    filesystem: fsspec.AbstractFileSystem
    path: str
    kind: str
    base: str
    identity: str

    @property
    def local(self) -> bool:
        return isinstance(self.filesystem, LocalFileSystem)

    @property
    def url(self) -> str:
        """The base with its protocol."""
        url: str = self.filesystem.unstrip_protocol(self.base)
        return url


def locate(root: Path, name: str) -> Address:
    """A folder, glob or URL; a relative one is taken from ``root``.

    Raises:
        IngestError: its address has credentials in it or cannot be opened.
    """
    _refuse_credentials(name)
    with refusing(name):
        url = name if "://" in name else absolute(root, name)
        filesystem, path = url_to_fs(url, **_options(url))
        local = isinstance(filesystem, LocalFileSystem)
        identity = _identify(filesystem, path, root)
        if local and Path(path).is_file():
            return Address(name, filesystem, path, "file", str(Path(path).parent), identity)
        if _is_glob(path) and not (local and os.path.lexists(path)):
            return Address(name, filesystem, path, "glob", _before_signs(path), identity)
        return Address(name, filesystem, path, "folder", path, identity)


def list_source(root: Path, name: str, settle_seconds: float, selection: Selection = ALL) -> Source:
    """List a folder, glob or URL; a relative one is taken from ``root``.

    Files changed in the last ``settle_seconds`` are still being written and listed as ``unsettled``.

    Raises:
        IngestError: it does not exist, cannot be read, or its address has credentials in it.
    """
    address = locate(root, name)
    filesystem, path = address.filesystem, address.path
    with refusing(name):
        filesystem.invalidate_cache()  # a long-lived process would be shown the bucket as it was at its first look
        if address.kind == "file":
            listed = list_single(path)
        elif address.kind == "glob":
            listed = list_glob(filesystem, path)
        else:
            listed = list_local(path) if address.local else list_remote(filesystem, path)
        source = Source(name, address.url, address.identity, filesystem, address.kind == "folder")
        source.arrays = selection.arrays
        return _sort_out(source, address.base, listed, settle_seconds, selection)


@contextmanager
def refusing(name: str) -> Iterator[None]:
    """Raise IngestError in place of what a file system says of a source of this name."""
    try:
        yield
    except IngestError:
        raise
    except FileNotFoundError:
        raise IngestError(f"{name}: does not exist; give a folder, a glob in quotes, or an fsspec URL") from None
    except PermissionError as error:
        raise IngestError(
            f"{name}: no permission to read {error.filename or name}; allow it or run as another user"
        ) from None
    except Exception as error:
        if "://" not in name and not isinstance(error, (ImportError, ValueError, OSError)):
            raise
        raise IngestError(
            redact(f"{name}: cannot be opened ({_said(error)}); give a folder, a glob in quotes, or an fsspec URL")
        ) from None


def unique(listed: Iterable[Source]) -> list[Source]:
    """The sources, each once, however often it was named."""
    return [*{source.identity: source for source in listed}.values()]


def find_repeated(listed: Sequence[Source]) -> list[set[str]]:
    """Of each source, the paths that one before it lists, too: ``inbox`` has the files of ``inbox/labeled``."""
    return [
        {path for earlier in listed[:number] for path in _shared(source, earlier)}
        for number, source in enumerate(listed)
    ]


def _shared(source: Source, other: Source) -> Iterator[str]:
    base, beyond = (one.base.rstrip("/") + "/" for one in (source, other))
    if not (base.startswith(beyond) or beyond.startswith(base)):
        return
    theirs = other.paths
    for path in source.paths:
        if (base + path).startswith(beyond) and (base + path)[len(beyond) :] in theirs:
            yield path


def _said(error: Exception) -> str:
    """What the system says, or the client of a bucket, each of which has separate errors: that it finds no
    credentials, no connection or half an answer."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


def absolute(root: Path, name: str) -> str:
    """A local source by its one name: ``root/../photos`` and ``/photos`` are the same folder, and its files known.

    A link keeps its name, but for one that ``..`` leads out of.

    Raises:
        IngestError: it is empty, as of a variable that a script has not set; ``root`` would be meant by that. Or it
            is in the home folder of a user who does not exist.
    """
    if not name.strip():
        raise IngestError(f"{name!r} names no source; give a folder, such as {root / 'inbox'}, or `.` for this one")
    try:
        path = root / expand_home(name)
    except WorkspaceError as error:
        raise IngestError(str(error)) from None
    if ".." not in path.parts:
        return str(path.absolute())
    after = len(path.parts) - path.parts[::-1].index("..")
    return str(Path(os.path.realpath(Path(*path.parts[:after])), *path.parts[after:]))


def bases_of(identity: str, path: str, root: Path) -> set[str]:
    """What a path of a source with this identity may be relative to: that, or the folder of a glob or single file."""
    url = identity if "://" in identity else f"{LOCAL}{root / identity}"
    return {
        url,
        *([_before_signs(url)] if _is_glob(url) else []),
        *([posixpath.dirname(url)] if posixpath.basename(url) == path else []),
    }


def _is_glob(path: str) -> bool:
    return any(sign in path for sign in "*?[")


def _before_signs(pattern: str) -> str:
    """The folder that a glob is in."""
    return re.split("[*?[]", pattern)[0].rpartition("/")[0]


def _identify(filesystem: fsspec.AbstractFileSystem, path: str, root: Path) -> str:
    url: str = filesystem.unstrip_protocol(path)
    return url.removeprefix(f"{LocalFileSystem().unstrip_protocol(str(root))}/")


def _options(url: str) -> dict[str, Any]:
    """For S3, a connection for each reader, and no request for the size of an object before the one for its bytes;
    what ~/.config/fsspec says counts more."""
    if not url.startswith(("s3://", "s3a://")):
        return {}
    configured: dict[str, Any] = fsspec.config.conf.get("s3", {})
    connections = {"max_pool_connections": READERS} | configured.get("config_kwargs", {})
    return {"max_concurrency": 1} | configured | {"config_kwargs": connections}


def _refuse_credentials(name: str) -> None:
    """An address ends up in params.yaml, in logs and in the record of every run: no place for a secret."""
    found = re.search(r"([\w+.-]*)://([^/]*)@", name)
    if found and (":" in found[2] or found[1] not in NAMES_BEFORE_AT):
        raise IngestError(
            f"{redact(name)}: has credentials in its address; leave them out, and give them in the environment "
            "(AWS_ACCESS_KEY_ID and so on) or in a file of ~/.config/fsspec"
        )


def _sort_out(source: Source, base: str, listed: Iterator[File], settle_seconds: float, selection: Selection) -> Source:
    prefix = base.rstrip("/") + "/"
    settled = source.listed - settle_seconds
    for file in sorted(listed, key=lambda one: one.path):
        relative = file.path[len(prefix) :] if file.path.startswith(prefix) else _relative(file.path, base)
        file = undated(file, source.listed)
        if passed := why_passed_over(relative, file, selection):
            path, reason = passed
            source.passed_over[path] = reason
            if reason == LEFT_OUT:
                source.left_out.add(path)
            elif reason.startswith(UNSEEN):
                source.unseen.add(path)
        else:  # a stored object without a time is complete: it appears when its upload has ended
            changing = file.changed is not None and file.changed > settled
            taken = (source.writing, source.labels) if is_labels(relative) else (source.unsettled, source.files)
            taken[0 if changing else 1][relative] = file
    for folder in map(posixpath.dirname, source.writing):
        for relative in [path for path in source.files if not folder or path.startswith(f"{folder}/")]:
            source.unsettled[relative] = source.files.pop(relative)
    return source


def undated(file: File, now: float) -> File:
    """The file without its time, if that is far in the future."""
    ahead = file.changed is not None and file.changed > now + FUTURE_SECONDS
    return file._replace(changed=None) if ahead else file


def why_passed_over(relative: str, file: File, selection: Selection) -> tuple[str, str] | None:
    """What is passed over, of a hidden folder once that, and why; None: the file is taken."""
    left = passed_over(relative)
    if left and not is_labels(left[0]):
        return left
    if selection.excludes(relative) or (not left and selection.leaves_out(relative)):
        return relative, LEFT_OUT
    return (relative, file.fault) if file.fault else None


def _relative(path: str, base: str) -> str:
    return PurePosixPath(path).relative_to(base).as_posix()
