"""Whether pretraining computes what it should on this GPU, and how fast: one command, no network, six minutes at most.

    python -m benchmarks.gpu_check --json benchmarks/results/DATE_GPU_gpu_check.json
    python -m benchmarks.gpu_check --device cpu --tiny      the same path on a CPU, in seconds

Every part of a step in forward and backward pass against float64 on the CPU; a training that is interrupted and
continues to the same bytes; micro-batches, bfloat16, float16 and compiled networks; what is said when memory runs out;
images a second of a step of ResNet-50, its share of the GPU's peak and of the time in which the GPU waits; decoding;
NT-Xent next to its plain formula and, where it is installed, lightly's. With several GPUs, all of them against one.

A check that needs a package that is missing is left out, as are those for which no time is left; the file says so. The
exit code is 1 if a number is wrong. It was written without a GPU: on one it has not run yet.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterable
from time import perf_counter

import torch

from benchmarks import measure
from benchmarks.gpu import arithmetic, runs, speed
from benchmarks.gpu.scale import Result, Scale, WrongError
from simclr_core.machine.devices import choose_device, describe_versions

MINUTES = 6.0
CHECKS = (*arithmetic.CHECKS, *runs.CHECKS, *speed.CHECKS)


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as the stages do, before cuBLAS reads it
    scale = Scale(choose_device() if options.device is None else torch.device(options.device), options.tiny)
    report = {**measure.header("gpu_check", "torch", "torchvision", "lightly"), "device": _device(scale)}
    report["checks"] = check_all(CHECKS, scale, 60 * options.minutes)
    measure.write(report, options.json)
    return int(any(found.get("wrong") for found in report["checks"].values()))


def check_all(checks: Iterable[Callable[[Scale], Result]], scale: Scale, seconds: float) -> dict[str, Result]:
    """What each check found, by its name, with its seconds; none begins after ``seconds``."""
    began, results = perf_counter(), dict[str, Result]()
    for check in checks:
        name, started = check.__name__.removeprefix("check_"), perf_counter()
        found = {"skipped": "no time left"} if started - began > seconds else _checked(check, scale)
        results[name] = {**found, "check_seconds": round(perf_counter() - started, 1)}
        print(f"{name}: {results[name]}", flush=True)
    return results


def _checked(check: Callable[[Scale], Result], scale: Scale) -> Result:
    """Any fault of a check is a result: the others still run."""
    try:
        return check(scale)
    except ImportError as missing:
        return {"skipped": str(missing)}
    except WrongError as wrong:
        return {"wrong": str(wrong)}
    except Exception as fault:  # noqa: BLE001  # the next check may say more
        return {"wrong": f"{type(fault).__name__}: {fault}"}
    finally:
        torch.cuda.empty_cache()


def _device(scale: Scale) -> Result:
    found: Result = {"type": scale.device.type, "tiny": scale.tiny}
    if scale.device.type == "cpu":
        return found
    properties = torch.cuda.get_device_properties(scale.device)
    return found | {
        "name": properties.name,
        "count": torch.cuda.device_count(),
        "gigabytes": round(properties.total_memory / 1e9),
        "versions": describe_versions(),
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "nccl": ".".join(map(str, torch.cuda.nccl.version())),  # type: ignore[no-untyped-call]
    }


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = measure.parser(__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: a GPU if there is one")
    parser.add_argument("--tiny", action="store_true", help="sizes for a test of the checks themselves")
    parser.add_argument("--minutes", type=float, default=MINUTES, metavar="N", help="default: 6")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
