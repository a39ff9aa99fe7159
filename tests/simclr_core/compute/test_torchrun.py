"""Two machines of an allocation, here two commands on the loopback, each in a workspace that the other does not see."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from simclr_core.compute.worker import Worker
from tests.conftest import write_prepared
from tests.processes.busy import stretched
from tests.simclr_core.conftest import results

DEADLINE = 90


def start(workspace: Path, **variables: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "simclr_core", "--workspace", str(workspace), "pretrain"]
    return subprocess.Popen(command, env={**os.environ, **variables}, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_the_first_node_has_the_bytes_of_two_processes_and_the_second_has_nothing(tmp_path: Path) -> None:
    local, first, second = (write_prepared(tmp_path / name) for name in ("local", "first", "second"))
    port = Worker("first", "127.0.0.1").free_port()
    place = {"pretrain": {"engine": "torchrun", "nodes": 2, "address": f"127.0.0.1:{port}"}}
    for workspace in (first, second):
        (workspace / ".simclr").mkdir(exist_ok=True)
        (workspace / ".simclr" / "compute.yaml").write_text(json.dumps(place))
    nodes = [start(workspace, SIMCLR_NODE=str(number)) for number, workspace in enumerate((first, second))]
    for process in nodes:
        _, errors = process.communicate(timeout=stretched(DEADLINE))
        assert process.returncode == 0, errors
    alone = start(local, SIMCLR_PROCESSES="2")
    _, errors = alone.communicate(timeout=stretched(DEADLINE))
    assert alone.returncode == 0, errors
    assert results(first) == results(local)
    assert results(second) == {}
    assert json.loads((first / ".simclr" / "ran" / "pretrain.json").read_text())["engine"] == "torchrun"
