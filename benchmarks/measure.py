"""What the benchmarks share: turns, medians with their spread, fresh processes, memory, the file of results."""

import argparse
import json
import multiprocessing
import os
import platform
import resource
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from deploy.latency import processor


def interleaved(measurements: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Values of each measurement; they take turns, and every other round runs backwards. The first one warms up."""
    values: dict[str, list[float]] = {name: [] for name in measurements}
    for number in range(rounds + 1):
        order = list(measurements) if number % 2 else list(measurements)[::-1]
        for name in order:
            value = measurements[name]()
            if number:
                values[name].append(value)
    return values


def compared(values: dict[str, list[float]], digits: int = 4) -> dict[str, Any]:
    """Median and spread of each, and the median over the rounds of the ratio of the first to the second."""
    report: dict[str, Any] = {name: spread(taken, digits) for name, taken in values.items()}
    first, second = list(values.values())[:2]
    report["ratio"] = round(statistics.median(one / other for one, other in zip(first, second, strict=True)), 3)
    return report


def spread(values: list[float], digits: int = 4) -> dict[str, Any]:
    return {
        "median": round(statistics.median(values), digits),
        "spread": [round(min(values), digits), round(max(values), digits)],
    }


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function at the top of a module returns in its own process."""
    with multiprocessing.get_context("spawn").Pool(1) as process:
        return process.apply(function, arguments)


def cpu_seconds() -> float:
    """Of this process and the children that it has waited for."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def forget_peak() -> None:
    """Of memory: the peak so far, which may be the parent's, no longer counts (proc(5))."""
    Path("/proc/self/clear_refs").write_text("5")


def megabytes(field: str) -> float:
    """``VmRSS``, what this process holds now, or ``VmHWM``, the most that it held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


def header(benchmark: str, *packages: str) -> dict[str, Any]:
    """What a result says first: the machine, and the versions of the packages that are installed."""
    cores = len(os.sched_getaffinity(0))
    versions = {name: found for name in packages if (found := _version(name))}
    return {"benchmark": benchmark, "machine": f"{processor() or platform.machine()}, {cores} cores", **versions}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def parser(description: str | None) -> argparse.ArgumentParser:
    """With the option --json."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--json", type=Path, metavar="FILE", help="also write the results to this file")
    return options


def training_parser(description: str | None) -> argparse.ArgumentParser:
    """With --json and the options of a benchmark that trains encoders: where they stay, and a small version."""
    options = parser(description)
    options.add_argument("--keep", type=Path, metavar="FOLDER", help="where trained encoders are, and stay")
    options.add_argument("--quick", action="store_true", help="too small to mean anything")
    return options


@contextmanager
def kept_folder(keep: Path | None) -> Iterator[Path]:
    """The folder of --keep, or one that is removed afterwards."""
    with tempfile.TemporaryDirectory() as scratch:
        yield (keep or Path(scratch)).resolve()


def write(results: Mapping[str, Any], path: Path | None) -> None:
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
