"""The loop of every training from images alone: a step is views, objective, gradients, optimizer; epochs end with a
look at the features. Pretraining and distillation differ in what they build for it.

Killed at any moment, it continues from the last checkpoint and ends with the same weights, bit for bit: every random
draw is a function of the seed and of the step or sample that it is for.
"""

import hashlib
import json
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, get_total_norm

from deploy.artifact import write_atomically
from deploy.failpoint import failpoint
from simclr_core.errors import BatchSizeError, NonFiniteLossError
from simclr_core.launch import Member, StopRequest
from simclr_core.loss.objective import Objective, Outcome, Views, buffers_kept, by_size
from simclr_core.model.model_directory import fill
from simclr_core.model.weight_average import WeightAverage
from simclr_core.monitoring.diagnostics import Monitor, Record, effective_rank, feature_std
from simclr_core.monitoring.history import Progress, record
from simclr_core.monitoring.throughput import Reading
from simclr_core.pretraining import checkpoint
from simclr_core.pretraining.batches import Batches
from simclr_core.pretraining.checkpoint import TrainingState
from simclr_core.pretraining.checkpoint_writer import CheckpointWriter
from simclr_core.pretraining.collapse import CollapseAlarm
from simclr_core.pretraining.early_stopping import AdaptationAlarm, EarlyStopping
from simclr_core.pretraining.precision import LossScaler
from simclr_core.schedule import Schedule
from simclr_core.stopwatch import Stopwatch, mark_stream, part, timed, with_exchange

LEAST_JUDGED = 16  # images of a process: the rank of fewer says little

logger = logging.getLogger(__name__)


class Learner(NamedTuple):
    """What is trained, and by what. ``model`` is ``network`` as it is run: distributed, compiled, or simply itself."""

    network: nn.Sequential  # encoder, projection head
    model: nn.Module
    optimizer: torch.optim.Optimizer
    objective: Objective
    scaler: LossScaler
    average: WeightAverage | None = None  # of the weights of ``network``, measured and published in their place
    largest_norm: float | None = None  # of the gradient of a step: a longer one is clipped
    less_memory: str = "set pretrain.micro_batch_size or gradient_checkpointing, lower batch_size or image_size"

    @property
    def result(self) -> nn.Sequential:
        """Encoder and projection head as they are measured and published."""
        network = self.network if self.average is None else self.average.network
        assert isinstance(network, nn.Sequential), network
        return network

    def state(self, step: int, history: list[Record], unfinished: list[tuple[float, float]]) -> TrainingState:
        """After ``step`` steps; its tensors are those that the next step changes."""
        tensors = checkpoint.optimizer_tensors(self.optimizer)
        lasting, scaler = self.objective.tensors(), self.scaler.state()
        average = {} if self.average is None else self.average.tensors()
        return TrainingState(step, self.network.state_dict(), tensors, history, unfinished, lasting, scaler, average)


@dataclass(frozen=True)
class Observers:
    """Who looks at a training while it lasts: ``monitor`` at the features, at the end of every ``every``-th epoch and
    of the last one. All processes make the features, each of its share of the images; the first one judges them."""

    monitor: Monitor
    progress: Progress
    alarm: CollapseAlarm
    adaptation: AdaptationAlarm | None = None
    stopping: EarlyStopping | None = None
    every: int = 1

    def is_due(self, epoch: int, epochs: int) -> bool:
        """Whether the features are looked at after ``epoch`` of ``epochs``."""
        return epoch % self.every == 0 or epoch == epochs

    def judge(self, state: TrainingState, member: Member) -> bool:
        """At the start and after every look, on every process at once: whether training ends here. Raises what an
        alarm raises."""
        self.alarm.judge(state, member)
        if self.adaptation is not None:
            self.adaptation.judge(state, member)
        return self.stopping is not None and self.stopping.judge(state, member)


def train(
    learner: Learner,
    batches: Batches,
    observers: Observers,
    schedule: Schedule,
    checkpoint_every: int,
    *,
    folder: Path,
    learning_rate_scale: float,
) -> list[Record]:
    """Train the learner's network in place, from the last checkpoint in ``folder`` if there is one.

    Called by every process of the group at once; the first one alone saves, and returns the history.
    A checkpoint is saved every ``checkpoint_every`` steps, at the end, which may be early, and when SIGTERM or Ctrl-C
    asks to stop; all of them are on the disk when this returns or raises SystemExit.

    Raises:
        NonFiniteLossError: on every process at once.
        CollapseError, AdaptationError: an alarm was raised.
        SystemExit: 128 + the signal that asked to stop.
    """
    member, steps, every = batches.member, schedule.steps, schedule.steps_per_epoch
    monitor, progress = observers.monitor, observers.progress
    encoder, head = learner.result
    begun, history, unfinished = resume(folder, learner, member)
    if begun < steps:
        _dry_batch(learner, next(batches.network_inputs(begun, begun + 1)), batches.marks(begun))
    progress.start(begun * batches.batch_size)
    ended = observers.judge(learner.state(begun, history, unfinished), member)
    last = begun if ended else steps
    inputs = timed("data", batches.network_inputs(begun, last))
    with StopRequest() as stop, CheckpointWriter(folder) as writer, Stopwatch(member.device) as stopwatch:
        readings = Readings(learner.scaler, batches, folder, unfinished)
        for step, views in zip(range(begun, last), inputs, strict=True):
            failpoint("pretrain.step")
            outcome = gradients(learner, views, step_seed(batches.seed, step, member.rank), batches.marks(step))
            numbers = _numbers(learner, outcome.loss, stop.agreed(member))
            readings.add(step, numbers, outcome.first if progress.shows(step) else None)
            rate = schedule.rate(step) * learning_rate_scale
            update(learner, rate, not_finite(numbers) if numbers.is_cuda else None)
            failpoint("pretrain.stepped")
            progress.step(batches.batch_size, readings.latest, rate)
            epoch, left = divmod(step + 1, every)
            if not left and observers.is_due(epoch, schedule.epochs):
                readings.settle()
                with part("watch"):
                    h = monitor.features(encoder)
                    judged = None if member.rank else monitor.measure(h, head, outcome.first, outcome.second)
                seconds = with_exchange(stopwatch.lap(), learner.model, min(len(unfinished), step + 1 - begun))
                if judged is not None:
                    history.append(record(epoch, unfinished, rate, learning_rate_scale, judged))
                    progress.epoch(history[-1], seconds)
                    with part("watch"):
                        progress.embeddings(epoch, monitor, h)
                    failpoint("pretrain.epoch")
                unfinished.clear()
                ended = observers.judge(learner.state(step + 1, history, unfinished), member)
            stopped = stop.signal if member.size == 1 else readings.signal
            if stopped or ended or (step + 1) % checkpoint_every == 0 or step + 1 == steps:
                readings.settle()
                if member.rank == 0:
                    writer.save(learner.state(step + 1, history, unfinished))
            if stopped:
                writer.wait()
                logger.info("stopped after step %d of %d; the same command continues from there", step + 1, steps)
                raise SystemExit(128 + stopped)
            if ended:
                break
    return history


class Readings:
    """Loss and gradient norm of each step as numbers, put into ``unfinished``, and the signal that asks to stop.

    On a processor they are read at once, before the weights change. A GPU would stand idle meanwhile: there they are
    read a step late, when the next step is queued, and by ``settle``, before anything lasts. Its optimizer leaves
    out a step that is not finite (``not_finite``); what such a step has left in BatchNorm's statistics and in a queue
    is in no checkpoint, no measurement and no record.
    """

    def __init__(
        self, scaler: LossScaler, batches: Batches, folder: Path, unfinished: list[tuple[float, float]]
    ) -> None:
        """``folder`` is where the images of a step that is not finite are listed."""
        self.signal = 0  # the last that was read; 0 for none
        self.latest: Reading | None = None
        self._scaler = scaler
        self._batches = batches
        self._folder = folder
        self._unfinished = unfinished
        self._unread: tuple[int, Tensor, torch.cuda.Event | None] | None = None
        self._unread_z: Tensor | None = None

    def add(self, step: int, numbers: Tensor, z: Tensor | None = None) -> None:
        """``numbers`` are those of ``_numbers``, the same on every process; of ``z`` [n, d] the spread is read too.

        Raises:
            NonFiniteLossError: of this step or the one before it, on every process at once.
        """
        self.settle()
        on_gpu = numbers.device.type == "cuda"
        arriving = numbers.to("cpu", non_blocking=True)
        self._unread_z = None if z is None else z.to("cpu", non_blocking=True)
        self._unread = step, arriving, mark_stream() if on_gpu else None
        if not on_gpu:
            self.settle()

    def settle(self) -> None:
        """Read what was added, and not read yet.

        Raises:
            NonFiniteLossError: as ``add``.
        """
        if self._unread is not None:
            (step, numbers, arrived), self._unread = self._unread, None
            if arrived is not None:
                arrived.synchronize()
            loss, norm, multiple, signal = numbers.tolist()
            self.signal = int(signal)
            self.latest = Reading(step, loss, self._checked(step, loss, norm, multiple), _spread(self._unread_z))
            self._unfinished.append((loss, self.latest.gradient_norm))

    def _checked(self, step: int, loss: float, norm: float, multiple: float) -> float:
        """The norm, 0 for a step that the scaler skips."""
        if math.isfinite(loss) and self._scaler.skips(norm, multiple):
            return 0.0
        if not (math.isfinite(loss) and math.isfinite(norm)):
            keys, listed = self._batches.keys(step), self._folder / f"non-finite-step-{step}.json"
            if self._batches.member.rank == 0:
                found = {"step": step, "loss": str(loss), "gradient_norm": str(norm), "images": keys}
                write_atomically(listed, json.dumps(found, indent=2) + "\n")
            raise NonFiniteLossError(step, loss, norm, keys, listed)
        return norm


def _spread(z: Tensor | None) -> tuple[float, float] | None:
    """Effective rank and spread of the rows [n, d]; None where too few are there to tell."""
    if z is None or len(z) < LEAST_JUDGED:
        return None
    return effective_rank(z), feature_std(z)


def gradients(learner: Learner, views: Views, seed: int, marks: Tensor | None = None) -> Outcome:
    """Forward and backward pass of a step; the gradients are then in the parameters."""
    torch.manual_seed(seed)  # for networks that draw: stochastic depth
    learner.optimizer.zero_grad()
    outcome = learner.objective.backward(learner.model, views, marks)
    learner.scaler.unscale(learner.optimizer)
    return outcome


def update(learner: Learner, learning_rate: float, left_out: Tensor | None = None) -> None:
    """One step along the gradients, clipped if they are longer than they may be; ``left_out``, on a GPU, is what
    ``not_finite`` gives."""
    if learner.largest_norm is not None:
        clip_grad_norm_(learner.network.parameters(), learner.largest_norm)  # without a look at the norm
    for group in learner.optimizer.param_groups:
        group["lr"] = learning_rate * group.get("rate", 1.0)
    learner.scaler.step(learner.optimizer, left_out)
    learner.objective.update()
    if learner.average is not None:
        learner.average.update()


def not_finite(numbers: Tensor) -> Tensor:
    """1.0 if loss or norm of ``_numbers`` is not finite, otherwise 0.0; on their device, for its optimizer. A processor
    does not need it: there ``Readings.add`` raises before the weights change."""
    return numbers[:2].isfinite().all().logical_not().float()


def resume(folder: Path, learner: Learner, member: Member) -> tuple[int, list[Record], list[tuple[float, float]]]:
    """The first process's newest checkpoint, put into every process's learner: its step, the history, and the
    unfinished epoch. None there is step 0. The others need not share its disk."""
    newest = checkpoint.newest_training(folder) if member.rank == 0 else None
    found = member.from_first((newest, checkpoint.load_training(newest)) if newest else None)
    if found is None:
        return 0, [], []
    path, state = found
    _put(state, learner, path)
    failpoint("pretrain.resumed")
    if member.rank == 0:
        logger.info("continuing from step %d (%s)", state.step, path)
    return state.step, list(state.history), list(state.unfinished)


def keep_best(learner: Learner, stopping: EarlyStopping | None, history: list[Record], steps_per_epoch: int) -> Record:
    """Put the best epoch into the learner, where that is to be kept. Returns the record of the epoch that it has.

    Raises:
        CheckpointError: the best epoch is damaged, or is not there.
    """
    path = None if stopping is None else stopping.best_checkpoint(history, steps_per_epoch)
    if path is None:
        return history[-1]
    state = checkpoint.load_training(path)
    _put(state, learner, path)
    logger.info("keeping epoch %d of %d, the best", state.history[-1]["epoch"], history[-1]["epoch"])
    return state.history[-1]


def _put(state: TrainingState, learner: Learner, path: Path) -> None:
    fill(learner.network, state.network, path, "the network of params.yaml")
    checkpoint.restore_optimizer(learner.optimizer, state.optimizer)
    learner.objective.restore(state.objective)
    if learner.average is not None:
        learner.average.restore(state.average)
    learner.scaler.restore(state.scaler)


def step_seed(seed: int, step: int, rank: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {step} {rank}".encode()).digest()[:8])


def _dry_batch(learner: Learner, views: Views, marks: Tensor | None = None) -> None:
    """A forward and backward pass that leaves no trace: what does not fit or match fails before anything is written."""
    try:
        with buffers_kept(learner.model):
            learner.objective.backward(learner.model, views, marks)
    except torch.OutOfMemoryError as error:
        raise BatchSizeError(
            f"a step over {sum(map(len, by_size(views)))} views per process needs more memory than the device has; "
            f"{learner.less_memory}, or use more processes"
        ) from error
    learner.model.zero_grad()


def _numbers(learner: Learner, loss: Tensor, signal: Tensor) -> Tensor:
    """Loss, gradient norm before clipping, the multiple of the loss that was back-propagated, and the signal; on the
    device."""
    norm = get_total_norm([weight.grad for weight in learner.network.parameters() if weight.grad is not None])
    return torch.stack([loss, norm, learner.scaler.multiple(loss), signal.to(loss.dtype)])
