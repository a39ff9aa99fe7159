"""The objects of a bucket are read many at once, each of them once, in the order of the listing."""

import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipeline.ingest.files.reading import READERS, Spool, read_ahead
from pipeline.ingest.ingest import ingest
from pipeline.ingest.raw import batches, tars
from pipeline.workspace import Workspace
from tests.conftest import draw, encode
from tests.pipeline.retraining.bucket import Bucket, bucket, upload


def test_results_come_in_order_and_few_wait() -> None:
    begun: list[int] = []

    def double(value: int) -> int:
        begun.append(value)
        return 2 * value

    with ThreadPoolExecutor(3) as pool:
        results = read_ahead(pool, double, iter(range(50)), 4)
        assert next(results) == 0
        assert len(begun) <= 4
        assert [0, *results] == [2 * value for value in range(50)]


def test_a_fault_of_one_call_is_raised_in_its_turn() -> None:
    with ThreadPoolExecutor(2) as pool:
        results = read_ahead(pool, lambda value: 1 // value, [1, 0, 1], 2)
        assert next(results) == 1
        with pytest.raises(ZeroDivisionError):
            next(results)


def test_a_spool_gives_back_what_it_was_given_and_leaves_nothing(tmp_path: Path) -> None:
    values = {("base", str(number)): os.urandom(number) for number in range(5)}
    with Spool(tmp_path / "scratch") as spool:
        assert spool.read(("base", "0")) is None
        assert not (tmp_path / "scratch").exists()
        for key, data in values.items():
            spool.keep(key, data)
        assert {key: spool.read(key) for key in values} == values
        assert spool.read(("other", "0")) is None
        assert list((tmp_path / "scratch").iterdir()) == [], "a kill leaves nothing behind"


def test_a_spool_is_read_by_many_threads_while_one_keeps(tmp_path: Path) -> None:
    """As where a folder of a bucket and a glob of it are two sources."""
    values = {("base", str(number)): os.urandom(100_000) for number in range(64)}
    with Spool(tmp_path) as spool, ThreadPoolExecutor(READERS) as pool:
        for key, data in values.items():
            spool.keep(key, data)
        for key, data in read_ahead(pool, lambda key: (key, spool.read(key)), list(values) * 3, 2 * READERS):
            assert data == values[key]
            spool.keep(key, data)


@pytest.mark.seconds
def test_a_bucket_is_asked_by_many_readers_once_for_each_object(
    workspace: Workspace, empty_workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the batch is the one that a folder with the same files gives."""
    barrier, lock = threading.Barrier(READERS, timeout=20), threading.Lock()
    met: list[int] = []

    def read(self: Any, path: str, *arguments: Any, **options: Any) -> bytes:
        with lock:
            met.append(len(met))
            first = len(met) <= READERS
        if first:
            barrier.wait()  # broken, unless that number of requests runs at a time
        return cat_file(self, path, *arguments, **options)

    cat_file = Bucket.cat_file
    copy = tmp_path / "camera"
    copy.mkdir()
    with bucket() as made:
        for number in (*range(READERS + 8), 0):
            name, data = f"{number:02d}{len(made.objects)}.png", encode(draw(number % 4, number))
            upload(f"camera/{name}", data)
            (copy / name).write_bytes(data)
        monkeypatch.setattr(made, "cat_file", read)
        assert ingest(workspace, ["bucket://camera"]).new_images == READERS + 8
        assert sorted(made.read) == sorted(made.objects)
    [from_bucket] = batches(workspace.raw)
    assert ingest(workspace, [str(copy)]).new_images == 0
    other = Workspace(shutil.copytree(empty_workspace, tmp_path / "other", symlinks=True))
    assert ingest(other, [str(copy)]).new_images == READERS + 8
    [from_folder] = batches(other.raw)
    assert [tar.read_bytes() for tar in tars(from_bucket)] == [tar.read_bytes() for tar in tars(from_folder)]
