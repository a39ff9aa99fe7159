"""What the linear probe, kNN and a look of the monitor cost: processor seconds, memory besides the features, accuracy.

    python -m benchmarks.simclr_core.probes --images 50000 --features 1024 --classes 100 --json FILE
    python -m benchmarks.simclr_core.probes look

The features are random, in a mapped file: each class has a center, the spread falls with the root of the axis, and
negative values are cut off, as after the last ReLU of a ResNet. Each part runs in a fresh process. Memory is the most
that the process has besides mapped files, over what it had before, sampled a hundred times a second.

To measure an earlier version, run this file with its folder first on PYTHONPATH.
"""

import json
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks import measure
from simclr_core.data.subsets import LabelDraw
from simclr_core.evaluation.knn import knn_predict
from simclr_core.evaluation.linear_probe import fit_probe
from simclr_core.monitoring.diagnostics import Monitor

NEIGHBORS, TEMPERATURE = 20, 0.1  # the defaults of linear_eval
L2_COUNT = 12  # likewise
QUERIES = 5000
SEPARATION = 0.12  # of the centers of the classes, over the spread within them
LOOK = (10_000, 2048, 1000)  # images, features and classes of the recipe imagenet-r50
ROWS = 4096  # drawn at a time


def write_features(path: Path, labels: NDArray[np.int64], width: int, classes: int) -> None:
    random = np.random.default_rng(0)
    scale = (np.arange(1, width + 1) ** -0.5).astype(np.float32)
    centers = SEPARATION * random.standard_normal((classes, width), np.float32)
    written = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(len(labels), width))
    for first in range(0, len(labels), ROWS):
        rows = slice(first, first + ROWS)
        noise = random.standard_normal((len(labels[rows]), width), np.float32)
        written[rows] = np.maximum((centers[labels[rows]] + noise) * scale, 0)
    written.flush()


@contextmanager
def watched() -> Iterator[dict[str, float]]:
    """What the block takes: processor seconds, seconds, megabytes."""
    found: dict[str, float] = {}
    before, done, most = _own_megabytes(), threading.Event(), [0.0]

    def watch() -> None:
        while not done.wait(0.01):
            most[0] = max(most[0], _own_megabytes() - before)

    thread = threading.Thread(target=watch)
    thread.start()
    cpu, started = time.process_time(), time.perf_counter()
    try:
        yield found
    finally:
        found["processor_seconds"] = round(time.process_time() - cpu, 2)
        found["seconds"] = round(time.perf_counter() - started, 2)
        done.set()
        thread.join()
        found["megabytes"] = round(most[0], 1)


def _own_megabytes() -> float:
    return measure.megabytes("RssAnon")


def probe(path: Path, classes: int) -> dict[str, Any]:
    """On all labels."""
    features, labels = _features(path, classes)
    keys = np.random.default_rng(1).integers(0, 256, (len(labels) - QUERIES, 32), np.uint8)
    draw = LabelDraw("1.0", np.arange(len(keys)))
    with watched() as found:
        fitted = fit_probe(features[:-QUERIES], labels[:-QUERIES], keys, classes, draw, L2_COUNT, 0)
    assert fitted.head is not None
    logits, asked = fitted.head.logits(torch.from_numpy(features[-QUERIES:])), torch.from_numpy(labels[-QUERIES:])
    loss = float(nn.functional.cross_entropy(logits, asked))
    return {**found, "l2": fitted.l2, "top1": _percent(logits.argmax(dim=1) == asked), "loss": round(loss, 5)}


def knn(path: Path, classes: int) -> dict[str, Any]:
    features, labels = _features(path, classes)
    bank, queries, known = features[:-QUERIES], features[-QUERIES:], labels[:-QUERIES]
    with watched() as found:
        answers = knn_predict(bank, known, queries, classes, NEIGHBORS, TEMPERATURE)
    return {**found, "top1": _percent(torch.from_numpy(answers == labels[-QUERIES:]))}


def look(path: Path, classes: int) -> dict[str, Any]:
    """What the monitor does with features that are there: kNN, probe, ranks and spreads."""
    features, labels = _features(path, classes)
    monitor = Monitor(np.zeros((1, 8, 8, 3), np.uint8), labels, (0.5,) * 3, (0.5,) * 3, [*map(str, range(classes))])
    torch.manual_seed(0)
    head, views = nn.Linear(features.shape[1], 128), torch.randn(2, 512, 128)
    with watched() as found:
        measured = monitor.measure(torch.from_numpy(features), head, *views)
    return {**found, **{name: round(value, 3) for name, value in measured.items() if isinstance(value, float)}}


PARTS: dict[str, Callable[[Path, int], dict[str, Any]]] = {"probe": probe, "knn": knn, "look": look}


def _features(path: Path, classes: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    features: NDArray[np.float32] = np.asarray(np.load(path, mmap_mode="r+"))
    return features, np.arange(len(features)) % classes


def _percent(right: torch.Tensor) -> float:
    return round(100 * float(right.double().mean()), 3)


def measured(part: str, images: int, width: int, classes: int) -> dict[str, Any]:
    rows = images if part == "look" else images + QUERIES
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:  # /tmp may be memory
        path = Path(folder) / "features.npy"
        measure.in_fresh_process(write_features, path, np.arange(rows) % classes, width, classes)
        found: dict[str, Any] = measure.in_fresh_process(PARTS[part], path, classes)
    size = {"images": images, "features": width, "classes": classes}
    return size | {"megabytes_of_features": round(images * width * 4 / 2**20, 1)} | found


def main() -> None:
    options = measure.parser(__doc__)
    options.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default: all")
    for name, default in (("images", 50_000), ("features", 1024), ("classes", 100)):
        options.add_argument(f"--{name}", type=int, default=default, help=f"default: {default}")
    given = options.parse_args()
    results = measure.header("probes", "torch")
    for part in given.parts or PARTS:
        size = LOOK if part == "look" else (given.images, given.features, given.classes)
        results[part] = measured(part, *size)
        print(json.dumps({part: results[part]}), flush=True)
    measure.write(results, given.json)


if __name__ == "__main__":
    main()
