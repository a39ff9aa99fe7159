"""The workspace of the driver follows the folder of a worker: complete things, in order, and nothing else."""

import shutil
from pathlib import Path

import pytest

from deploy.artifact import publish, verify
from simclr_core.compute import returned
from simclr_core.compute.returned import Returned
from simclr_core.compute.worker import Worker

RUN = ".simclr/runs/0123456789abcdef"


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Worker:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    return Worker("node", "127.0.0.1")


@pytest.fixture
def driver(tmp_path: Path) -> Path:
    return tmp_path / "driver"


def save(folder: Path, step: int, content: bytes) -> None:
    with publish(folder / f"step-{step:08d}", replace=True) as work:
        (work / "network.safetensors").write_bytes(content)
        (work / "training.json").write_bytes(b"{}")


def found(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_checkpoints_come_as_they_are_made_and_results_at_the_end(worker: Worker, driver: Path) -> None:
    taken = Returned(driver, worker.read, worker.look().files)
    save(worker.workspace / RUN, 1, b"a" * 100)
    (worker.workspace / "reports").mkdir()
    (worker.workspace / "reports" / "pretrain.json").write_text("{}")
    save(worker.workspace / "models", 7, b"model")
    taken.take(worker.look().files)
    assert {path.split("/")[0] for path in found(driver)} == {".simclr"}
    verify(driver / RUN / "step-00000001")
    save(worker.workspace / RUN, 2, b"b")
    shutil.rmtree(worker.workspace / RUN / "step-00000001")
    taken.take(worker.look().files, last=True)
    assert found(driver) == found(worker.workspace)


def test_a_checkpoint_is_whole_or_not_there(worker: Worker, driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is pruned on the worker while the driver reads it."""
    monkeypatch.setattr(returned, "CHUNK", 8)
    save(worker.workspace / RUN, 1, b"a" * 100)
    files, parts = worker.look().files, []

    def read(name: str, start: int, size: int) -> bytes | None:
        parts.append(name)
        if len(parts) == 5:
            shutil.rmtree(worker.workspace / RUN)
        return worker.read(name, start, size)

    Returned(driver, read, {}).take(files)
    assert found(driver) == {}


def test_what_was_only_moved_is_not_sent_again(worker: Worker, driver: Path) -> None:
    read: list[str] = []

    def reading(name: str, start: int, size: int) -> bytes | None:
        read.append(name)
        return worker.read(name, start, size)

    taken = Returned(driver, reading, {})
    save(worker.workspace / RUN, 1, b"a")
    taken.take(worker.look().files)
    (worker.workspace / RUN).rename(worker.workspace / f"{RUN}.published")
    read.clear()
    taken.take(worker.look().files)
    assert not read
    assert found(driver) == found(worker.workspace)
    assert not (driver / RUN).exists()


def test_curves_grow(worker: Worker, driver: Path) -> None:
    name = ".simclr/tensorboard/key/events.out.tfevents.1"
    read: list[int] = []

    def reading(path: str, start: int, size: int) -> bytes | None:
        read.append(start)
        return worker.read(path, start, size)

    taken = Returned(driver, reading, {})
    for content in (b"one", b"onetwo"):
        worker.write(name, content)
        taken.take(worker.look().files)
    assert found(driver) == {name: b"onetwo"}
    assert 3 in read


def test_what_the_worker_was_given_is_left_where_it_is(worker: Worker, driver: Path) -> None:
    save(driver / RUN, 1, b"a")
    for name, content in found(driver).items():
        worker.write(name, content)
    before = (driver / RUN / "step-00000001").stat().st_mtime_ns
    Returned(driver, worker.read, worker.look().files).take(worker.look().files)
    assert (driver / RUN / "step-00000001").stat().st_mtime_ns == before
