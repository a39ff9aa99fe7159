"""Lock a file or folder for one process at a time. The kernel releases the lock when the process ends."""

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from deploy.errors import LockError
from deploy.failpoint import failpoint

WITHOUT_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)  # what file systems say that have none


def acquire(file: int | IO[str], shared: bool = False) -> bool:
    """Lock an open file or folder without waiting, until this process and those that inherit it close the file.

    Args:
        shared: allow other processes to hold the lock at the same time, if they share it too.

    Returns:
        True if the lock was acquired, False if another process holds it.

    Raises:
        LockError: the file system has no locks.
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise
        raise LockError(
            f"{_named(file)}: its file system has no locks (flock: {error.strerror}), and two processes could write at "
            "the same time; mount it with locks (Lustre: the option flock), or use a folder of another file system"
        ) from error
    return True


@contextmanager
def in_turn(path: Path) -> Iterator[None]:
    """Hold the lock of ``path``, a file or folder that exists, once every process that came before has released it.

    For what takes a moment: a process that is stopped while it holds the lock lets the others wait.

    Raises:
        LockError: the file system has no locks.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if not acquire(descriptor):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def held(path: Path, holder: str, refusal: Callable[[str], Exception]) -> Iterator[IO[str]]:
    """Hold the lock of ``path`` and write ``holder`` into it. Processes that inherit the yielded file hold it too.

    Raises:
        Exception: made by ``refusal`` from the content of the file, if another process holds the lock.
        LockError: the file system has no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        if not acquire(file):
            raise refusal(path.read_text(encoding="utf-8").strip() or "another process")
        if _is_named(path, file):
            sign(file, holder)
            failpoint("lock.held")
            yield file
            return
    with held(path, holder, refusal) as file:  # an old lock was removed between opening and locking it
        yield file


def sign(file: IO[str], holder: str) -> None:
    """Write ``holder``, the description of this process, into a file whose lock it holds."""
    file.seek(0)
    file.truncate()
    file.write(holder)
    file.flush()


def _is_named(path: Path, file: IO[str]) -> bool:
    """Whether the path still leads to the open file: a lock on a removed file would exclude no process."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _named(file: int | IO[str]) -> str:
    if not isinstance(file, int):
        return file.name
    try:
        return str(Path(f"/proc/self/fd/{file}").readlink())
    except OSError:
        return "a file"
