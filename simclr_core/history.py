"""What a pretraining run shows while it runs, and leaves when it is done: one record per epoch.

Records hold ``epoch``, ``loss``, ``learning_rate``, ``knn_top1``, ``effective_rank``, ``feature_std``, ``alignment``,
``uniformity`` and ``gradient_norm``: nothing that differs when the run is repeated. Rates and durations are shown only.
"""

import csv
import io
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from deploy.artifact import write_atomically
from simclr_core import plots
from simclr_core.diagnostics import collapsed
from simclr_core.reporter import emit

Record = Mapping[str, Any]


class Progress:
    """On a terminal a bar with images per second and the time left, elsewhere a line per epoch; besides, TensorBoard
    and the events of ``reporter``. With ``quiet`` nothing: for all processes but the first."""

    def __init__(self, epochs: int, images: int, tensorboard: Path, quiet: bool) -> None:
        """``images`` is how many the whole run sees, counting each epoch."""
        self._epochs = epochs
        self._images = images
        self._tensorboard = tensorboard
        self._quiet = quiet
        self._open = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def start(self, done: int) -> None:
        """Begin to count, after the ``done`` images that were seen before an interruption."""
        self._first = self._done = done
        self._started = time.monotonic()
        hidden = self._quiet or not sys.stderr.isatty()
        bar = tqdm(total=self._images, initial=done, unit="img", unit_scale=True, disable=hidden)
        self._bar = self._open.enter_context(bar)
        if not self._quiet:
            # An epoch that an interruption lost is written again; purge_step hides its first copy.
            writer = SummaryWriter(str(self._tensorboard), purge_step=1 + done * self._epochs // self._images)
            self._board = self._open.enter_context(writer)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    @property
    def images_per_second(self) -> float:
        return (self._done - self._first) / self.seconds

    def step(self, images: int) -> None:
        self._done += images
        self._bar.update(images)

    def epoch(self, record: Record) -> None:
        """Not to be called with ``quiet``."""
        rate = self.images_per_second
        left = tqdm.format_interval((self._images - self._done) / rate)
        message = f"epoch {record['epoch']}/{self._epochs}: {summary(record)}, {rate:.0f} images/s, {left} left"
        tqdm.write(message)
        sys.stdout.flush()
        emit("progress", stage="pretrain", message=message, images_per_second=round(rate, 1), **record)
        for name, value in record.items():
            if name != "epoch" and value is not None:
                self._board.add_scalar(name, value, record["epoch"])


def record(
    epoch: int,
    losses: Sequence[float],
    gradient_norms: Sequence[float],
    learning_rate: float,
    measured: Mapping[str, float | None],
) -> Record:
    """Losses and gradient norms are those of the epoch's steps and become their means; the rate is the last step's."""
    values = {
        "epoch": epoch,
        "loss": sum(losses) / len(losses),
        "learning_rate": learning_rate,
        **measured,
        "gradient_norm": sum(gradient_norms) / len(gradient_norms),
    }
    return {name: round(value, 6) if isinstance(value, float) else value for name, value in values.items()}


def summary(record: Record) -> str:
    knn = "" if record["knn_top1"] is None else f"kNN {record['knn_top1']:.1f} %, "
    alarm = ", COLLAPSED" if collapsed(record["effective_rank"], record["feature_std"]) else ""
    return f"loss {record['loss']:.4f}, {knn}effective rank {record['effective_rank']:.1f}{alarm}"


def write_history(reports: Path, history: Sequence[Record]) -> None:
    """``pretrain.csv`` and ``curves.png``."""
    content = io.StringIO()
    table = csv.DictWriter(content, list(history[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(history)
    write_atomically(reports / "pretrain.csv", content.getvalue())
    plots.curves(reports / "curves.png", history)
