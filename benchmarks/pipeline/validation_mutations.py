"""What validation makes of damaged photographs: reasons, dead workers, the slowest file, and peaks of memory.

    python -m benchmarks.pipeline.validation_mutations --count 20000 --json benchmarks/results/FILE.json

The files are ``tests.pipeline.validation.corpus.mutations`` 0 to count - 1, the same on every machine. They go through
the worker processes that `simclr run` uses, with its limits; every tenth goes through others again, for the same row.
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil

from pipeline.config import ValidateConfig
from pipeline.validation.probe import pool
from pipeline.validation.probe.facts import read_facts
from pipeline.validation.probe.pool import Failure, isolated_map
from pipeline.validation.probe.probe import probe
from tests.pipeline.validation.corpus.mutations import mutation

WORKERS = 2
AGAIN = 10  # one file of this number is probed twice
LOOK = 20  # answers between two looks at the memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20_000, help="files (%(default)s)")
    parser.add_argument("--json", type=Path, help="write the result here too")
    options = parser.parse_args()
    text = json.dumps(measure(options.count), indent=2) + "\n"
    print(text, end="")
    if options.json:
        options.json.write_text(text, encoding="utf-8")


def measure(count: int) -> dict[str, Any]:
    """Probe the first ``count`` mutations.

    ``reasons`` counts what is wrong with the files, ``none`` for those that decode; ``changed_rows`` lists the files
    that have got another row the second time. A ``slowest_seconds`` includes the start of its worker.
    """
    limits = ValidateConfig()
    reasons: Counter[str] = Counter()
    dead: list[dict[str, Any]] = []
    kept: dict[int, Any] = {}
    slowest = (0.0, -1)
    memory = Memory()
    began = time.perf_counter()
    for number, (seed, answer, seconds) in enumerate(_probed(range(count), limits)):
        if number % LOOK == 0:
            memory.look()
        slowest = max(slowest, (seconds, seed))
        if seed % AGAIN == 0:
            kept[seed] = answer
        reason, message = _reason(answer)
        reasons[reason] += 1
        if reason in ("worker_crash", "timeout"):
            dead.append({"seed": seed, "reason": reason, "message": message})
    seconds = time.perf_counter() - began
    changed = [seed for seed, answer, _ in _probed(kept, limits) if answer != kept[seed]]
    return {
        "files": count,
        "seconds": round(seconds, 1),
        "files_per_second": round(count / seconds),
        "reasons": dict(reasons.most_common()),
        "worker_deaths": dead,
        "workers_seen": len(memory.seen),
        "slowest_seconds": round(slowest[0], 2),
        "slowest_seed": slowest[1],
        "limit_seconds": limits.timeout_seconds,
        "peak_worker_megabytes": memory.worker >> 20,
        "parent_grew_megabytes": (memory.parent - memory.before) >> 20,
        "limit_worker_megabytes": limits.memory_megabytes,
        "probed_twice": len(kept),
        "changed_rows": changed,
    }


def _reason(answer: Any) -> tuple[str, str]:
    """As a scan takes it: an answer that no table can hold is the work of a broken worker."""
    if isinstance(answer, Failure):
        return answer.reason, answer.message
    try:
        facts = read_facts(answer)
    except ValueError as error:
        return "worker_crash", str(error)
    return facts.reason or "none", facts.message


class Memory:
    """Resident sizes, bytes: of this process at first, and the largest seen so far of it and of any of its workers."""

    def __init__(self) -> None:
        self.process = psutil.Process()
        self.before = self.parent = self.process.memory_info().rss
        self.worker = 0
        self.seen: set[int] = set()

    def look(self) -> None:
        self.parent = max(self.parent, self.process.memory_info().rss)
        for child in self.process.children():
            try:
                if pool.__name__ not in child.cmdline():  # whatever else this process may have started
                    continue
                size = child.memory_info().rss
            except psutil.NoSuchProcess:
                continue
            self.worker = max(self.worker, size)
            self.seen.add(child.pid)


def _probed(seeds: Iterable[int], limits: ValidateConfig) -> Iterator[tuple[int, Any, float]]:
    """(seed, answer, seconds from handing the file out to its answer), as they are done."""
    begun: dict[int, float] = {}

    def files() -> Iterator[tuple[int, bytes]]:
        for seed in seeds:
            data = mutation(seed)
            begun[seed] = time.perf_counter()
            yield seed, data

    answers = isolated_map(
        probe,
        files(),
        options={"max_megabytes": limits.max_megabytes, "max_megapixels": limits.max_megapixels},
        workers=WORKERS,
        memory_megabytes=limits.memory_megabytes,
        timeout_seconds=limits.timeout_seconds,
    )
    for seed, answer in answers:
        yield seed, answer, time.perf_counter() - begun.pop(seed)


if __name__ == "__main__":
    main()
