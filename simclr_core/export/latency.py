"""How long the candidate takes for one image, compared with the champion: a fact of this machine, so never a result of
DVC.

    python -m simclr_core latency        in a workspace, after export; writes .simclr/timings/latency.json

Both encoders take turns on the same files, so that whatever else the machine does slows both. Each runs on one thread:
the idle threads of one would spin next to the other.
"""

import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import deploy
from simclr_core import reports
from simclr_core.data.shards import ShardedImages
from simclr_core.errors import DatasetError
from simclr_core.reports import LatencyReport

IMAGES = 64
ROUNDS = 100
WARM_UP = 5  # first calls allocate


def run(workspace: Path) -> None:
    """Measure ``models/bundle``, and ``models/champion/bundle`` if there is one.

    Raises:
        SimclrError, DeployError: there are no prepared images, or a bundle cannot be used.
    """
    candidate = deploy.load(workspace / "models" / "bundle", threads=1)
    released = workspace / "models" / "champion" / "bundle"
    champion = deploy.load(released, threads=1) if released.exists() else None
    encoders = [candidate, champion] if champion else [candidate]
    milliseconds = [round(1000 * seconds, 3) for seconds in latencies(encoders, files(workspace / "data" / "prepared"))]
    report = LatencyReport(
        bundle=candidate.info["id"],
        champion=champion.info["id"] if champion else None,
        p50_ms=milliseconds[0],
        champion_p50_ms=milliseconds[1] if champion else None,
        rounds=ROUNDS,
    )
    reports.write(workspace, report)


def latencies(encoders: Sequence[deploy.Encoder], pictures: Sequence[bytes], rounds: int = ROUNDS) -> list[float]:
    """Median seconds of each encoder from the bytes of one image file to its embedding."""
    durations: list[list[float]] = [[] for _ in encoders]
    for turn in range(-WARM_UP, rounds):
        order = range(len(encoders)) if turn % 2 else reversed(range(len(encoders)))
        for position in order:
            began = time.perf_counter()
            encoders[position].embed(pictures[turn % len(pictures)])
            if turn >= 0:
                durations[position].append(time.perf_counter() - began)
    return [statistics.median(one) for one in durations]


def files(prepared: Path) -> list[bytes]:
    """Image files spread evenly over the test split; without one, over the training images.

    Raises:
        DatasetError: there are no images.
    """
    for split in ("test", "train"):
        images = ShardedImages(prepared / split)
        if len(images):
            chosen = np.linspace(0, len(images) - 1, min(IMAGES, len(images))).round()
            return [images.read(int(position)) for position in chosen]
    raise DatasetError(f"{prepared}: no images to measure with; run `simclr run --select prepare`")
