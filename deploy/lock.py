"""A file or folder that one process at a time holds. The kernel frees it when the process is gone."""

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from deploy.failpoint import failpoint


def acquire(file: int | IO[str], shared: bool = False) -> bool:
    """Lock an open file or folder, without waiting, until it is closed here and in the processes that inherit it.

    Args:
        shared: the lock may be held by others who share it, and by no other.

    Returns:
        Whether it is locked now; False when another process holds it.
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def held(path: Path, holder: str, refusal: Callable[[str], Exception]) -> Iterator[IO[str]]:
    """Hold ``path``, signed with ``holder``. Processes that inherit the yielded file hold it too.

    Raises:
        What ``refusal`` makes of the signature of another process, if that one holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        if not acquire(file):
            raise refusal(path.read_text(encoding="utf-8").strip() or "another process")
        sign(file, holder)
        failpoint("lock.held")
        yield file


def sign(file: IO[str], holder: str) -> None:
    """Sign a file that this process holds."""
    file.seek(0)
    file.truncate()
    file.write(holder)
    file.flush()
