"""Ten years of a workspace in an hour: what each stage costs, of what is new and of what is old.

    python -m benchmarks.pipeline.growth --keep FOLDER --json benchmarks/results/DATE_MACHINE_growth.json

A workspace of tiny images grows to a thousand batches and four hundred releases. Most of these are replayed: a batch is
written as an ingest writes it, a release as ``benchmarks.pipeline.replayed`` says. At each of POINTS the stages
are measured with few and with many new images. The whole graph, training included, runs at the first and at the last.

A cost is fitted as so much always, so much for each new image or release, and so much for each old one. Without --json
the table is printed alone; begun again with the same folder, it continues. Half an hour of CPU time, an hour on a busy
machine; ``--quick`` is too small to mean anything.
"""

import hashlib
import io
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import measure
from benchmarks.pipeline.command_cost import Cost, measure_command
from benchmarks.pipeline.linear_cost import Coefficient, fit
from benchmarks.pipeline.replayed import replay
from deploy.artifact import publish
from pipeline import params
from pipeline import workspace as workspaces
from pipeline.dvc.client import DVC
from pipeline.ingest.raw import OCCURRENCES, batches, next_name, read_records
from pipeline.release.releases import open_releases
from pipeline.retraining.completed import NOTE
from pipeline.workspace import Workspace
from simclr_core.data.shard_writing import write_tar

POINTS = ((1, 1), (100, 250), (400, 250), (1000, 400))  # batches, releases
NEW = (10, 400)  # images
FIRST, BATCH = 100, 20  # images of the first batch, and of one that is replayed
CLASSES, SIDE = 4, 16
SETTINGS = {
    "ingest.settle_seconds": "0",
    "validate.min_side": str(SIDE),
    "validate.max_quarantine_rate": "0.9",
    "pretrain.encoder.name": "resnet10",
    "pretrain.encoder.width": "0.125",
    "pretrain.image_size": str(SIDE),
    "pretrain.batch_size": "16",
    "pretrain.epochs": "1",
    "pretrain.warmup_epochs": "0",
    "finetune.seeds": "[0]",
    "finetune.epochs": "1",
    "finetune.epochs_few": "1",
    "linear_eval.fractions": '["1.0"]',
    "gates.abstain": "warn",  # eight test images decide nothing
    "storage.min_free_gigabytes": "0",
}
NEW_IMAGE, OLD_IMAGE, NEW_RELEASE, OLD_RELEASE = "new image", "old image", "new release", "old release"
STAGES = {
    "sensor tick": (NEW_IMAGE, OLD_IMAGE, OLD_RELEASE),
    "ingest": (NEW_IMAGE, OLD_IMAGE),
    "validate": (NEW_IMAGE, OLD_IMAGE),
    "prepare": (NEW_IMAGE, OLD_IMAGE),
    "no-op run": (OLD_IMAGE,),
    "no-op run, another day": (OLD_IMAGE,),
    "gc": (NEW_RELEASE, OLD_RELEASE),
    "release list": (OLD_RELEASE,),
    "status": (OLD_IMAGE, OLD_RELEASE),
}
QUANTITIES = tuple(Cost.__dataclass_fields__)
OBSERVED = "observed.json"


@dataclass(frozen=True)
class Observation:
    """What a stage has cost once; ``units`` are the numbers of images or releases, new and old."""

    point: int
    stage: str
    units: dict[str, int]
    cost: dict[str, float]


def main() -> None:
    options = measure.training_parser(__doc__)
    options.add_argument("--batches", type=int, default=POINTS[-1][0], metavar="N", help="grow to this many; 1,000")
    options.add_argument("--without-runs", action="store_true", help="leave out the runs with nothing to do")
    chosen = options.parse_args()
    points, new = scaled(6 if chosen.quick else chosen.batches), (2, 5) if chosen.quick else NEW
    results = measure.header("growth", "dvc", "dagster", "polars")
    with measure.kept_folder(chosen.keep) as folder:
        seen = _read(folder / OBSERVED)
        for number, (count, releases) in enumerate(points):
            if any(one.point == number for one in seen):
                continue
            whole = number in (0, len(points) - 1) and not chosen.without_runs
            workspace = grow(folder / "workspace", count)
            seen += [Observation(number, *one) for one in _observe(workspace, new, releases, whole)]
            measure.write({"observed": [asdict(one) for one in seen]}, folder / OBSERVED)
            fitted = fit_all(seen)
            print(f"\n{count} batches, {releases} releases\n" + "\n".join(sentences(fitted)), flush=True)
        fitted = fit_all(seen)
        results |= {"points": points, "costs": {stage: _plain(found) for stage, found in fitted.items()}}
        measure.write(results | {"observed": [asdict(one) for one in seen]}, chosen.json)
    print("\n".join(["", *sentences(fitted), "", *table(fitted)]))


def scaled(last: int) -> list[tuple[int, int]]:
    """The points on the way to this many batches."""
    share = last / POINTS[-1][0]
    return [(max(1, round(share * count)), max(1, round(share * releases))) for count, releases in POINTS]


def grow(root: Path, count: int) -> Workspace:
    """A workspace with this many batches, all validated and prepared, that has released an encoder."""
    workspace = Workspace(root) if root.exists() else _begin(root)
    if not open_releases(workspace).history.versions:
        _simclr(workspace, "run")
    while len(batches(workspace.raw)) < count:
        replay_batch(workspace)
    _simclr(workspace, "ingest")  # takes note of the files of the batches
    for stage in ("validate", "prepare"):
        _repro(workspace, stage)
    return workspace


def _begin(root: Path) -> Workspace:
    workspace = workspaces.create(root, "cpu-small")
    params.override(workspace, SETTINGS)
    for place in range(2 * CLASSES):
        for split in ("labeled", "test"):
            _write_image(workspace, f"{split}/{place % CLASSES}/{place}.png", place, split)
    _write_new(workspace, FIRST, "first")
    return workspace


def _observe(
    workspace: Workspace, new: Sequence[int], releases: int, whole: bool
) -> Iterator[tuple[str, dict[str, int], dict[str, float]]]:
    """Each measurement at one point: stage, units and cost."""
    if whole:
        yield from _observe_nothing_to_do(workspace)
    old = len(open_releases(workspace).history.versions)
    if releases > old:
        replay(workspace, releases - old, max(1, (releases - old) // 2))
    for added in (max(0, releases - old), 0):
        yield "gc", {NEW_RELEASE: added, OLD_RELEASE: releases - added}, _simclr(workspace, "gc")
    for number in new:
        known = _count_images(workspace)
        _write_new(workspace, number, f"new-{known}")
        units = {NEW_IMAGE: number, OLD_IMAGE: known, OLD_RELEASE: releases}
        yield "sensor tick", units, _tick(workspace)
        yield "ingest", units, _simclr(workspace, "ingest")
        yield "validate", units, _repro(workspace, "validate")
        yield "prepare", units, _repro(workspace, "prepare")
    units = {OLD_IMAGE: _count_images(workspace), OLD_RELEASE: releases}
    for _ in range(2):
        yield "release list", units, _simclr(workspace, "release", "list")
        yield "status", units, _simclr(workspace, "status")


def _observe_nothing_to_do(workspace: Workspace) -> Iterator[tuple[str, dict[str, int], dict[str, float]]]:
    _simclr(workspace, "run")
    units = {OLD_IMAGE: _count_images(workspace)}
    for _ in range(2):
        yield "no-op run", units, _simclr(workspace, "run")
        (workspace.scratch / NOTE).unlink()
        yield "no-op run, another day", units, _simclr(workspace, "run")


def _simclr(workspace: Workspace, *arguments: str) -> dict[str, float]:
    return _measured(workspace, sys.executable, "-P", "-m", "pipeline", *arguments)


def _repro(workspace: Workspace, stage: str) -> dict[str, float]:
    return _measured(workspace, *DVC, "repro", "--single-item", stage)


def _measured(workspace: Workspace, *command: str) -> dict[str, float]:
    return asdict(measure_command(command, workspace)[0])


def _tick(workspace: Workspace) -> dict[str, float]:
    """Without what it costs to start, which the code server has done long ago."""
    command = (sys.executable, "-m", "benchmarks.pipeline.tick", str(workspace.root))
    cost, printed = measure_command(command, workspace)
    return asdict(cost) | {"cpu_seconds": float(printed.split()[-1])}


def _count_images(workspace: Workspace) -> int:
    return sum(1 for batch in batches(workspace.raw) for _ in read_records(batch))


def _write_new(workspace: Workspace, number: int, name: str) -> None:
    for place in range(number):
        _write_image(workspace, f"unlabeled/{name}/{place:04d}.png", place, name)


def _write_image(workspace: Workspace, path: str, label: int, name: str) -> tuple[str, bytes]:
    """An image in the inbox; its SHA-256 and its bytes."""
    data = draw(label % CLASSES, f"{name} {path}")
    target = workspace.inbox / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)
    return hashlib.sha256(data).hexdigest(), data


def draw(label: int, name: str) -> bytes:
    """A PNG of one of four patterns, in colors and noise that follow from its name."""
    random = np.random.default_rng(list(hashlib.sha256(name.encode()).digest()))
    y, x = np.mgrid[:SIDE, :SIDE] + random.uniform(0, 4)
    pattern = (x % 8 < 4, y % 8 < 4, (x + y) % 8 < 4, np.hypot(x - 9, y - 9) < 6)[label]
    colors = random.integers(0, 256, (2, 3))
    pixels = np.where(pattern[..., None], *colors) + random.normal(0, 12, (SIDE, SIDE, 3))
    content = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(content, "PNG", compress_level=1)
    return content.getvalue()


def replay_batch(workspace: Workspace) -> None:
    """A batch as an ingest would write it, with its files in the inbox."""
    known = batches(workspace.raw)
    name = next_name(known)
    source = next(islice(read_records(known[0]), 1))["occurrences"][0]["source"]
    paths = [f"unlabeled/{name}/{place:04d}.png" for place in range(BATCH)]
    images = {path: _write_image(workspace, path, place, name) for place, path in enumerate(paths)}
    said = {
        sha256: [{"path": path, "split": "train", "label": None, "source": source}]
        for path, (sha256, _) in images.items()
    }
    with publish(workspace.raw / name) as folder:
        write_tar(folder, ((f"{sha256}.png", data) for sha256, data in images.values()))
        lines = [json.dumps({"sha256": sha256, "occurrences": seen}) + "\n" for sha256, seen in said.items()]
        (folder / OCCURRENCES).write_text("".join(lines), encoding="utf-8")


def _read(path: Path) -> list[Observation]:
    if not path.exists():
        return []
    return [Observation(**one) for one in json.loads(path.read_text(encoding="utf-8"))["observed"]]


Fitted = Mapping[str, Mapping[str, Mapping[str, Coefficient]]]  # stage → quantity → "always" or unit → its cost


def fit_all(seen: Sequence[Observation]) -> Fitted:
    """Every stage that was observed often enough."""
    found: dict[str, dict[str, dict[str, Coefficient]]] = {}
    for stage, units in STAGES.items():
        of_stage = [one for one in seen if one.stage == stage]
        counts = [[one.units[unit] for one in of_stage] for unit in units]
        try:
            found[stage] = {
                quantity: dict(
                    zip(("always", *units), fit(counts, [one.cost[quantity] for one in of_stage]), strict=True)
                )
                for quantity in QUANTITIES
            }
        except ValueError:
            continue
    return found


def sentences(fitted: Fitted) -> list[str]:
    """One for each stage, of its CPU time, such as ``ingest: 0.4 ms per new image, 0.9 s always``,
    with the interval of each number."""
    return [f"{stage}: " + _of_time(quantities["cpu_seconds"]) for stage, quantities in fitted.items()]


def _of_time(found: Mapping[str, Coefficient]) -> str:
    parts = [f"{_interval(one)} per {unit}" for unit, one in found.items() if unit != "always"]
    return ", ".join([*parts, f"{_interval(found['always'])} always"])


def _interval(one: Coefficient) -> str:
    """With its bounds, in a unit of time that suits the larger of them."""
    largest = max(abs(one.value), abs(one.low), abs(one.high))
    factor, unit = next(((f, u) for f, u in ((1, "s"), (1e3, "ms")) if largest * f >= 0.1), (1e6, "µs"))
    value, low, high = (f"{number * factor:.3g}" for number in (one.value, one.low, one.high))
    return f"{value} {unit} ({low} to {high})"


def table(fitted: Fitted) -> list[str]:
    """Of memory, disk, files and processes, as Markdown: the part that is always, and for a thousand of each unit."""
    lines = ["| | " + " | ".join(QUANTITIES[1:]) + " |", "|---" * len(QUANTITIES) + "|"]
    for stage, quantities in fitted.items():
        cells = [_cell(quantities[name]) for name in QUANTITIES[1:]]
        lines.append(f"| {stage} | " + " | ".join(cells) + " |")
    return lines


def _cell(found: Mapping[str, Coefficient]) -> str:
    always = f"{found['always'].value:.3g}"
    return always + "".join(
        f", {1000 * one.value:+.3g} per 1,000 {unit}s" for unit, one in found.items() if unit != "always"
    )


def _plain(found: Mapping[str, Mapping[str, Coefficient]]) -> dict[str, Any]:
    shorten = partial(np.format_float_positional, precision=4, unique=False, fractional=False)
    return {
        quantity: {
            unit: [float(shorten(bound)) for bound in (one.value, one.low, one.high)] for unit, one in of.items()
        }
        for quantity, of in found.items()
    }


if __name__ == "__main__":
    main()
