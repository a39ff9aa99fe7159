"""Stages on a cluster of two nodes of this machine: the same bytes as its processes give, whatever is killed."""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import pytest

from tests.conftest import write_prepared
from tests.processes import ray_cluster as clusters
from tests.processes.busy import stretched
from tests.simclr_core.conftest import configure

DEADLINE = 120
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def nodes() -> Iterator[clusters.Nodes]:
    """Two, each with room for two workers."""
    with clusters.started(nodes=2, cores=2) as started:
        yield started


class Stage:
    """``python -m simclr_core STAGE`` in a workspace, and what it says."""

    def __init__(self, workspace: Path, *arguments: str, **variables: str) -> None:
        self.workspace = workspace
        environment = {**os.environ, "SIMCLR_EVENTS": str(workspace / "events"), **variables}
        command = [sys.executable, "-m", "simclr_core", "--workspace", str(workspace), *arguments]
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def wait(self) -> int:
        self.output, self.errors = self.process.communicate(timeout=stretched(DEADLINE))
        return self.process.returncode

    def until(self, text: str) -> None:
        """Wait until its events have the text."""
        events = self.workspace / "events"
        until(lambda: (events.exists() and text in events.read_text()) or self.process.poll() is not None)
        assert self.process.poll() is None, self.process.communicate()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + stretched(DEADLINE)
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def children() -> list[psutil.Process]:
    """Those of workers, wherever they are."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if "simclr_core" in command and any("simclr-worker-" in part for part in command):
            found.append(process)
    return found


def place(workspace: Path, workers: int, stage: str = "pretrain", **wanted: object) -> Path:
    settings = {stage: {"engine": "ray", "workers": workers, **wanted}}
    (workspace / ".simclr").mkdir(exist_ok=True)
    (workspace / ".simclr" / "compute.yaml").write_text(json.dumps(settings))
    return workspace


def results(workspace: Path) -> dict[str, str]:
    found = [path for name in ("models", "reports") for path in (workspace / name).rglob("*") if path.is_file()]
    return {path.relative_to(workspace).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


@cache
def expected(processes: int) -> dict[str, str]:
    """Of the same training in processes of this machine."""
    with TemporaryDirectory() as name:
        workspace = write_prepared(Path(name))
        stage = Stage(workspace, "pretrain", SIMCLR_PROCESSES=str(processes))
        assert stage.wait() == 0, stage.errors
        return results(workspace)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_bytes_are_those_of_as_large_a_group_of_processes(
    nodes: clusters.Nodes, prepared: Path, workers: int
) -> None:
    stage = Stage(place(prepared, workers, cpus=2 if workers == 2 else 1), "pretrain", **nodes.variables)
    assert stage.wait() == 0, stage.errors
    assert results(prepared) == expected(workers)
    ran = json.loads((prepared / ".simclr" / "ran" / "pretrain.json").read_text())
    assert (ran["engine"], ran["workers"], ran["attempts"]) == ("ray", workers, 1)
    assert len(ran["nodes"]) == min(workers, 2)
    assert not children()


@pytest.mark.parametrize("killed", ["process", "worker"])
def test_it_continues_from_the_last_checkpoint(nodes: clusters.Nodes, prepared: Path, killed: str) -> None:
    place(prepared, 2, cpus=2)
    configure(prepared, epochs=40)
    whole = write_prepared(prepared.parent / "whole")
    configure(whole, epochs=40)
    local = Stage(whole, "pretrain", SIMCLR_PROCESSES="2")
    stage = Stage(prepared, "pretrain", **nodes.variables)
    stage.until('"epoch": 2')
    [victim] = [one for one in children() if one.environ()["RANK"] == "1"]
    (victim if killed == "process" else victim.parent()).kill()
    assert stage.wait() == 0, stage.errors
    assert "beginning again from step" in stage.errors
    assert local.wait() == 0, local.errors
    assert results(prepared) == results(whole)
    assert not children()
