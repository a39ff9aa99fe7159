"""The files of the shards, open as far as the process may have files open."""

import os
import resource
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path

from simclr_core.errors import DatasetError

SHARE = 4  # of the open files that a process may have: two splits are read, and others open files as well
LEAST, MOST = 16, 4096


class ShardFiles:
    """Reads from files by number; at most ``budget`` are open, and the one that was not read for longest is closed.

    Safe to use from many threads. As many as the budget allows are opened at once, so that a file that is replaced
    later is still read as it was.

    Raises:
        DatasetError: a file does not exist.
    """

    def __init__(self, paths: Sequence[Path], budget: int | None = None) -> None:
        self._paths = paths
        self._budget = budget or open_files_budget()
        self._open: dict[int, _OpenFile] = {}  # in the order in which they were read
        self._lock = threading.Lock()
        for number, path in enumerate(paths):
            if number < self._budget:
                self._file(number)
            elif not path.exists():
                raise _missing(path)

    def read(self, number: int, size: int, offset: int) -> bytes:
        """Up to ``size`` bytes from ``offset`` of a file: fewer where it ends."""
        file = self._file(number)  # held until it has been read, whatever is closed meanwhile
        return os.pread(file.descriptor, size, offset)

    def _file(self, number: int) -> "_OpenFile":
        with self._lock:
            found = self._open.pop(number, None) or _OpenFile(self._paths[number])
            self._open[number] = found
            if len(self._open) > self._budget:
                del self._open[next(iter(self._open))]
            return found


class _OpenFile:
    """Closed once it is not held any more."""

    def __init__(self, path: Path) -> None:
        try:
            self.descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            raise _missing(path) from None
        weakref.finalize(self, os.close, self.descriptor)


def open_files_budget() -> int:
    """How many shards to keep open under the limit of this process."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST if limit == resource.RLIM_INFINITY else min(max(limit // SHARE, LEAST), MOST)


def _missing(path: Path) -> DatasetError:
    return DatasetError(f"{path}: does not exist; restore it with `dvc checkout --force`")
