"""Pretraining on a Ray cluster of two nodes on this machine: what is killed costs, and what Ray costs a step.

    python -m benchmarks.simclr_core.clusters --json benchmarks/results/FILE.json

Kills: one training, interrupted at random moments by SIGKILL for a process, a worker, a node (another one comes), or
the driver, whose command is then started again. Counted are the seconds until a step is done again; at the end no
process is left, and the weights are those of an undisturbed training. Steps: images a second of two workers on the
cluster and of two processes of this machine, in turns.
"""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import yaml

from benchmarks.measure import compared, header, interleaved, parser, spread, write
from tests.conftest import write_prepared
from tests.processes.ray_cluster import Nodes, started

KINDS = ("process", "worker", "node", "driver")
PATIENCE = 300.0  # seconds for anything


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--kills", type=int, default=20, metavar="N", help="default: 20")
    options.add_argument("--rounds", type=int, default=5, metavar="N", help="of the comparison; default: 5")
    given = options.parse_args()
    results: dict[str, Any] = header("clusters", "torch", "ray") | {"load before": round(os.getloadavg()[0], 1)}
    with tempfile.TemporaryDirectory() as folder, started(nodes=2, cores=1) as nodes:
        if given.rounds:
            results["images a second, two workers on Ray to two processes"] = compared(
                interleaved(
                    {
                        "ray": lambda: rate(Path(folder), nodes.variables),
                        "processes": lambda: rate(Path(folder), {"SIMCLR_PROCESSES": "2"}),
                    },
                    given.rounds,
                ),
                1,
            )
        if given.kills:
            results["kills"] = kill(Path(folder), nodes, given.kills)
    print(json.dumps(results, indent=1))
    write(results, given.json)


def rate(folder: Path, variables: Mapping[str, str]) -> float:
    """Of a training of some seconds, without its start."""
    workspace = make(Path(tempfile.mkdtemp(dir=folder)), epochs=20, images=512, ray="RAY_ADDRESS" in variables)
    assert run(workspace, variables).wait(PATIENCE) == 0
    timing: dict[str, float] = json.loads((workspace / ".simclr" / "timings" / "pretrain.json").read_text())
    return timing["images_per_second"]


def kill(folder: Path, nodes: Nodes, count: int) -> dict[str, Any]:
    """Interrupt one training ``count`` times."""
    draw, seconds = random.Random(0), dict[str, list[float]]()
    epochs = 40 * (count + 1)
    undisturbed = make(folder / "undisturbed", epochs, ray=False)
    assert run(undisturbed, {"SIMCLR_PROCESSES": "2"}).wait(20 * PATIENCE) == 0
    workspace, alive = make(folder / "killed", epochs, ray=True), 1
    stage = run(workspace, nodes.variables)
    for number in range(count):
        until(stage, workspace, epochs_done(workspace) + draw.randrange(2, 20))
        kind, began, before = KINDS[number % len(KINDS)], time.monotonic(), epochs_done(workspace)
        if kind == "node":
            nodes.kill(alive)
            nodes.add()
            alive += 1
        elif kind == "driver":
            stage.send_signal(signal.SIGKILL)
            stage.wait()
            gone()
            stage = run(workspace, nodes.variables)
        else:
            process = draw.choice(children())
            os.kill(process.pid if kind == "process" else process.ppid(), signal.SIGKILL)
        until(stage, workspace, before + 1, again=True)
        seconds.setdefault(kind, []).append(time.monotonic() - began)
        print(f"{number + 1} of {count}: {kind}, {seconds[kind][-1]:.1f} s", file=sys.stderr, flush=True)
    assert stage.wait(20 * PATIENCE) == 0
    gone()
    taken = [one for several in seconds.values() for one in several]
    return {
        "kills": count,
        "seconds until a step is done again": {"all": spread(taken, 1)} | {k: spread(v, 1) for k, v in seconds.items()},
        "weights are those of an undisturbed training": weights(workspace) == weights(undisturbed),
        "processes left": len(children()),
    }


def make(workspace: Path, epochs: int, ray: bool, images: int = 96) -> Path:
    write_prepared(workspace, train=images)
    params = yaml.safe_load((workspace / "params.yaml").read_text())
    params["pretrain"] |= {"epochs": epochs, "batch_size": 32 if images > 96 else 16}
    (workspace / "params.yaml").write_text(yaml.safe_dump(params))
    (workspace / ".simclr").mkdir(exist_ok=True)
    if ray:
        (workspace / ".simclr" / "compute.yaml").write_text("pretrain: {engine: ray, workers: 2}\n")
    return workspace


def run(workspace: Path, variables: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "simclr_core", "--workspace", str(workspace), "pretrain"]
    ours = {"SIMCLR_EVENTS": str(workspace / "events"), "OMP_NUM_THREADS": "1"}
    output = (workspace / "output").open("ab")
    return subprocess.Popen(command, env={**os.environ, **ours, **variables}, stdout=output, stderr=output)


def events(workspace: Path) -> list[dict[str, Any]]:
    path = workspace / "events"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def epochs_done(workspace: Path) -> int:
    return max((one.get("epoch", 0) for one in events(workspace)), default=0)


def until(stage: "subprocess.Popen[bytes]", workspace: Path, epoch: int, again: bool = False) -> None:
    """Wait for an epoch; ``again``: for any that is done from now on."""
    count, deadline = len(events(workspace)), time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        found = events(workspace)[count if again else 0 :]
        if any("epoch" in one and (again or one["epoch"] >= epoch) for one in found):
            return
        assert stage.poll() is None, (workspace / "output").read_text()[-2000:]
        time.sleep(0.1)
    raise TimeoutError(f"epoch {epoch} is not done after {PATIENCE:.0f} s")


def children() -> list[psutil.Process]:
    """Of workers, on both nodes."""
    return [
        one
        for one in psutil.process_iter(["cmdline"])
        if any("simclr-worker-" in part for part in one.info["cmdline"] or [])
    ]


def gone() -> None:
    deadline = time.monotonic() + PATIENCE
    while children():
        assert time.monotonic() < deadline, "processes are left"
        time.sleep(0.1)


def weights(workspace: Path) -> str:
    return hashlib.sha256((workspace / "models" / "pretrained" / "encoder.safetensors").read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
