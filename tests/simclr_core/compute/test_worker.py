"""A worker runs a stage in a separate folder, and leaves nothing behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from simclr_core.compute.inputs import INPUTS, Shared, shared
from simclr_core.compute.worker import PREFIX, Worker, remove_abandoned, versions
from simclr_core.errors import LaunchError
from tests.conftest import write_prepared
from tests.processes.alive import is_alive
from tests.processes.busy import stretched
from tests.simclr_core.conftest import configure

ROOT = Path(__file__).parents[3]


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Worker:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    return Worker("node", "127.0.0.1")


def test_the_inputs_of_a_stage_are_those_of_dvc() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert {name: tuple(stages[name]["deps"]) for name in INPUTS} == INPUTS


def test_a_shared_path_is_used_if_it_is_what_the_driver_has(prepared: Path, worker: Worker, tmp_path: Path) -> None:
    sources = shared(prepared, "pretrain")
    assert worker.prepare(b"pretrain: {}", sources) == ""
    assert (worker.workspace / "data" / "prepared").resolve() == prepared / "data" / "prepared"
    assert worker.look().files == {}  # what it was given is not what it has made
    with pytest.raises(LaunchError, match="is not there; mount the workspace"):
        Shared("data", tmp_path / "none", "").place(tmp_path)
    (prepared / "data" / "prepared" / "dataset.json").write_text("{}")
    assert "is not what the driver has" in Worker("node", "127.0.0.1").prepare(b"", sources)


@pytest.mark.seconds
def test_a_stage_runs_and_its_words_come_back(prepared: Path, worker: Worker) -> None:
    configure(prepared, epochs=1)
    assert worker.prepare((prepared / "params.yaml").read_bytes(), shared(prepared, "pretrain")) == ""
    assert worker.run(["pretrain"], {}).code == 0
    look = worker.look()
    assert look.output.startswith(b"epoch 1/1")
    assert b'"event": "end"' in look.events
    assert str(worker.workspace).encode() not in look.output + look.errors + look.events
    assert {"models/pretrained", "reports/pretrain.json", ".simclr/timings/pretrain.json"} <= set(look.files)
    assert worker.look().output == b""


@pytest.mark.seconds
def test_an_error_is_one_sentence(worker: Worker) -> None:
    worker.prepare(b"pretrain: {epochs: -1}", [])
    ended = worker.run(["pretrain"], {})
    assert ended.code == 2
    assert ended.said.startswith("./params.yaml: pretrain.epochs: given -1")


@pytest.mark.seconds
def test_the_child_ends_with_the_worker(tmp_path: Path) -> None:
    prepared = write_prepared(tmp_path / "w")
    configure(prepared, epochs=10_000)
    code = f"""
import sys, threading, time
from pathlib import Path
from simclr_core.compute.inputs import shared
from simclr_core.compute.worker import Worker
worker, prepared = Worker("node", "127.0.0.1"), Path({str(prepared)!r})
worker.prepare((prepared / "params.yaml").read_bytes(), shared(prepared, "pretrain"))
place = dict(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(worker.free_port()))
threading.Thread(target=worker.run, args=(["pretrain"], place), daemon=True).start()
while b"epoch" not in worker.look().output:
    time.sleep(0.05)
print(worker._child.pid, flush=True)
time.sleep(1000)
"""
    variables = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", code], env=variables, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + stretched(10)
    while is_alive(child):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_folders_of_killed_workers_are_removed(worker: Worker, tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    abandoned = tmp_path / "tmp" / f"{PREFIX}{ended.pid}-x"
    abandoned.mkdir()
    remove_abandoned()
    assert not abandoned.exists()
    assert worker.workspace.exists()
    worker.close()
    assert not worker.workspace.exists()


def test_a_port_can_be_met() -> None:
    assert Worker("node", "127.0.0.1").free_port() > 0
    assert {"python", "torch", "simclr-pipeline"} == set(versions())
