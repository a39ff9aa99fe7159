"""A lock of a file, and a file system that has none."""

import errno
import fcntl
from pathlib import Path
from typing import IO

import pytest

from deploy import lock
from deploy.errors import LockError
from deploy.lock import acquire, held


@pytest.fixture
def without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Lustre mounted without the option flock."""

    def flock(file: object, operation: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.usefixtures("without_locks")
def test_a_file_system_without_locks_is_named_with_the_file(tmp_path: Path) -> None:
    with pytest.raises(LockError) as caught, held(tmp_path / "lock", "this test", RuntimeError):
        pass
    assert str(caught.value) == (
        f"{tmp_path}/lock: its file system has no locks (flock: Function not implemented), and two processes could "
        "write at the same time; mount it with locks (Lustre: the option flock), or use a folder of another file system"
    )
    with (tmp_path / "lock").open() as file, pytest.raises(LockError, match=f"{tmp_path}/lock: "):
        acquire(file.fileno())


def test_another_fault_stays_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(file: object, operation: int) -> None:
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr(fcntl, "flock", flock)
    with (tmp_path / "lock").open("w") as file, pytest.raises(OSError, match="Bad file descriptor"):
        acquire(file)


def test_the_second_holder_is_refused_with_the_name_of_the_first(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with (
        held(path, "the first", RuntimeError),
        pytest.raises(RuntimeError, match="the first"),
        held(path, "the second", RuntimeError),
    ):
        pass


def test_a_lock_that_was_removed_while_it_was_waited_for_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ``simclr gc`` removes an old one, between the opening of its file and the lock on it."""
    path, removed = tmp_path / "lock", []
    original = lock.acquire

    def acquire(file: IO[str]) -> bool:
        if not removed:
            removed.append(path.unlink())
        return original(file)

    monkeypatch.setattr(lock, "acquire", acquire)
    with held(path, "the first", RuntimeError):
        assert path.read_text() == "the first"
        with pytest.raises(RuntimeError, match="the first"), held(path, "the second", RuntimeError):
            pass
