"""A lock of a file, and a file system that has none."""

import errno
import fcntl
from pathlib import Path

import pytest

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
