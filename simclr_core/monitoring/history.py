"""What a training shows while it runs, and leaves when it is done: a record of each look at the features.

Records hold nothing that differs when the run is repeated. Rates and durations are shown only.
"""

import csv
import io
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self, cast

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from deploy.artifact import write_atomically
from simclr_core import plots
from simclr_core.monitoring.diagnostics import MEASURED, Measured, Monitor, Record, collapsed, is_collapsed
from simclr_core.monitoring.embedding_board import add_map, add_to_projector
from simclr_core.monitoring.throughput import Pace, Reading
from simclr_core.monitoring.trackers import CLOSING, STOPPING, Tracker, close_trackers
from simclr_core.progress import Bar
from simclr_core.reporter import emit

logger = logging.getLogger(__name__)

NAMED_SHARE = 0.05  # of an epoch: what takes less time is not worth a place in its line


class Progress:
    """On a terminal a bar with images per second and the time left, elsewhere a line per record; besides, TensorBoard,
    the events of ``reporter``, and trackers. With ``quiet`` nothing: for all processes but the first."""

    stage = "pretrain"  # whose events these are

    def __init__(
        self,
        epochs: int,
        images: int,
        tensorboard: Path,
        quiet: bool,
        trackers: Sequence[Tracker] = (),
        embedding_map_every: int = 0,
        pace: Pace | None = None,
    ) -> None:
        """``images`` is how many the whole run sees, counting each epoch. After every ``embedding_map_every`` epochs in
        which the features are looked at, TensorBoard gets a map of them; 0: none."""
        self._epochs = epochs
        self._images = images
        self._tensorboard = tensorboard
        self._quiet = quiet
        self._trackers = trackers
        self._map_every = embedding_map_every
        self._pace = None if quiet or pace is None or not pace.every else pace
        self._open = ExitStack()
        self._started: float | None = None
        self._seen = self._seen_before_epoch = 0
        self._collapsed = False  # in the last record of a step
        self.parts: dict[str, float] = {}  # seconds of the whole run, as the stopwatch counted them
        self.lost = ""  # what trackers lost, for the log, at the end

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self._open.close()
        self.lost = close_trackers(self._trackers, STOPPING if error else CLOSING)

    def start(self, done: int) -> None:
        """Begin after the ``done`` images that were seen before an interruption; again, after a roll-back."""
        self._open.close()
        self._done = done
        self._seen_before_epoch = self._seen
        self._started = self._started or time.monotonic()
        self._bar = self._open.enter_context(Bar(self._images, "images", done, self._quiet))
        if not self._quiet:
            # An epoch that an interruption lost is written again; purge_step hides its first copy.
            writer = SummaryWriter(str(self._tensorboard), purge_step=1 + done * self._epochs // self._images)
            self._board = self._open.enter_context(writer)
        if self._pace is not None:  # apart from the epochs, whose numbers TensorBoard would take for steps
            steps = SummaryWriter(str(self._tensorboard / "steps"), purge_step=1 + done // self._pace.batch_size)
            self._steps = self._open.enter_context(steps)
            self._logged = time.monotonic(), self._seen

    @property
    def seconds(self) -> float:
        assert self._started is not None
        return time.monotonic() - self._started

    @property
    def images_per_second(self) -> float:
        """Over the whole run."""
        return self._seen / self.seconds

    def step(self, images: int, latest: Reading | None = None, learning_rate: float = 0.0) -> None:
        """After each step of this number of ``images``; ``latest`` is the last one whose numbers were read."""
        self._done += images
        self._seen += images
        self._bar.update(images)
        if self._pace is not None and latest is not None and self._done // images % self._pace.every == 0:
            self._log_step(self._pace, latest, learning_rate)

    def shows(self, step: int) -> bool:
        """Whether a record will have the numbers of ``step``, counted from 0."""
        return self._pace is not None and self._pace.shows(step)

    def _log_step(self, pace: Pace, reading: Reading, learning_rate: float) -> None:
        """The rate counts all time since the last record, also that of a look at the features."""
        (before, seen), self._logged = self._logged, (time.monotonic(), self._seen)
        speed = pace.numbers((self._seen - seen) / (self._logged[0] - before))
        step, epoch = reading.step + 1, (reading.step + 1) * pace.batch_size * self._epochs / self._images
        share = f", MFU {100 * speed['mfu']:.0f} %" if "mfu" in speed else ""
        alarm = self._judge(step, reading.spread)
        tqdm.write(
            f"step {step}/{self._images // pace.batch_size}: loss {reading.loss:.4f}{alarm}; "
            f"{speed['images_per_second']:.0f} images/s{share}, {speed['memory_gigabytes']:.1f} GB"
        )
        sys.stdout.flush()
        learned = {"loss": reading.loss, "gradient_norm": reading.gradient_norm, "learning_rate": learning_rate}
        if reading.spread is not None:
            learned |= dict(zip(("effective_rank_z", "feature_std_z"), reading.spread, strict=True))
        numbers = {f"step/{name}": value for name, value in {**learned, **speed}.items()}
        for name, value in numbers.items():
            self._steps.add_scalar(name, value, step)
        for tracker in self._trackers:
            tracker.log(numbers, epoch, step)

    def _judge(self, step: int, spread: tuple[float, float] | None) -> str:
        """What the line of a step says of its z. Where it has collapsed since the record before, a warning and an event
        say so: the next look at the features may be hours away, and only it counts for ``pretrain.on_collapse``."""
        was_collapsed, self._collapsed = self._collapsed, spread is not None and collapsed(*spread)
        if spread is None or not self._collapsed:
            return ""
        if not was_collapsed:
            message = (
                f"step {step}: the output for the images of a batch has collapsed (effective rank {spread[0]:.3g}, "
                f"spread {spread[1]:.3g}); pretrain.on_collapse judges the end of the epoch"
            )
            logger.warning(message)
            emit("progress", stage=self.stage, message=message, collapsed_at_step=step)
        return ", COLLAPSED"

    def epoch(self, record: Record, seconds: Mapping[str, float]) -> None:
        """``seconds`` of each part of the time since the last record or the start. Not to be called with ``quiet``."""
        total = sum(seconds.values())
        rate = (self._seen - self._seen_before_epoch) / total
        self._seen_before_epoch = self._seen
        self.parts = {name: self.parts.get(name, 0.0) + spent for name, spent in seconds.items()}
        times = {f"time_{name}": round(spent / total, 4) for name, spent in seconds.items()}  # shares
        left = tqdm.format_interval((self._images - self._done) / self.images_per_second)
        message = f"epoch {record['epoch']}/{self._epochs}: {summary(record)}; {rate:.0f} images/s, {left} left"
        tqdm.write(f"{message}; {_largest(seconds)}")
        sys.stdout.flush()
        shown = cast("dict[str, float | None]", {**record, "images_per_second": round(rate, 1), **times})
        emit("progress", stage=self.stage, message=message, **shown)
        numbers = {name: value for name, value in shown.items() if name != "epoch" and value is not None}
        for name, value in numbers.items():
            self._board.add_scalar(_tag(name), value, record["epoch"])
        for tracker in self._trackers:
            tracker.log(numbers, record["epoch"])

    def embeddings(self, epoch: int, monitor: Monitor, h: Tensor) -> None:
        """A map when it is time for one; at the end, and with every map, the same for TensorBoard's projector."""
        mapped = self._map_every > 0 and (epoch % self._map_every == 0 or epoch == self._epochs)
        if mapped or epoch == self._epochs:
            features = h.cpu().numpy()
            add_to_projector(self._tensorboard, epoch, features, monitor)
            if mapped:
                add_map(self._board, self._tensorboard, epoch, features, monitor)


def record(
    epoch: int,
    steps: Sequence[tuple[float, float]],
    learning_rate: float,
    learning_rate_scale: float,
    measured: Measured,
) -> Record:
    """``steps`` are the loss and the gradient norm of each since the last record, and become means; the rate is the
    last step's, the scale what is left of it after roll-backs."""
    losses, gradient_norms = zip(*steps, strict=True)
    values = {
        "epoch": epoch,
        "loss": sum(losses) / len(losses),
        "learning_rate": learning_rate,
        "learning_rate_scale": learning_rate_scale,
        **measured,
        "gradient_norm": sum(gradient_norms) / len(gradient_norms),
    }
    rounded = {name: round(value, 6) if isinstance(value, float) else value for name, value in values.items()}
    return cast("Record", rounded)


def summary(record: Record) -> str:
    """A line for a person."""
    judged = {"kNN": record["knn_top1"], "probe": record["probe_top1"]}
    accuracies = "".join(f"{name} {top1:.1f} %, " for name, top1 in judged.items() if top1 is not None)
    alarm = ", COLLAPSED" if is_collapsed(record) else ""
    return f"loss {record['loss']:.4f}, {accuracies}effective rank {record['effective_rank']:.1f}{alarm}"


def _largest(seconds: Mapping[str, float]) -> str:
    total = sum(seconds.values())
    shares = sorted(((spent / total, name) for name, spent in seconds.items()), reverse=True)
    return ", ".join(f"{name} {100 * share:.0f} %" for share, name in shares if share >= NAMED_SHARE)


def _tag(name: str) -> str:
    """TensorBoard shows what has the same beginning together."""
    if name in MEASURED:
        return f"features/{name}"
    if name.startswith("time_") or name == "images_per_second":
        return f"time/{name.removeprefix('time_')}"
    return f"training/{name}"


def write_history(reports: Path, history: Sequence[Record]) -> None:
    """``pretrain.csv`` and ``curves.png``."""
    write_table(reports / "pretrain.csv", history)
    columns: dict[str, list[float | None]] = {
        "NT-Xent loss": [one["loss"] for one in history],
        "learning rate": [one["learning_rate"] for one in history],
        "online kNN, top-1 %": [one["knn_top1"] for one in history],
        "online linear probe, top-1 %": [one["probe_top1"] for one in history],
        "effective rank of h": [one["effective_rank"] for one in history],
    }
    title = "Pretraining: a falling loss, rising accuracies and a high rank are good; rank 1 is a collapse"
    plots.curves(reports / "curves.png", [one["epoch"] for one in history], columns, title)


def write_table(path: Path, history: Sequence[Record]) -> None:
    """A row for each look at the features."""
    content = io.StringIO()
    table = csv.DictWriter(content, list(history[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(history)
    write_atomically(path, content.getvalue())
