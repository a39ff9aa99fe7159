"""What validation costs: the probe compared with CleanVision, a re-scan, near copies of a million, a manifest of a
million.

    python -m benchmarks.pipeline.validation [part ...] --json benchmarks/results/FILE.json

Parts: probe, rescan, near_duplicates, expectations; all of them unless some are named. The probe stands alone unless
there is a Python that has CleanVision, in its own environment, since its dependencies are not ours:

    python -m venv DIR && DIR/bin/pip install cleanvision==0.3.7
    python -m benchmarks.pipeline.validation probe --cleanvision-python DIR/bin/python

Photographs are crops of the two in scikit-learn, 500 x 375, as JPEG of quality 85. What is timed or has its memory
reported is measured in a fresh process; what is compared takes turns.
"""

import argparse
import base64
import io
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import polars as pl
from PIL import Image
from sklearn.datasets import load_sample_images

from pipeline import params
from pipeline import workspace as workspaces
from pipeline.config import ValidateConfig
from pipeline.ingest.ingest import ingest
from pipeline.reports import Outcome
from pipeline.validation import manifest
from pipeline.validation.drift import drift
from pipeline.validation.evaluate import evaluate, tables
from pipeline.validation.expectations import Expectation, expectations
from pipeline.validation.probe.facts import SKETCH_BYTES
from pipeline.validation.probe.probe import probe
from pipeline.validation.probe.scan import Limits, scan
from pipeline.validation.report import data_docs
from pipeline.validation.tables import FACTS, FILES
from pipeline.validation.verdict.near_duplicates import near_groups, near_pairs
from pipeline.validation.verdict.structure import confirm
from pipeline.validation.verdict.verdict import Policy, judge

Result = dict[str, Any]

ROUNDS, LONG_ROUNDS = 5, 3
WIDTH, HEIGHT, QUALITY = 500, 375, 85
PROBED, SCANNED = 400, 4000  # photographs
MILLION, BAD = 1_000_000, 10_000
COPIED = 0.01  # share of the hashes that nearly repeat another

CLEANVISION = """
import contextlib, io, os, sys, time
os.sched_setaffinity(0, {int(sys.argv[1])})
from cleanvision import Imagelab

def check(folder):
    with contextlib.redirect_stdout(io.StringIO()):
        lab = Imagelab(data_path=folder)
        lab.find_issues(n_jobs=1)
    return len(lab.issues)

check(sys.argv[3])
began = time.perf_counter()
images = check(sys.argv[2])
print(time.perf_counter() - began, images)
"""
"""All its checks with their defaults. Arguments: the core, the folder that is timed, the one to warm up with."""


def photographs(count: int) -> Iterator[bytes]:
    """Different crops, mirrored or not; always the same ones."""
    pictures = [Image.fromarray(picture) for picture in load_sample_images().images]
    right, down = pictures[0].width - WIDTH, pictures[0].height - HEIGHT
    places = np.random.default_rng(0).permutation(len(pictures) * 2 * right * down)[:count]
    for number, mirrored, x, y in zip(*np.unravel_index(places, (len(pictures), 2, right, down)), strict=True):
        crop = pictures[number].crop((x, y, x + WIDTH, y + HEIGHT))
        if mirrored:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        data = io.BytesIO()
        crop.save(data, "JPEG", quality=QUALITY)
        yield data.getvalue()


def write_photographs(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(photographs(count)):
        (folder / f"{number:05d}.jpg").write_bytes(data)
    return folder


def measure_probe(scratch: Path, cleanvision_python: str | None) -> Result:
    """Images a second on one core, from files on disk."""
    core = min(os.sched_getaffinity(0))
    timed, warm_up = write_photographs(scratch / "timed", PROBED), write_photographs(scratch / "warm-up", 2)
    contestants: dict[str, Callable[[], float]] = {"simclr-pipeline": lambda: fresh(_probe_seconds, core, timed)}
    if cleanvision_python:
        command = [cleanvision_python, "-c", CLEANVISION, str(core), str(timed), str(warm_up)]
        contestants["cleanvision"] = lambda: _cleanvision_seconds(command)
    rounds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(ROUNDS):
        for name, seconds in contestants.items():
            rounds[name].append(seconds())
    sizes = [path.stat().st_size for path in timed.iterdir()]
    result: Result = {"images": PROBED, "mean_bytes": round(statistics.mean(sizes))}
    for name, taken in rounds.items():
        rates = [PROBED / seconds for seconds in taken]
        result[name] = {
            "images_per_second_median": round(statistics.median(rates), 1),
            "images_per_second_spread": [round(min(rates), 1), round(max(rates), 1)],
        }
    if cleanvision_python:
        ratios = [other / ours for ours, other in zip(*rounds.values(), strict=True)]
        result["times_faster_median"] = round(statistics.median(ratios), 2)
    return result


def _probe_seconds(core: int, folder: Path) -> float:
    os.sched_setaffinity(0, {core})
    paths = sorted(folder.iterdir())
    probe(paths[0].read_bytes())  # the first image also pays for what Pillow loads late
    began = time.perf_counter()
    facts = [probe(path.read_bytes()) for path in paths]
    seconds = time.perf_counter() - began
    assert all(one["decodes"] for one in facts)
    return seconds


def _cleanvision_seconds(command: list[str]) -> float:
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    seconds, images = printed.split()
    assert int(images) == PROBED
    return float(seconds)


def measure_rescan(scratch: Path, _: str | None) -> Result:
    """Seconds of a scan that knows nothing and of the next, which knows everything, on all cores."""
    workspace = workspaces.create(scratch / "workspace")
    params.override(workspace, {"ingest.settle_seconds": "0"})  # no one is still writing the photographs
    write_photographs(workspace.inbox / "unlabeled", SCANNED)
    ingest(workspace)
    caches = [scratch / f"cache-{number}" for number in range(LONG_ROUNDS)]
    rounds = [[fresh(_scan_seconds, workspace.raw, cache) for _ in ("first", "again")] for cache in caches]
    first, again = zip(*rounds, strict=True)
    ratios = [slow / fast for slow, fast in rounds]
    return {
        "images": SCANNED,
        "first_seconds_median": round(statistics.median(first), 2),
        "again_seconds_median": round(statistics.median(again), 3),
        "times_faster_median": round(statistics.median(ratios), 1),
    }


def _scan_seconds(raw: Path, cache: Path) -> float:
    config = ValidateConfig()
    limits = Limits(config.max_megabytes, config.max_megapixels, config.memory_megabytes, config.timeout_seconds)
    began = time.perf_counter()
    files, known = scan(raw, cache, limits=limits)
    facts = known.select(["sha256", "decodes"])
    seconds = time.perf_counter() - began
    assert len(files) == len(facts) == facts["decodes"].sum() == SCANNED
    return seconds


def measure_near_duplicates(_: Path, __: str | None) -> Result:
    """A million random hashes of which one in a hundred nearly repeats another."""
    rounds = [fresh(_near_duplicates, MILLION) for _ in range(LONG_ROUNDS)]
    return {"rows": MILLION, "groups": rounds[0]["found"], **_cost(rounds)}


def _near_duplicates(rows: int) -> Result:
    copies = int(rows * COPIED)
    aspect = pl.col("width") / pl.col("height")
    known = facts(rows)
    contents = known.select("sha256", "phash", "dhash", "sketch", "red_mean", "green_mean", "blue_mean", aspect=aspect)
    originals = contents.head(rows - copies)
    flips = np.bitwise_or.reduce(1 << np.random.default_rng(1).integers(0, 64, (copies, 3), dtype=np.uint64), axis=1)
    phash = originals["phash"].head(copies).to_numpy() ^ flips  # one to three bits
    repeated = originals.head(copies).with_columns(contents["sha256"].tail(copies), phash=phash)
    contents = pl.concat([originals, repeated])
    sketches = contents.select("sha256", "sketch")
    result = _measured(lambda: near_groups(confirm(near_pairs(contents)[0], sketches))["near_group"].n_unique())
    assert result["found"] == copies
    return result


def measure_expectations(scratch: Path, _: str | None) -> Result:
    """A manifest of a million files, one in a hundred bad, held against the whole contract, and written."""
    rounds = [fresh(_expectations, scratch / str(number)) for number in range(LONG_ROUNDS)]
    return {"rows": MILLION, "bad": BAD, **_cost(rounds), **rounds[0]["found"]}


def _evaluate(rules: Sequence[Expectation], frames: Mapping[str, pl.LazyFrame]) -> list[Outcome]:
    """With the page about it, as the stage does."""
    evaluation = evaluate(rules, frames)
    data_docs.render(evaluation.results)
    return evaluation.outcomes


def _expectations(folder: Path) -> Result:
    known = facts(MILLION, BAD)
    judged = judge(_files(known), known, _policy(), allowed=(), denied={})
    folder.mkdir()
    with tempfile.TemporaryDirectory() as scratch:
        manifest.write(folder, manifest.build(judged, known.iter_slices(manifest.PART_ROWS), Path(scratch)))
    table = manifest.read(folder)
    compared = drift.judge(table, **dict(ValidateConfig().drift))
    rules = expectations(ValidateConfig())
    result = _measured(lambda: _evaluate(rules, tables(table, compared)))
    quarantined = set(pl.read_parquet(folder / "quarantine.parquet")["sha256"])
    assert quarantined == set(known["sha256"][:BAD]), "every bad row, and no other"
    outcomes = result.pop("found")
    failed = [outcome.name for outcome in outcomes if not outcome.success]
    return result | {"found": {"rules": len(rules), "failed": failed, "quarantined": len(quarantined)}}


def facts(rows: int, bad: int = 0) -> pl.DataFrame:
    """FACTS of different photographs; of the first ``bad``, half are cut short and half are of one color."""
    random = np.random.default_rng(0)
    names = [random.bytes(32).hex() for _ in range(rows)]
    measured: dict[str, Any] = {
        "phash": random.integers(0, 2**64, rows, dtype=np.uint64),
        "dhash": random.integers(0, 2**64, rows, dtype=np.uint64),
        "sketch": [base64.b64encode(random.bytes(SKETCH_BYTES)).decode() for _ in range(rows)],
        **{name: random.normal(100, 10, rows) for name in FACTS if name.endswith(("_mean", "_std"))},
        **{name: random.integers(90, 110, rows) for name in FACTS if name.startswith("luma_p")},
        **{name: random.normal(7, 0.1, rows) for name in ("entropy", "edge_energy", "saturation")},
        **dict.fromkeys(("has_alpha", "has_icc_profile", "has_gps", "exif_unreadable"), False),
        **dict.fromkeys(("frames", "exif_orientation", "hash_trusted"), 1),
        **dict.fromkeys(("trailing_bytes", "flat_tail"), 0),
        **dict(zip(("format", "mode", "bit_depth", "width", "height"), ("JPEG", "RGB", 8, WIDTH, HEIGHT), strict=True)),
        "pixel_hash": [name[::2] for name in names],
    }
    truncated = pl.int_range(pl.len()) < bad // 2
    flat = pl.int_range(pl.len()).is_between(bad // 2, bad, closed="left")
    always = {"sha256": names, "size_bytes": 53_000, "container": "jpeg", "message": "", "stream_fault": None}
    return (
        pl.DataFrame(always | measured)
        .with_columns(pl.when(~truncated).then(pl.col(*measured)).name.keep(), decodes=~truncated)
        .with_columns(pl.when(flat).then(0.0).otherwise(pl.col("^(red|green|blue)_std$")).name.keep())
        .with_columns(reason=pl.when(truncated).then(pl.lit("truncated")), operations=pl.lit([], pl.List(pl.String)))
        .select(FACTS.names())
        .cast(FACTS)
    )


def _files(known: pl.DataFrame) -> pl.DataFrame:
    """One file of each content; the last tenth came later, and a tenth of all is the test."""
    number = pl.int_range(pl.len())
    batch = pl.when(number < 0.9 * pl.len()).then(pl.lit("0001")).otherwise(pl.lit("0002"))
    return known.select(
        "sha256",
        path=pl.format("photographs/{}.jpg", number),
        split=pl.when(number % 10 == 0).then(pl.lit("test")).otherwise(pl.lit("train")),
        label=pl.format("class {}", number // 10 % 10),
        batch=batch,
        ingest_batch=batch,
    ).select(FILES.names())


def _policy() -> Policy:
    config, near = ValidateConfig(), ValidateConfig().near_duplicates
    limits = {name: getattr(config, name) for name in ("min_side", "max_aspect", "min_standard_deviation")}
    switches = dict.fromkeys(("allow_animated", "keep_suspect_streams", "quarantine_near_copies"), False)
    return Policy(**limits, **switches, near_distance=near.distance, placeholder_copies=near.placeholder_copies)


def fresh(function: Callable[..., Any], *arguments: Any) -> Any:
    """The answer of a new process, which has neither warm caches nor a peak of memory behind it."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


def _measured(work: Callable[[], Any]) -> Result:
    """Seconds of ``work``, and the peak of the whole process during it."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten (proc(5))
    began = time.perf_counter()
    found = work()
    seconds = time.perf_counter() - began
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    return {"seconds": seconds, "peak_megabytes": peak / 1024, "found": found}


def _cost(rounds: list[Result]) -> Result:
    seconds = [one["seconds"] for one in rounds]
    return {
        "seconds_median": round(statistics.median(seconds), 2),
        "seconds_spread": [round(min(seconds), 2), round(max(seconds), 2)],
        "peak_megabytes": round(max(one["peak_megabytes"] for one in rounds)),
    }


PARTS: dict[str, Callable[[Path, str | None], Result]] = {
    "probe": measure_probe,
    "rescan": measure_rescan,
    "near_duplicates": measure_near_duplicates,
    "expectations": measure_expectations,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"{', '.join(PARTS)}; all of them if none is named")
    parser.add_argument("--cleanvision-python", help="a Python that has CleanVision 0.3.7")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    result: Result = {
        "benchmark": "validation",
        "machine": f"{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "pillow": PIL.__version__,
        **{name: version(name) for name in ("polars", "great-expectations")},
    }
    for name in arguments.parts or PARTS:
        with tempfile.TemporaryDirectory() as scratch:
            result[name] = PARTS[name](Path(scratch), arguments.cleanvision_python)
        print(json.dumps({name: result[name]}), flush=True)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
