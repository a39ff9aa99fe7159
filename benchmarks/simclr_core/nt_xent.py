"""NT-Xent against lightly's and pytorch-metric-learning's: time and memory of forward and backward, in one run.

    make bench                                       or, with options:
    python -m benchmarks.simclr_core.nt_xent --json benchmarks/results/FILE.json

All losses get the same projections and have to agree in loss and gradient before anything is timed; then they take
turns. Memory is the peak that one fresh process needs on top of the same process before the loss. A loss that would
need more than ``--memory`` gigabytes is left out, which is said.
"""

import json
import math
import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from benchmarks import measure
from simclr_core.loss.nt_xent import nt_xent

DIMENSION = 128
TEMPERATURE = 0.1
ROWS = (512, 1024, 2048, 4096, 8192, 16384)  # views in the batch: twice the images
TARGETS = {8192: {"megabytes": 30, "seconds": 4}, 16384: {"megabytes": 50}}  # times less than lightly
ROUNDS = 5
# Bytes at the peak: lightly holds four matrices of float32, rows x rows, and a little; the other compares each positive
# with each negative pair, which takes 17.4 GB at 1,024 rows.
BYTES: dict[str, Callable[[int], float]] = {
    "lightly": lambda rows: 4.3 * 4 * rows**2,
    "pytorch-metric-learning": lambda rows: 16.2 * rows**3,
}

Loss = Callable[[Tensor, Tensor], Tensor]


def ours() -> Loss:
    return lambda first, second: nt_xent(first, second, TEMPERATURE)


def lightly() -> Loss:
    from lightly.loss import NTXentLoss

    loss: Loss = NTXentLoss(temperature=TEMPERATURE)
    return loss


def metric_learning() -> Loss:
    from pytorch_metric_learning.losses import NTXentLoss, SelfSupervisedLoss

    loss: Loss = SelfSupervisedLoss(NTXentLoss(temperature=TEMPERATURE))
    return loss


OURS, PEER = "simclr-pipeline", "lightly"
LOSSES: dict[str, Callable[[], Loss]] = {OURS: ours, PEER: lightly, "pytorch-metric-learning": metric_learning}


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


def assert_equal(rows: int, names: list[str]) -> None:
    """Loss and gradient agree to 1e-5, the gradient relative to its largest entry."""
    results = [step(LOSSES[name](), *projections(rows)) for name in names]
    loss, gradient = results[0]
    for other_loss, other_gradient in results[1:]:
        torch.testing.assert_close(other_loss, loss, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(other_gradient, gradient, atol=1e-5 * float(gradient.abs().max()), rtol=1e-5)


def taken(rows: int, names: list[str]) -> dict[str, dict[str, list[float]]]:
    """Seconds, and seconds of processor time, of each round; the losses take turns, and the first round warms up."""
    losses = {name: LOSSES[name]() for name in names}
    first, second = projections(rows)
    found: dict[str, dict[str, list[float]]] = {name: {"seconds": [], "cpu_seconds": []} for name in names}
    for number in range(ROUNDS + 1):
        for name, loss in losses.items():
            started, busy = time.perf_counter(), measure.cpu_seconds()
            step(loss, first, second)
            if number:
                found[name]["seconds"].append(time.perf_counter() - started)
                found[name]["cpu_seconds"].append(measure.cpu_seconds() - busy)
    return found


def peak_megabytes(name: str, rows: int) -> float:
    """What one forward and backward adds to the peak of this process, which has already run a small one."""
    loss = LOSSES[name]()
    step(loss, *projections(64))
    first, second = projections(rows)
    measure.forget_peak()
    before = measure.megabytes("VmRSS")
    step(loss, first, second)
    return measure.megabytes("VmHWM") - before


def compared(rows: int, memory: float) -> dict[str, Any]:
    """One row of the table: medians and spread, and how many times less time and memory ours takes than each peer."""
    installed = [name for name in LOSSES if name == OURS or find_spec(name.replace("-", "_"))]
    names = [name for name in installed if name not in BYTES or BYTES[name](rows) <= memory * 2**30]
    assert_equal(rows, names)
    result: dict[str, Any] = {"rows": rows, "left_out": [name for name in installed if name not in names]}
    times = taken(rows, names)
    for name in names:
        peak = measure.in_fresh_process(peak_megabytes, name, rows)
        result[name] = {what: measure.spread(values) for what, values in times[name].items()}
        result[name]["peak_megabytes"] = round(peak, 1)
    for name in names[1:]:
        ratios = {
            what: round(statistics.median(a / b for a, b in zip(times[name][what], times[OURS][what], strict=True)), 2)
            for what in ("seconds", "cpu_seconds")
        }
        peaks = result[name]["peak_megabytes"] / result[OURS]["peak_megabytes"]
        result[name]["times_ours"] = ratios | {"megabytes": round(peaks, 1)}
    return result


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--memory", type=float, default=8.0, metavar="GIGABYTES", help="for one loss; default: 8")
    parser.add_argument("--rows", type=int, nargs="*", default=ROWS)
    options = parser.parse_args()
    results = measure.header("nt_xent", "torch", "lightly", "pytorch-metric-learning")
    results |= {"threads": torch.get_num_threads(), "results": []}
    for rows in options.rows:
        result = compared(rows, options.memory)
        for what, target in TARGETS.get(rows, {}).items():
            reached = result.get(PEER, {}).get("times_ours", {}).get(what, math.nan)
            result.setdefault("targets", {})[what] = {"at_least": target, "reached": reached}
        results["results"].append(result)
        print(json.dumps(result), flush=True)
    measure.write(results, options.json)


if __name__ == "__main__":
    main()
