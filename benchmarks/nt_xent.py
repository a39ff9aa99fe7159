"""NT-Xent against lightly's NTXentLoss: time and memory of forward and backward, interleaved in one run.

    make bench                                       or, with options:
    python -m benchmarks.nt_xent --json benchmarks/results/FILE.json

Both losses get the same projections and have to agree in loss and gradient before anything is timed. Memory is the peak
that one fresh process needs on top of the same process before the loss.
"""

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simclr_core.nt_xent import nt_xent

DIMENSION = 128
TEMPERATURE = 0.1
ROWS = (1024, 2048, 4096, 8192)  # views in the batch: twice the images
ROUNDS = 5

Loss = Callable[[Tensor, Tensor], Tensor]


def ours() -> Loss:
    return lambda first, second: nt_xent(first, second, TEMPERATURE)


def lightly() -> Loss:
    from lightly.loss import NTXentLoss

    loss: Loss = NTXentLoss(temperature=TEMPERATURE)
    return loss


LOSSES: dict[str, Callable[[], Loss]] = {"simclr-pipeline": ours, "lightly": lightly}


def projections(rows: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    first = torch.randn(rows // 2, DIMENSION, generator=generator)
    second = first + torch.randn(rows // 2, DIMENSION, generator=generator)
    return first.requires_grad_(), second.requires_grad_()


def step(loss: Loss, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    first.grad = second.grad = None
    value = loss(first, second)
    value.backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
    assert first.grad is not None
    return value.detach(), first.grad


def assert_equal(rows: int) -> None:
    results = [step(make(), *projections(rows)) for make in LOSSES.values()]
    torch.testing.assert_close(*(loss for loss, _ in results), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(*(gradient for _, gradient in results), atol=1e-7, rtol=1e-4)


def seconds(rows: int) -> dict[str, list[float]]:
    """Seconds of each round; the losses take turns."""
    losses = {name: make() for name, make in LOSSES.items()}
    first, second = projections(rows)
    taken: dict[str, list[float]] = {name: [] for name in losses}
    for number in range(ROUNDS + 1):
        for name, loss in losses.items():
            started = time.perf_counter()
            step(loss, first, second)
            if number:  # the first round warms up
                taken[name].append(time.perf_counter() - started)
    return taken


def peak_megabytes(name: str, rows: int) -> float:
    """What one forward and backward adds to the peak of a process that has already run a small one."""
    with multiprocessing.get_context("spawn").Pool(1) as process:
        return process.apply(_peak, (name, rows))


def _peak(name: str, rows: int) -> float:
    loss = LOSSES[name]()
    step(loss, *projections(64))
    first, second = projections(rows)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far, also that of the parent, is forgotten (proc(5))
    before = _kilobytes("VmRSS")
    step(loss, first, second)
    return (_kilobytes("VmHWM") - before) / 1024


def _kilobytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def measure() -> dict[str, Any]:
    results = []
    for rows in ROWS:
        assert_equal(rows)
        taken = seconds(rows)
        row: dict[str, Any] = {"rows": rows}
        for name, rounds in taken.items():
            row[name] = {
                "seconds_median": round(statistics.median(rounds), 4),
                "seconds_spread": [round(min(rounds), 4), round(max(rounds), 4)],
                "peak_megabytes": round(peak_megabytes(name, rows), 1),
            }
        ratios = [other / mine for mine, other in zip(*taken.values(), strict=True)]
        row["times_faster_median"] = round(statistics.median(ratios), 2)
        results.append(row)
        print(json.dumps(row), flush=True)
    machine = f"{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores"
    versions = {name: version(name) for name in ("torch", "lightly")}
    return {
        "benchmark": "nt_xent",
        "machine": machine,
        "threads": torch.get_num_threads(),
        **versions,
        "results": results,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    arguments = parser.parse_args()
    results = measure()
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
