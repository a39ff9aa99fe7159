"""What an inbox of known files costs: a look of the sensor, and an ingest of one per cent more.

    python -m benchmarks.pipeline.known_inbox --json benchmarks/results/FILE.json

Files of a kilobyte, in folders of a thousand, at two sizes of which one is ten times the other. Each step runs in its
own process, and what it costs is CPU time and the peak of memory, imports included.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import measure
from pipeline import workspace as workspaces
from pipeline.ingest.ingest import ingest
from pipeline.retraining.inbox import survey
from pipeline.workspace import Workspace

SIZES, IN_A_FOLDER, HOUR = (20_000, 200_000), 1000, 3600.0
SETTLE_SECONDS = 4.0  # until a folder that has changed is trusted


def main() -> None:
    chosen = measure.parser(__doc__).parse_args()
    results = measure.header("known inbox", "dvc")
    with measure.kept_folder(None) as folder:
        results["files"] = {str(size): costs(folder / str(size), size) for size in SIZES}
    small, large = (results["files"][str(size)] for size in SIZES)
    results["share_of_the_first_ingest"] = {
        step: round(large[step]["cpu_seconds"] / large["first ingest"]["cpu_seconds"], 4)
        for step in ("one per cent more, by the sensor", "one per cent more, by a command")
    }
    results["memory_at_ten_times_the_files"] = {
        step: round(large[step]["megabytes"] / small[step]["megabytes"], 2) for step in large
    }
    print(results)
    measure.write(results, chosen.json)


def costs(root: Path, size: int) -> dict[str, dict[str, float]]:
    workspace = workspaces.create(root)
    fill(workspace, 0, size)
    steps = {"first ingest": taken(ingested, workspace, 0.0)}
    steps["look at everything"] = taken(looked, workspace, HOUR)
    steps["look again"] = taken(looked, workspace, HOUR)
    for number, (name, age) in enumerate((("sensor", HOUR), ("command", 0.0))):
        fill(workspace, size + number * size // 100, size // 100)
        steps[f"one per cent more, by the {name}".replace("the command", "a command")] = taken(ingested, workspace, age)
    return steps


def taken(step: Callable[[Workspace, float], None], workspace: Workspace, age: float) -> dict[str, float]:
    time.sleep(SETTLE_SECONDS)
    found: dict[str, float] = measure.in_fresh_process(run, step, workspace, age)
    return found


def run(step: Callable[[Workspace, float], None], workspace: Workspace, age: float) -> dict[str, float]:
    measure.forget_peak()
    before, began = measure.megabytes("VmRSS"), measure.cpu_seconds()
    step(workspace, age)
    return {
        "cpu_seconds": round(measure.cpu_seconds(), 2),
        "of_it_after_imports": round(measure.cpu_seconds() - began, 2),
        "megabytes": round(measure.megabytes("VmHWM"), 1),
        "of_it_after_imports_megabytes": round(measure.megabytes("VmHWM") - before, 1),
    }


def ingested(workspace: Workspace, age: float) -> None:
    ingest(workspace, listing_seconds=age)


def looked(workspace: Workspace, age: float) -> None:
    survey(workspace, ["inbox"], age)


def fill(workspace: Workspace, first: int, count: int) -> None:
    for number in range(first, first + count):
        folder = workspace.inbox / "unlabeled" / f"camera {number // IN_A_FOLDER}"
        if number in (first, number // IN_A_FOLDER * IN_A_FOLDER):
            folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{number:08d}.png"
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + number.to_bytes(8, "big") + bytes(1000))
        os.utime(path, (1.7e9 + number, 1.7e9 + number))


if __name__ == "__main__":
    main()
