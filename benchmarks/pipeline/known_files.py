"""What it costs to validate when nearly all files are known: CPU seconds and memory, by the number of files.

    python -m benchmarks.pipeline.known_files [part ...] --json benchmarks/results/FILE.json

Parts: images, recorded, near_copies; all of them unless some are named. ``images`` validates 20,000 images of 28 pixels
for the first time, and again with one per cent more. ``recorded`` validates workspaces whose facts were recorded and
not probed, of 20,000, 200,000 and, in 2,000 batches, 20,000 files, and says from what an image costs at first what one
per cent more costs of that. ``near_copies`` counts how full the buckets of a hundred million random hashes are.

Each validation is a fresh process, which imports what the stage does; memory is its peak, without its workers.
"""

import io
import json
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from PIL import Image

from benchmarks.measure import header, parser, spread, write
from benchmarks.pipeline.validation import facts
from pipeline import params
from pipeline import workspace as workspaces
from pipeline.ingest.ingest import ingest
from pipeline.ingest.raw import OCCURRENCES
from pipeline.validation.__main__ import _limits
from pipeline.validation.probe import facts_cache
from pipeline.workspace import Workspace

Result = dict[str, Any]

IMAGES, MORE, SIDE = 20_000, 200, 28
RECORDED = {
    "20,000 files": (20_000, 10),
    "200,000 files": (200_000, 10),
    "20,000 files in 2,000 batches": (20_000, 2_000),
}
ROUNDS = 3
STAGE = """
import sys
from pathlib import Path
from pipeline.validation.__main__ import run
from pipeline.workspace import find
run(find(Path(sys.argv[1])))
from benchmarks.measure import cpu_seconds, megabytes
print(cpu_seconds(), megabytes("VmHWM"))
"""
LOOKED_AT = (1_000_000, 10_000_000)
ROWS, DRAWN = 100_000_000, 2_000_000


def validated(root: Path) -> tuple[float, float]:
    """CPU seconds of the stage, workers included, and the megabytes that it holds at most."""
    done = subprocess.run([sys.executable, "-c", STAGE, root], capture_output=True, text=True, check=True)
    seconds, peak = done.stdout.splitlines()[-1].split()
    return float(seconds), float(peak)


def cost(workspace: Workspace, rounds: int = ROUNDS) -> Result:
    taken = [validated(workspace.root) for _ in range(rounds)]
    seconds, peaks = zip(*taken, strict=True)
    return {"cpu_seconds": spread(list(seconds), 2), "peak_megabytes": round(max(peaks))}


def picture(random: np.random.Generator) -> bytes:
    coarse = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((SIDE, SIDE))
    noise = random.integers(-20, 20, (SIDE, SIDE, 3))
    data = io.BytesIO()
    Image.fromarray(np.clip(np.asarray(coarse) + noise, 0, 255).astype(np.uint8)).save(data, "PNG")
    return data.getvalue()


def add(workspace: Workspace, seed: int, count: int) -> None:
    """A batch of different images, a tenth of them for the test."""
    random = np.random.default_rng(seed)
    for number in range(count):
        folder = workspace.inbox / ("labeled" if number % 10 else "test") / f"class {number // 10 % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{seed}-{number:06d}.png").write_bytes(picture(random))
    ingest(workspace)


def measure_images(scratch: Path) -> Result:
    workspace = workspaces.create(scratch / "workspace")
    params.override(workspace, {"ingest.settle_seconds": "0"})
    add(workspace, 0, IMAGES)
    first = cost(workspace, rounds=1)
    add(workspace, 1, MORE)
    more = cost(workspace, rounds=1)
    return {"images": IMAGES, "first": first, "more": MORE, "with_more": more, "known": cost(workspace)}


def record(root: Path, files: int, batches: int) -> Workspace:
    """A workspace whose cache has facts of these files, one in a thousand bad; no tar holds their bytes."""
    workspace = workspaces.create(root)
    given = params.read(workspace)
    known = facts(files, files // 1000)
    names, size = known["sha256"].to_list(), -(-files // batches)
    tars: list[str] = []
    for number in range(batches):
        folder = workspace.raw / f"{number + 1:04d}"
        folder.mkdir(parents=True)
        tarfile.open(folder / "empty.tar", "w").close()
        some = names[number * size : (number + 1) * size]
        tars += [f"{folder.name}/empty.tar:{(folder / 'empty.tar').stat().st_size}"] * len(some)
        lines = (json.dumps(line) + "\n" for line in lines_of(some, folder.name))
        (folder / OCCURRENCES).write_text("".join(lines), encoding="utf-8")
    store = facts_cache.place(workspace.facts, _limits(given.validate, given.prepare).probed)
    for rows in known.with_columns(tar=pl.Series(tars)).iter_slices(facts_cache.MERGED_ROWS):
        facts_cache.append(store, rows)
    return workspace


def lines_of(names: list[str], batch: str) -> Iterator[Result]:
    for number, sha256 in enumerate(names):
        split, label = ("train", "test")[number % 10 == 0], f"class {number // 10 % 10}"
        path = f"photographs/of {batch}/{number:07d}.jpg"
        yield {"sha256": sha256, "occurrences": [{"path": path, "split": split, "label": label, "source": "inbox"}]}


def measure_recorded(scratch: Path) -> Result:
    return {name: cost(record(scratch / name, *shape)) for name, shape in RECORDED.items()}


def measure_near_copies(_: Path) -> Result:
    """How full the buckets of random hashes are, and with how many others a row is compared in one."""
    found = {}
    for bits in (16, 25):
        random = np.random.default_rng(0)
        sizes = np.zeros(1 << bits)
        for _drawn in range(ROWS // DRAWN):
            sizes += np.bincount(random.integers(0, 1 << bits, DRAWN), minlength=1 << bits)
        compared = float((sizes * (sizes - 1) / 2).sum() / ROWS)
        found[f"{bits} bits"] = {"fullest": int(sizes.max()), "compared": round(compared, 1)}
    return {"rows": ROWS, **found}


def concluded(images: Result, recorded: Result) -> Result:
    """What a file that is known costs, what one that is new costs, and the share that one per cent more costs."""
    few, many = (recorded[name]["cpu_seconds"]["median"] for name in list(RECORDED)[:2])
    (count, _), (larger, _) = list(RECORDED.values())[:2]
    known = (many - few) / (larger - count)
    fixed = few - count * known
    new = (images["first"]["cpu_seconds"]["median"] - fixed) / IMAGES
    shares = {
        f"{files:,} files": round((fixed + files * known + files / 100 * new) / (fixed + files * new), 4)
        for files in (count, larger, *LOOKED_AT)
    }
    return {
        "fixed_cpu_seconds": round(fixed, 2),
        "known_file_microseconds": round(known * 1e6, 1),
        "new_image_microseconds": round(new * 1e6),
        "one_per_cent_more_of_first": shares,
        "memory_at_ten_times_the_files": round(
            recorded["200,000 files"]["peak_megabytes"] / recorded["20,000 files"]["peak_megabytes"], 2
        ),
    }


PARTS: dict[str, Callable[[Path], Result]] = {
    "images": measure_images,
    "recorded": measure_recorded,
    "near_copies": measure_near_copies,
}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("parts", nargs="*", metavar="part", help=f"{', '.join(PARTS)}; all of them if none is named")
    arguments = options.parse_args()
    result = header("known_files", "polars", "great-expectations", "pillow")
    for name in arguments.parts or PARTS:
        with tempfile.TemporaryDirectory() as scratch:
            result[name] = PARTS[name](Path(scratch))
        print(json.dumps({name: result[name]}), flush=True)
    if {"images", "recorded"} <= set(result):
        result["concluded"] = concluded(result["images"], result["recorded"])
        print(json.dumps(result["concluded"]))
    write(result, arguments.json)


if __name__ == "__main__":
    main()
