"""Shards are read whatever the limit of open files; what a thread reads stays open under it."""

import gc
import resource
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from simclr_core.data import shard_files
from simclr_core.data.shard_files import ShardFiles, open_files_budget
from simclr_core.errors import DatasetError


@pytest.fixture
def few_files() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def written(folder: Path, count: int) -> list[Path]:
    paths = [folder / f"{number}.tar" for number in range(count)]
    for number, path in enumerate(paths):
        path.write_bytes(f"shard {number:04}".encode())
    return paths


def open_now() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.usefixtures("few_files")
def test_two_thousand_shards_under_a_limit_of_256(tmp_path: Path) -> None:
    gc.collect()  # what earlier tests have left open
    before = open_now()
    files = [ShardFiles(written(tmp_path, 2000)) for _ in range(2)]  # training and test images
    for one in files:
        for number in [*range(2000), 0, 1999]:
            assert one.read(number, 10, 6) == f"{number:04}".encode()
    assert open_now() - before <= 2 * 256 // shard_files.SHARE
    del files, one
    assert open_now() == before


def test_many_threads_read_while_files_are_closed_for_others(tmp_path: Path) -> None:
    files = ShardFiles(written(tmp_path, 9), budget=2)
    numbers = np.random.default_rng(0).integers(0, 9, 3000).tolist()
    with ThreadPoolExecutor(8) as threads:
        read = list(threads.map(lambda number: files.read(number, 4, 6), numbers))
    assert read == [f"{number:04}".encode() for number in numbers]


def test_a_file_is_read_although_it_was_given_up_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = ShardFiles(written(tmp_path, 3), budget=1)
    reading, given_up = threading.Event(), threading.Event()
    pread = shard_files.os.pread

    def slow(descriptor: int, size: int, offset: int) -> bytes:
        reading.set()
        assert given_up.wait(timeout=60)
        return pread(descriptor, size, offset)

    monkeypatch.setattr(shard_files.os, "pread", slow)
    with ThreadPoolExecutor(1) as thread:
        first = thread.submit(files.read, 0, 4, 6)
        assert reading.wait(timeout=60)
        files._file(1), files._file(2)
        given_up.set()
        assert first.result() == b"0000"


def test_the_file_that_was_not_read_for_longest_is_closed(tmp_path: Path) -> None:
    files = ShardFiles(written(tmp_path, 4), budget=3)
    for number in (0, 1, 0, 2, 3):
        files.read(number, 4, 6)
    assert list(files._open) == [0, 2, 3]


@pytest.mark.parametrize("budget", [1, 5])
def test_a_missing_shard_is_found_at_once(tmp_path: Path, budget: int) -> None:
    paths = written(tmp_path, 3)
    paths[2].unlink()
    with pytest.raises(DatasetError, match=r"2\.tar: does not exist; restore it with `dvc checkout --force`"):
        ShardFiles(paths, budget)


def test_a_shard_that_is_removed_later_is_named(tmp_path: Path) -> None:
    paths = written(tmp_path, 3)
    files = ShardFiles(paths, budget=1)
    paths[2].unlink()
    with pytest.raises(DatasetError, match=r"2\.tar: does not exist"):
        files.read(2, 4, 6)


def test_the_budget_is_a_share_of_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit, budget in ((1024, 256), (20, 16), (10**6, 4096), (resource.RLIM_INFINITY, 4096)):
        monkeypatch.setattr(shard_files.resource, "getrlimit", lambda _, soft=limit: (soft, soft))
        assert open_files_budget() == budget
