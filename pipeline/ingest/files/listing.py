"""The files of a folder, a glob or a bucket, listed without following a link or opening a pipe.

Listing opens no file. Of each it takes a stamp, which changes when the file does: size and time of the last change on
a disk, size and ETag in a bucket.
"""

import errno
import os
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from datetime import datetime
from typing import Any, NamedTuple

import fsspec

from deploy.folders.files import LINK, passed_over
from pipeline.errors import IngestError

UNSEEN = "cannot be "  # begins the fault of what may be a file and could not be looked at
SIZE_ONLY = "size:"  # begins the stamp of a file whose file system tells neither a time nor a hash


class File(NamedTuple):
    """A file where it is. ``changed`` is None where the file system does not say, ``fault`` why it is passed over."""

    path: str
    stamp: str = ""
    changed: float | None = None  # seconds since the epoch
    fault: str | None = None

    @property
    def certain(self) -> bool:
        """Whether equal stamps mean equal contents, so that the file need not be read again."""
        return not self.stamp.startswith(SIZE_ONLY)


def list_local(root: str) -> Iterator[File]:
    """Regular files below a folder: links, pipes, sockets and devices are named, never opened."""
    folders = [root]
    while folders:
        folder = folders.pop()
        try:
            for found in list_folder(folder):
                if isinstance(found, File):
                    yield found
                else:
                    folders.append(found)
        except OSError as error:  # lost+found, say, or one that is gone by now
            if folder == root:
                raise
            yield File(_spelled_out(folder), fault=f"{UNSEEN}listed ({error.strerror})")


def list_folder(folder: str) -> Iterator[File | str]:
    """What is directly in a folder: its files, and the paths of the folders to list next."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                yield from _look(entry)
            elif passed_over(entry.name):
                yield File(_spelled_out(entry.path), fault="is a folder")
            else:
                yield entry.path


def folder_stamp(path: str, follow: bool = False) -> tuple[str, float] | None:
    """What changes when an entry of a folder is added, removed or renamed, and when that was last; None: no folder."""
    try:
        status = (os.stat if follow else os.lstat)(path)
    except OSError:
        return None
    if not stat.S_ISDIR(status.st_mode):
        return None
    stamp = f"{status.st_dev}-{status.st_ino}-{status.st_mtime_ns}-{status.st_ctime_ns}"
    return stamp, max(status.st_mtime, status.st_ctime)


def file_stamp(path: str) -> str | None:
    """The stamp of a local file now; None if it cannot be looked at."""
    try:
        return _describe(path, os.lstat(path)).stamp
    except OSError:
        return None


def list_single(path: str) -> Iterator[File]:
    """The one file that was named; an archive is not taken for an image."""
    if zipfile.is_zipfile(path) or tarfile.is_tarfile(path):
        raise IngestError(f"{path}: is an archive; unpack it and name the folder")
    yield _describe(path, os.lstat(path))


def list_remote(filesystem: fsspec.AbstractFileSystem, path: str) -> Iterator[File]:
    """The objects below a folder of a bucket, say."""
    if not filesystem.exists(path):
        raise FileNotFoundError(path)
    for name, details in filesystem.find(path, detail=True).items():
        yield _describe_remote(name, details)


def list_glob(filesystem: fsspec.AbstractFileSystem, pattern: str) -> Iterator[File]:
    for name, details in filesystem.glob(pattern, detail=True).items():
        if details["type"] != "directory":
            yield _describe_remote(name, details)


def read_local(path: str) -> bytes:
    """Bytes of a regular file: a pipe or a link that has come into its place since the listing is not opened."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "no longer a regular file")
        return file.read()


def _look(entry: os.DirEntry[str]) -> Iterator[File]:
    try:
        status = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return  # taken away since the folder was opened
    except OSError as error:
        yield File(_spelled_out(entry.path), fault=f"{UNSEEN}examined ({error.strerror})")
        return
    yield _describe(entry.path, status)


def _describe(path: str, status: os.stat_result) -> File:
    fault = _fault(stat.S_ISREG(status.st_mode), stat.S_ISLNK(status.st_mode))
    return _named(File(path, f"{status.st_size}-{status.st_mtime_ns}", status.st_mtime, fault))


def _describe_remote(name: str, details: dict[str, Any]) -> File:
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
    return _named(File(name, stamp, changed or None, fault))


def _fault(is_file: bool, is_link: bool) -> str | None:
    if is_link:
        return LINK
    return None if is_file else "is not a regular file"


def _named(file: File) -> File:
    """The file; if its name is not UTF-8, one that says so."""
    if is_text(file.path):
        return file
    return File(_spelled_out(file.path), fault="has a name that is not UTF-8")


def _spelled_out(path: str) -> str:
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def is_text(path: str) -> bool:
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _parse(time: str) -> datetime | None:
    try:
        return datetime.fromisoformat(time)
    except ValueError:
        return None
