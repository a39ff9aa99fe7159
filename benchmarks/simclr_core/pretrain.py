"""Whole pretraining runs compared with lightly's loop: images a second, a step of ResNet-18, time to an accuracy.

    python -m benchmarks.simclr_core.pretrain   # all parts, a quarter of an hour on two cores
    python -m benchmarks.simclr_core.pretrain run step --json benchmarks/results/FILE.json
    python -m benchmarks.simclr_core.pretrain --quick   # does it work? The numbers mean nothing

run        images a second of whole runs of a small encoder, from files to weights (recipe cpu-small, Fashion-MNIST)
step       the same of a small-image ResNet-18 at 32 pixels, its losses compared with lightly's, and where a step spends
time accuracy   seconds of training to the kNN accuracy that lightly's loop ends with, for three seeds

What is compared takes turns, each run in a fresh process; see `pretrain_loops` for what they have in common.
lightly gets the number of workers that is fastest here, which is measured first. Ours runs with exact and with fused
augmentations, and in float32 and bfloat16.
"""

import argparse
import gzip
import hashlib
import io
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks import measure
from benchmarks.simclr_core.pretrain_steps import split
from simclr_core.data.shard_writing import write_shards
from simclr_core.data.shards import DatasetCard, Sample, write_card

FASHION = Path("/usr/share/datasets/fashion-mnist")
SPLITS = {"train": "train", "test": "t10k"}
WORKERS = (0, 1, 2, 3)
OURS, PEER = "simclr-pipeline", "lightly"
SMALL: dict[str, Any] = {
    "encoder": {"name": "resnet10", "width": 0.5, "stem": "compact"},
    "image_size": 28,
    "batch_size": 256,
}
RESNET18: dict[str, Any] = {"encoder": {"name": "resnet18", "stem": "cifar"}, "image_size": 32, "batch_size": 64}
COMMON: dict[str, Any] = {  # of the recipe cpu-small
    "projection_head": {"layers": 2, "width": 256, "dim": 128},
    "augmentation": {"crop_scale": [0.2, 1.0], "grayscale": 0.0, "blur": 0.0},
    "temperature": 0.5,
    "optimizer": "sgd",
    "learning_rate": 0.15,
    "weight_decay": 5.0e-4,
    "warmup_epochs": 1,
    "checkpoint_every_steps": 40,
    "monitor_images": 16,
}

FUSED = {"augmentation": COMMON["augmentation"] | {"mode": "fused"}}
MODES: dict[str, dict[str, Any]] = {"exact": {}, "fused": FUSED, "fused bfloat16": FUSED | {"precision": "bfloat16"}}
PRECISIONS = {precision: {"precision": precision} for precision in ("float32", "bfloat16")}


@dataclass(frozen=True)
class Sizes:
    """How much of everything: images for training and for the test, epochs, rounds, seeds."""

    run: tuple[int, int] = (10_000, 1)
    step: tuple[int, int] = (1_024, 2)
    accuracy: tuple[int, int] = (10_000, 2)
    test: int = 10_000
    rounds: int = 3
    seeds: int = 3
    workers: tuple[int, ...] = WORKERS


QUICK = Sizes((512, 1), (64, 2), (512, 1), 200, 1, 1, (0, 2))


class Bench:
    """Prepared images, made once for each number of them, and whole runs on them in fresh processes."""

    def __init__(self, folder: Path, sizes: Sizes) -> None:
        self._folder, self.sizes, self._runs = folder, sizes, 0
        self.prepared = cache(self._prepared)
        self.workers = cache(self._workers)

    def run(self, loop: str, images: int, knn: bool = False, workers: int = 0, **pretrain: Any) -> dict[str, Any]:
        """What ``pretrain_loops`` tells of a run with these parameters."""
        self._runs += 1
        workspace = self._folder / f"run-{self._runs}"
        (workspace / "data").mkdir(parents=True)
        (workspace / "data" / "prepared").symlink_to(self.prepared(images))
        run = {"workers": workers, "knn": knn, "pretrain": COMMON | pretrain}
        (workspace / "run.json").write_text(json.dumps(run), encoding="utf-8")
        command = [sys.executable, "-m", "benchmarks.simclr_core.pretrain_loops", loop, str(workspace)]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
        shutil.rmtree(workspace)
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    def _prepared(self, images: int) -> Path:
        return write_prepared(self._folder / f"prepared-{images}", images, self.sizes.test)

    def _workers(self) -> dict[int, float]:
        """Images a second of lightly's loop by the number of its workers, on a short run of the small encoder."""
        images = self.sizes.run[0] // 2
        rates = {
            n: self.run(PEER, images, workers=n, epochs=1, **SMALL)["images_per_second"] for n in self.sizes.workers
        }
        return {number: round(rate, 1) for number, rate in rates.items()}

    @property
    def best_workers(self) -> int:
        rates = self.workers()
        return max(rates, key=lambda number: rates[number])


def write_prepared(folder: Path, train: int, test: int) -> Path:
    """Fashion-MNIST as our ``prepare`` leaves it: PNG files in shards, with labels."""
    pixels = read_idx(FASHION / "train-images-idx3-ubyte.gz", 16, (-1, 28, 28))[:train] / 255
    for name, count in (("train", train), ("test", test)):
        write_shards(folder / name, [samples(SPLITS[name], count)], max_bytes=2**28)
    mean, std = float(pixels.mean()), float(pixels.std())
    counts = {"train": train, "train_labelled": train, "test": test}
    classes = tuple(map(str, range(10)))
    write_card(folder, DatasetCard(classes, (mean, mean, mean), (std, std, std), 28, 28, counts, f"{train:064d}"))
    return folder


def samples(split: str, count: int) -> Iterator[Sample]:
    images = read_idx(FASHION / f"{split}-images-idx3-ubyte.gz", 16, (-1, 28, 28))[:count]
    labels = read_idx(FASHION / f"{split}-labels-idx1-ubyte.gz", 8, (-1,))[:count]
    for image, label in zip(images, labels, strict=True):
        content = io.BytesIO()
        Image.fromarray(image).convert("RGB").save(content, "PNG")
        data = content.getvalue()
        yield Sample(hashlib.sha256(data).hexdigest(), "png", data, int(label))


def read_idx(path: Path, header: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header).reshape(shape)


def whole_run(bench: Bench) -> dict[str, Any]:
    images, epochs = bench.sizes.run
    variants = variants_of(bench, MODES, images, epochs=epochs, **SMALL)
    return {"images": images, "epochs": epochs, "workers": bench.workers(), **rounds(variants, bench.sizes.rounds)}


def step(bench: Bench) -> dict[str, Any]:
    """A run of a few steps, and the losses by epoch, which ought to differ as little as those of two seeds."""
    images, epochs = bench.sizes.step
    variants = variants_of(bench, PRECISIONS, images, epochs=epochs, **RESNET18)
    found = rounds(variants, bench.sizes.rounds, seeds=True)
    return {"images": images, "epochs": epochs, **found, "milliseconds_of_a_step": split(RESNET18, COMMON)}


def accuracy(bench: Bench) -> dict[str, Any]:
    """Both loops train for the same epochs; ``seconds`` are those of training, the accuracy is measured after it."""
    images, epochs = bench.sizes.accuracy
    variants = variants_of(bench, MODES, images, knn=True, epochs=epochs, **SMALL)
    return {"images": images, "epochs": epochs, **rounds(variants, bench.sizes.seeds, seeds=True)}


def variants_of(
    bench: Bench, ours: dict[str, dict[str, Any]], images: int, knn: bool = False, **pretrain: Any
) -> dict[str, Callable[[int], Any]]:
    """Runs by name, each of which takes a seed: ours with each of these parameters, and lightly's."""

    def with_parameters(parameters: dict[str, Any]) -> Callable[[int], Any]:
        return lambda seed: bench.run(OURS, images, knn, seed=seed, **pretrain | parameters)

    def theirs(seed: int) -> Any:
        return bench.run(PEER, images, knn, workers=bench.best_workers, seed=seed, **pretrain)

    return {f"{OURS} {name}": with_parameters(parameters) for name, parameters in ours.items()} | {PEER: theirs}


def rounds(variants: dict[str, Callable[[int], Any]], count: int, seeds: bool = False) -> dict[str, Any]:
    """Runs in turn, every other round backwards; with ``seeds`` each round has its own seed."""
    taken: dict[str, list[dict[str, Any]]] = {name: [] for name in variants}
    for number in range(count):
        for name in list(variants)[:: 1 if number % 2 else -1]:
            taken[name].append(variants[name](number if seeds else 0))
    report: dict[str, Any] = {}
    for name, runs in taken.items():
        keys = [key for key in runs[0] if key != "loss"]
        report[name] = {key: measure.spread([run[key] for run in runs], 2) for key in keys}
        report[name]["loss"] = [[round(loss, 4) for loss in run["loss"]] for run in runs]
        pairs = [
            (run["images_per_second"], peer["images_per_second"]) for run, peer in zip(runs, taken[PEER], strict=True)
        ]
        if name != PEER:
            report[name]["times_faster"] = round(statistics.median(one / other for one, other in pairs), 2)
            report[name]["share_of_its_time"] = round(statistics.median(other / one for one, other in pairs), 3)
    return report


PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {"run": whole_run, "step": step, "accuracy": accuracy}


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--quick", action="store_true", help="too small to mean anything")
    options: argparse.Namespace = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; choose from {', '.join(PARTS)}")
    results = measure.header("pretrain", "torch", "torchvision", "lightly")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), QUICK if options.quick else Sizes())
        for part in options.parts or PARTS:
            results[part] = PARTS[part](bench)
            print(json.dumps({part: results[part]}, indent=1), flush=True)
    measure.write(results, options.json)


if __name__ == "__main__":
    main()
