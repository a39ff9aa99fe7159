"""A pretraining step on a busy machine: threads of OpenMP that spin, that sleep, and that wait as our stages let them.

    python -m benchmarks.simclr_core.busy_machine --json benchmarks/results/FILE.json

Forward and backward pass of the demo's network, 256 images, two views each, float32: on a quiet machine, next to one
process that keeps a core busy, and next to six. Fresh processes take turns in each situation. Two processes of one
thread each share the images, without the exchange that a training needs: a bound of what that could gain.
"""

import json
import operator
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

from benchmarks.measure import header, interleaved, parser, spread, write
from simclr_core.machine import wait_policy

SITUATIONS = {"quiet": (0, 14, 3), "one busy core": (1, 8, 1), "load of six": (6, 6, 1)}
"""Busy processes, rounds, steps a turn."""
DEFAULT: dict[str, str] = {}
PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
OURS = {"GOMP_SPINCOUNT": wait_policy.SPINS}
IMAGES = 256
BUSY = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: sum(range(100_000))"


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--only", choices=SITUATIONS, help="one situation: a machine is seldom quiet for long")
    options.add_argument("--serve-steps", type=int, metavar="IMAGES", help="be one of the processes that are measured")
    given = options.parse_args()
    if given.serve_steps:
        serve_steps(given.serve_steps)
        return
    results: dict[str, Any] = header("busy_machine", "torch") | {"images": IMAGES, "views": 2}
    for situation in [given.only] if given.only else SITUATIONS:
        before = os.getloadavg()[0]  # what others do here already
        results[situation] = {"load before": round(before, 1)} | measure(*SITUATIONS[situation])
        print(situation, json.dumps(results[situation], indent=1))
    write(results, given.json)


def measure(busy: int, rounds: int, steps: int) -> dict[str, Any]:
    """Milliseconds of a step by policy, next to ``busy`` processes; ratios are to the better of the first two."""
    one_thread = OURS | {"OMP_NUM_THREADS": "1"}
    with (
        busy_processes(busy),
        Stepper(DEFAULT) as default,
        Stepper(PASSIVE) as passive,
        Stepper(OURS) as ours,
        Stepper(one_thread, IMAGES // 2) as first,
        Stepper(one_thread, IMAGES // 2) as second,
    ):
        turns = {"default": [default], "passive": [passive], "ours": [ours], "two processes": [first, second]}
        values = interleaved({name: turn(steppers, steps) for name, steppers in turns.items()}, rounds)
    better = min(list(values.values())[:2], key=statistics.median)
    return {
        name: spread(taken, 1) | {"over the better": round(statistics.median(map(operator.truediv, taken, better)), 3)}
        for name, taken in values.items()
    }


def turn(steppers: list["Stepper"], steps: int) -> Callable[[], float]:
    """All of them make ``steps`` steps at once: milliseconds of a step of the slowest."""

    def milliseconds() -> float:
        for stepper in steppers:
            stepper.begin(steps)
        return max(stepper.end() for stepper in steppers)

    return milliseconds


class Stepper:
    """A separate process that makes steps when asked."""

    def __init__(self, policy: Mapping[str, str], images: int = IMAGES) -> None:
        others = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.simclr_core.busy_machine", "--serve-steps", str(images)],
            env=others | dict(policy),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # closes its input, which ends it

    def begin(self, steps: int) -> None:
        assert self._process.stdin
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()

    def end(self) -> float:
        return float(self._answer())

    def _answer(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline().strip()


def serve_steps(images: int) -> None:
    """Make the number of steps that each line of standard input says, and print the median of their milliseconds."""
    step = build_step(images)
    print(step(), flush=True)
    for line in sys.stdin:
        print(statistics.median(step() for _ in range(int(line))), flush=True)


def build_step(images: int) -> Callable[[], float]:
    import torch
    from torch import nn

    from simclr_core.loss.nt_xent import nt_xent
    from simclr_core.model.encoder import build_encoder
    from simclr_core.model.projection_head import build_projection_head

    torch.manual_seed(0)
    encoder = build_encoder("resnet10", width=0.5, stem="compact", image_size=28)
    head = build_projection_head(encoder.feature_dim, layers=2, width=256, dim=128)
    network = nn.Sequential(encoder, head).to(memory_format=torch.channels_last)
    views = torch.rand(2 * images, 3, 28, 28).contiguous(memory_format=torch.channels_last)

    def step() -> float:
        began = time.perf_counter()
        projections = network(views)
        nt_xent(projections[:images], projections[images:], 0.5).backward()  # type: ignore[no-untyped-call]
        network.zero_grad()
        return 1000 * (time.perf_counter() - began)

    return step


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """They keep a core busy each, if there are enough; should this process be killed, they end too."""
    processes = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        time.sleep(1)  # to have started
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()
