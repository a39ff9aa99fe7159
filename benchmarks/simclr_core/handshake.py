"""How soon two nodes that would train different things say so: seconds from the start until both have ended.

    python -m benchmarks.simclr_core.handshake --json benchmarks/results/FILE.json

Two processes of this machine, each with its own copy of the files, as two nodes without a common disk. The second one
has another learning rate, two images exchanged, or another version of the package. Both have to end with one sentence,
which is the same on both, and to have trained nothing. ``imports`` are the seconds of two processes that only import
what pretraining imports, in turns with the others.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks import measure
from benchmarks.simclr_core.pretrain import COMMON, SMALL, write_prepared
from simclr_core.pretraining import initial

ROOT = Path(__file__).parents[2]
IMAGES, TEST_IMAGES, ROUNDS = 2000, 64, 3
PATIENCE = 120.0  # seconds
IMPORTS = ("-c", "import simclr_core.pretraining.pretrain")
OTHER_VERSION = "simclr_pipeline-9.9.9.dist-info"


def main() -> None:
    options = measure.parser(__doc__).parse_args()
    with measure.kept_folder(None) as folder:
        first, second = folder / "first", folder / "second"
        write_prepared(first / "data" / "prepared", IMAGES, TEST_IMAGES)
        write_params(first)
        initial.run(first)
        said: dict[str, str] = {}

        def differing(name: str, change: Callable[[Path], Mapping[str, str]]) -> float:
            shutil.rmtree(second, ignore_errors=True)
            shutil.copytree(first, second)
            seconds, said[name] = refused(first, second, change(second))
            return seconds

        changes = {"learning rate": write_other_rate, "image": exchange_images, "version": install_other_version}
        measurements = {name: partial(differing, name, change) for name, change in changes.items()}
        seconds = measure.interleaved({**measurements, "imports": imports}, ROUNDS)
        results: dict[str, Any] = measure.header("handshake", "torch") | {"load": round(os.getloadavg()[0], 1)}
        results |= {name: measure.spread(taken, 1) | {"said": said.get(name)} for name, taken in seconds.items()}
        print(results)
        measure.write(results, options.json)


def write_params(workspace: Path, **changes: object) -> None:
    parameters = {"pretrain": COMMON | SMALL | {"epochs": 1} | changes, "watch": {}}
    (workspace / "params.yaml").write_text(yaml.safe_dump(parameters), encoding="utf-8")


def write_other_rate(workspace: Path) -> Mapping[str, str]:
    write_params(workspace, learning_rate=0.123)
    return {}


def exchange_images(workspace: Path) -> Mapping[str, str]:
    path = workspace / "data" / "prepared" / "train" / "index.npy"
    index = np.load(path)
    index[[0, 1]] = index[[1, 0]]
    np.save(path, index)
    return {}


def install_other_version(workspace: Path) -> Mapping[str, str]:
    """What an environment with another version says of itself."""
    about = workspace / "site" / OTHER_VERSION
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: simclr-pipeline\nVersion: 9.9.9\n", encoding="utf-8")
    return {"PYTHONPATH": str(about.parent)}


def refused(first: Path, second: Path, environment: Mapping[str, str]) -> tuple[float, str]:
    """Start both nodes: seconds until both have ended, and what both said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    command = ("-m", "simclr_core", "--workspace")
    nodes: list[tuple[int, Path, Mapping[str, str]]] = [(0, first, {}), (1, second, environment)]
    began = time.perf_counter()
    processes = [
        started((*command, str(where), "pretrain"), {**group, "RANK": str(rank), "LOCAL_RANK": "0", **own})
        for rank, where, own in nodes
    ]
    lines = [process.communicate(timeout=PATIENCE)[1].strip().splitlines()[-1] for process in processes]
    seconds = time.perf_counter() - began
    assert all(process.returncode for process in processes), "they have trained"
    assert lines[0] == lines[1], lines
    return seconds, lines[0].replace(socket.gethostname(), "host")


def imports() -> float:
    began = time.perf_counter()
    for process in [started(IMPORTS, {}), started(IMPORTS, {})]:
        process.communicate(timeout=PATIENCE)
    return time.perf_counter() - began


def started(arguments: tuple[str, ...], environment: Mapping[str, str]) -> "subprocess.Popen[str]":
    path = os.pathsep.join([*filter(None, [environment.get("PYTHONPATH")]), str(ROOT)])
    whole = {**os.environ, **environment, "PYTHONPATH": path}
    return subprocess.Popen([sys.executable, *arguments], env=whole, stderr=subprocess.PIPE, text=True)


if __name__ == "__main__":
    main()
