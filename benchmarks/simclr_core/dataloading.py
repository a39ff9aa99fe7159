"""Images per second from the shards into batches: threads, processes and the cache; memory of an index of 10 million.

    python -m benchmarks.simclr_core.dataloading --json benchmarks/results/FILE.json
    python -m benchmarks.simclr_core.dataloading --per-core    nothing but one thread against libjpeg-turbo

``per_core`` is one thread of ``TrainingImages`` against libjpeg-turbo alone, which decodes the same files from memory
into the same memory again and again.

Threads are ``TrainingImages``; processes are torch's DataLoader over the same reading and decoding, an image at a time,
with the same number of workers, started before the clock. They take turns. ``cached`` is a later epoch over small
images.
"""

import hashlib
import io
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from benchmarks import measure
from deploy.images.preprocess import decode
from simclr_core.data.dataset import TrainingImages
from simclr_core.data.order import permuted
from simclr_core.data.shard_writing import write_shards
from simclr_core.data.shards import INDEX, Sample, ShardedImages

WORKERS = len(os.sched_getaffinity(0))
ROUNDS = 5
BATCH = 128
SAMPLES = 10_000_000
SIDE = 256  # of the photographs, pixels
FORMS = (("PNG", 28, 4096), ("JPEG", SIDE, 512))  # format, side in pixels, images


class Decoded(Dataset[NDArray[np.uint8]]):
    """What a worker process does for one image."""

    def __init__(self, images: ShardedImages) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, position: int) -> NDArray[np.uint8]:
        return np.ascontiguousarray(decode(self._images.read(position)).transpose(2, 0, 1))


def stored(folder: Path, form: str, side: int, count: int) -> ShardedImages:
    """Smooth pictures with noise, which compress about as photographs do."""
    random = np.random.default_rng(0)
    samples = []
    for number in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (6, 6, 3), np.uint8)).resize(
            (side, side), Image.Resampling.BICUBIC
        )
        pixels = np.asarray(coarse, np.int16) + random.integers(-12, 13, (side, side, 3))
        content = io.BytesIO()
        options = {"quality": 95, "subsampling": "4:4:4"} if form == "JPEG" else {}  # as prepare writes them
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(content, form, **options)
        data = content.getvalue()
        samples.append(Sample(f"{number:032x}{hashlib.sha256(data).hexdigest()[:32]}", form.lower(), data))
    write_shards(folder, [samples], max_bytes=2**28)
    return ShardedImages(folder)


def images_per_second(images: ShardedImages) -> dict[str, list[float]]:
    """One epoch a round, in another order each, for every way."""
    processes = DataLoader(Decoded(images), BATCH, num_workers=WORKERS, persistent_workers=True, shuffle=True)
    threads = TrainingImages(images, WORKERS, cache_bytes=0)
    cached = TrainingImages(images, WORKERS)
    ways: dict[str, Callable[[int], Iterator[object]]] = {
        "threads": lambda epoch: (threads.batch(batch) for batch in _epoch(images, epoch)),
        "processes": lambda _: iter(processes),
        "cached": lambda epoch: (cached.batch(batch) for batch in _epoch(images, epoch)),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(ROUNDS + 1):
        for name, batches in ways.items():
            started = time.perf_counter()
            for _ in batches(number):
                pass
            if number:  # the first round starts the workers and fills the cache
                rates[name].append(len(images) / (time.perf_counter() - started))
    return rates


def per_core(images: ShardedImages) -> dict[str, Any]:
    """Images a second of one core: ready batches, and nothing but the decoder; they take turns."""
    training = TrainingImages(images, 1, cache_bytes=0)
    files = [images.read(position) for position in range(len(images))]
    pixels = np.empty((SIDE, SIDE, 3), np.uint8)

    def batches() -> float:
        started = time.process_time()
        for batch in _epoch(images, 0):
            training.batch(batch)
        return len(images) / (time.process_time() - started)

    def bare() -> float:
        started = time.process_time()
        for data in files:
            simplejpeg.decode_jpeg(data, buffer=pixels.reshape(-1))
        return len(files) / (time.process_time() - started)

    return measure.compared(measure.interleaved({"batches": batches, "libjpeg_turbo": bare}, ROUNDS), 0)


def _epoch(images: ShardedImages, epoch: int) -> Iterator[NDArray[np.int64]]:
    order = permuted(0, epoch, np.arange(len(images)), len(images))
    return (order[first : first + BATCH] for first in range(0, len(order), BATCH))


def index_memory() -> dict[str, float]:
    """Megabytes that a fresh process grows by, opening an index of SAMPLES and drawing batches all over it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        index = np.lib.format.open_memmap(folder / "index.npy", mode="w+", dtype=INDEX, shape=(SAMPLES,))
        index.flush()
        keys = np.lib.format.open_memmap(folder / "keys.npy", mode="w+", dtype=np.uint8, shape=(SAMPLES, 32))
        keys.flush()
        (folder / "empty.tar").touch()
        (folder / "shards.json").write_text('["empty.tar"]', encoding="utf-8")
        with get_context("spawn").Pool(1) as process:
            return process.apply(_index_memory, (folder,))


def _index_memory(folder: Path) -> dict[str, float]:
    _draw(folder, steps=1, images=1000)
    before = {field: _kilobytes(field) for field in ("RssAnon", "RssFile", "RssShmem")}
    started = time.perf_counter()
    held = _draw(folder, steps=100, images=SAMPLES)
    seconds = time.perf_counter() - started
    grown = {field: (_kilobytes(field) - before[field]) / 1024 for field in before}
    assert len(held) == SAMPLES
    files = sum((folder / name).stat().st_size for name in ("index.npy", "keys.npy"))
    return {
        "index_bytes_per_sample": INDEX.itemsize,
        "file_bytes_per_sample": files // SAMPLES,
        "own_megabytes": round(grown["RssAnon"], 1),  # of this process alone
        "mapped_megabytes": round(
            grown["RssFile"] + grown["RssShmem"], 1
        ),  # pages of the files, shared and given back under pressure
        "milliseconds_per_batch_drawn": round(10 * seconds, 2),
    }


def _draw(folder: Path, steps: int, images: int) -> TrainingImages:
    source = ShardedImages(folder)
    training = TrainingImages(source, workers=1)
    for step in range(steps):
        positions = permuted(0, 0, np.arange(step * 256, step * 256 + 256) % images, images)
        for position in positions.tolist():
            source.read(position)
    return training


def _kilobytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def decoding() -> dict[str, Any]:
    """``per_core`` of the JPEG files alone."""
    [(form, side, count)] = [one for one in FORMS if one[0] == "JPEG"]
    with tempfile.TemporaryDirectory() as folder:
        alone = per_core(stored(Path(folder) / "train", form, side, count))
    return measure.header("dataloading", "torch", "simplejpeg") | {"images": count, "side": side, "per_core": alone}


def compared() -> dict[str, Any]:
    results: list[dict[str, Any]] = [{"samples": SAMPLES, **index_memory()}]
    print(json.dumps(results[-1]), flush=True)
    for form, side, count in FORMS:
        with tempfile.TemporaryDirectory() as folder:
            images = stored(Path(folder) / "train", form, side, count)
            rates = images_per_second(images)
            alone = per_core(images) if form == "JPEG" else None
        row: dict[str, Any] = {"format": form, "side": side, "workers": WORKERS} | (
            {"per_core": alone} if alone else {}
        )
        for name, taken in rates.items():
            row[name] = {"images_per_second": round(statistics.median(taken)), "spread": _spread(taken)}
        against = zip(rates["threads"], rates["processes"], strict=True)
        row["threads_times_faster"] = round(statistics.median(ours / theirs for ours, theirs in against), 2)
        results.append(row)
        print(json.dumps(row), flush=True)
    return measure.header("dataloading", "torch", "pillow") | {"results": results}


def _spread(values: list[float]) -> list[int]:
    return [round(min(values)), round(max(values))]


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--per-core", action="store_true", help="only one core against libjpeg-turbo")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = decoding() if arguments.per_core else compared()
    if arguments.per_core:
        print(json.dumps(results, indent=1))
    measure.write(results, arguments.json)


if __name__ == "__main__":
    main()
