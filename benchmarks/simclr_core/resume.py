"""What a checkpoint costs the training, and how long a resumed training takes to its first batch.

    python -m benchmarks.simclr_core.resume --json benchmarks/results/FILE.json

*Checkpoint*: the same steps of a small network on two threads, without checkpoints, with ours after every ``EVERY``-th
step, and with ``torch.save`` and fsync in their place; rounds are interleaved. The state is that of a ResNet-18 or
ResNet-50 under SGD with momentum: 90 and 188 MB. ``stall`` is the time for which the call keeps the training thread:
what we claim. ``lost`` is by how much the round is longer than one without, over its checkpoints: where every core
trains, the work of the background thread is in it too.

*First batch*: an index of 10 million images over a few real shards, opened at 0 % and at 95 % of an epoch, in turn.
"""

import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import measure
from simclr_core.augmentation.augmentations import Augmentation
from simclr_core.data.dataset import TrainingImages
from simclr_core.data.order import Order
from simclr_core.data.shards import INDEX, ShardedImages, read_card
from simclr_core.launch import Member
from simclr_core.model.encoder import build_encoder
from simclr_core.pretraining.batches import Batches
from simclr_core.pretraining.checkpoint import TrainingState, optimizer_tensors
from simclr_core.pretraining.checkpoint_writer import CheckpointWriter
from simclr_core.pretraining.pretrain import build_optimizer
from tests.conftest import write_prepared

THREADS = 2
ENCODERS = ("resnet18", "resnet50")
SIDE, BATCH = 32, 32  # of the steps in between: a few tenths of a second
EVERY, SAVES = 10, 3  # steps between two checkpoints, and checkpoints of a round
IMAGES = 10_000_000
BATCH_SIZE = 256

Save = Callable[[int], None]


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="(%(default)s)")
    parser.add_argument("--encoders", nargs="+", default=ENCODERS, help="(%(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    with tempfile.TemporaryDirectory(prefix="simclr-resume-") as folder:
        result = measure.header("resume", "torch") | {
            "threads": THREADS,
            "first_batch": first_batch(Path(folder) / "data", 4 * options.rounds),
            "checkpoint": {name: checkpoints(name, Path(folder) / name, options.rounds) for name in options.encoders},
        }
    print(json.dumps(result, indent=1))
    measure.write(result, options.json)


class Training:
    """Steps of a network on random pixels, with checkpoints in between."""

    def __init__(self, encoder: str) -> None:
        torch.manual_seed(0)
        self.network = build_encoder(encoder).to(memory_format=torch.channels_last)
        self.optimizer = build_optimizer("sgd", nn.Sequential(self.network), 0.9, 1e-6)
        self._images = torch.randn(BATCH, 3, SIDE, SIDE).contiguous(memory_format=torch.channels_last)
        self.step()

    def step(self) -> None:
        self.optimizer.zero_grad()
        features: Tensor = self.network(self._images)
        features.square().mean().backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    def round(self, save: Save | None) -> tuple[float, list[float]]:
        """Seconds of a whole round, and of each call of ``save`` in it."""
        stalls = []
        began = time.perf_counter()
        for number in range(EVERY * SAVES):
            self.step()
            if save and number % EVERY == 0:
                called = time.perf_counter()
                save(number)
                stalls.append(time.perf_counter() - called)
        return time.perf_counter() - began, stalls

    def state(self, step: int) -> TrainingState:
        return TrainingState(step, self.network.state_dict(), optimizer_tensors(self.optimizer), [], [])


def checkpoints(encoder: str, folder: Path, rounds: int) -> dict[str, Any]:
    """Milliseconds per checkpoint, ours and those of ``torch.save``."""
    folder.mkdir()
    training = Training(encoder)
    state = training.state(0)
    size = sum(tensor.nbytes for tensors in (state.network, state.optimizer) for tensor in tensors.values())

    def torch_save(step: int) -> None:
        with (folder / f"{step}.pt").open("wb") as file:
            state = training.state(step)
            torch.save({"step": step, "network": state.network, "optimizer": state.optimizer}, file)
            file.flush()
            os.fsync(file.fileno())

    seconds: dict[str, list[float]] = {"none": [], "ours": [], "torch_save": []}
    stalls: dict[str, list[float]] = {"ours": [], "torch_save": []}
    with CheckpointWriter(folder / "run") as writer:
        writer.save(training.state(0))  # makes the buffers
        for number in range(rounds):
            for name, save in (
                ("none", None),
                ("ours", lambda step, number=number: writer.save(training.state(1 + number * EVERY * SAVES + step))),
                ("torch_save", torch_save),
            ):
                writer.wait()
                whole, calls = training.round(save)
                seconds[name].append(whole)
                if save:
                    stalls[name] += calls
    shutil.rmtree(folder)
    lost = {
        name: [
            (with_saves - without) / SAVES for with_saves, without in zip(seconds[name], seconds["none"], strict=True)
        ]
        for name in stalls
    }
    return {
        "state_megabytes": round(size / 1e6),
        "step_ms": _spread([whole / (EVERY * SAVES) for whole in seconds["none"]]),
        "stall_ms": {name: _spread(values) for name, values in stalls.items()},
        "stall_ratio": _ratio(stalls),
        "lost_ms": {name: _spread(values) for name, values in lost.items()},
        "lost_ratio": _ratio(lost),
    }


def first_batch(workspace: Path, rounds: int) -> dict[str, Any]:
    """Milliseconds from nothing open to the first batch of views, at the beginning and near the end of an epoch."""
    workspace.mkdir()
    write_prepared(workspace)
    _stretch_index(workspace / "data" / "prepared" / "train", IMAGES)
    steps = IMAGES // BATCH_SIZE
    seconds: dict[str, list[float]] = {"at_0": [], "at_95": []}
    for turn in range(rounds + 1):
        places = [("at_0", 0), ("at_95", steps * 95 // 100)]
        for name, step in places if turn % 2 else reversed(places):  # neither is always the one that comes second
            began = time.perf_counter()
            _open_and_read(workspace / "data" / "prepared", step)
            if turn:  # the first opening brings the pages of the index into memory, for either
                seconds[name].append(time.perf_counter() - began)
    ratio = statistics.median(seconds["at_95"]) / statistics.median(seconds["at_0"])
    return {
        "images": IMAGES,
        **{f"{name}_ms": _spread(values) for name, values in seconds.items()},
        "ratio": round(ratio, 3),
    }


def _open_and_read(prepared: Path, step: int) -> None:
    member = Member(0, 1, torch.device("cpu"))
    images = ShardedImages(prepared / "train")
    order = Order(0, len(images))
    batches = Batches(
        TrainingImages(images), read_card(prepared), Augmentation(16, blur=0.0), BATCH_SIZE, order, member
    )
    inputs = batches.network_inputs(step, step + 1)
    assert len(next(iter(inputs))) == 2 * BATCH_SIZE


def _stretch_index(split: Path, images: int) -> None:
    """Repeat the records of real images up to this number; their keys stay zeros, which take no room on disk."""
    records = np.load(split / "index.npy")
    index = np.lib.format.open_memmap(split / "index.npy", "w+", INDEX, (images,))
    for first in range(0, images, len(records)):
        index[first : first + len(records)] = records[: images - first]
    index.flush()
    np.lib.format.open_memmap(split / "keys.npy", "w+", np.uint8, (images, 32)).flush()


def _ratio(seconds: dict[str, list[float]]) -> float | None:
    """None where the machine's noise is above the cost: a ratio of such numbers means nothing."""
    ours, theirs = (statistics.median(seconds[name]) for name in ("ours", "torch_save"))
    return round(ours / theirs, 3) if ours >= 0 and theirs > 0 else None


def _spread(seconds: Sequence[float]) -> dict[str, float]:
    """Milliseconds: median, least and most."""
    values = {"median": statistics.median(seconds), "least": min(seconds), "most": max(seconds)}
    return {name: round(1000 * value, 1) for name, value in values.items()}


if __name__ == "__main__":
    main()
