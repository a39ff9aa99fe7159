"""What a run does when its features collapse: report it, stop, or roll back to a healthy epoch at a lower rate.

An attempt is a training from the start or from a roll-back. Each has its own folder in the run directory, the
first the directory itself, then ``roll-back-1``, ``roll-back-2``: their number is all that a learning rate scale needs
to be known after any interruption. ``healthy`` holds the last epoch, of any attempt, in which nothing had collapsed.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from simclr_core.errors import CollapseError
from simclr_core.launch import Member
from simclr_core.monitoring.diagnostics import Record, is_collapsed, spread
from simclr_core.pretraining import checkpoint
from simclr_core.pretraining.checkpoint import TrainingState
from simclr_core.pretraining.early_stopping import count_in_a_row
from simclr_core.reporter import emit

Result = TypeVar("Result")

logger = logging.getLogger(__name__)


def collapsed_epochs(history: Sequence[Record]) -> int:
    """How many epochs that were looked at in a row, up to the last one, had collapsed."""
    return count_in_a_row(history, is_collapsed)


@dataclass(frozen=True)
class CollapseAlarm:
    """Raised after ``patience`` collapsed epochs in a row, never if that is None. ``healthy`` is where the ends of
    healthy epochs are kept, None for nowhere. Every process has one; the first one's history decides."""

    patience: int | None
    healthy: Path | None

    def judge(self, state: TrainingState, member: Member) -> None:
        """At the start and after every look at the features: raise the alarm, or keep the state.

        Raises:
            CollapseError: on every process at once.
        """
        if self.patience is None:
            return
        raised = member.rank == 0 and collapsed_epochs(state.history) >= self.patience
        found = member.from_first(state.history[-1] if raised else None)
        if found is not None:
            raise CollapseError(found["epoch"], spread(found), self.patience)
        if member.rank == 0 and self.healthy is not None:
            _keep(self.healthy, state)


def _keep(folder: Path, state: TrainingState) -> None:
    """Save the end of a healthy epoch, or the start. What is there already was saved before an interruption."""
    whole = not state.unfinished and not collapsed_epochs(state.history)
    if whole and not checkpoint.path_of(folder, state.step).exists():
        checkpoint.save_training(folder, state)


def with_roll_backs(train: Callable[..., Result], run: Path, factor: float, limit: int, member: Member) -> Result:
    """``train(folder=, learning_rate_scale=)``, again after each CollapseError, ``limit`` times in the life of the run.

    Every process calls it at once; each time the scale is ``factor`` times smaller.

    Raises:
        CollapseError: of the last attempt.
    """
    done = member.from_first(roll_backs(run))
    while True:
        try:
            return train(folder=attempt_folder(run, done), learning_rate_scale=factor**done)
        except CollapseError as error:
            if done >= limit:
                raise
            done += 1
            if member.rank == 0:
                _roll_back(run, done, factor**done, error)


def roll_backs(run: Path) -> int:
    """How often this run has been rolled back so far."""
    numbers = [int(folder.parent.name.removeprefix("roll-back-")) for folder in run.glob("roll-back-*/step-*")]
    return max(numbers, default=0)


def attempt_folder(run: Path, number: int) -> Path:
    """Where the attempt after ``number`` roll-backs has its checkpoints."""
    return run / f"roll-back-{number}" if number else run


def _roll_back(run: Path, number: int, scale: float, error: CollapseError) -> None:
    """The last healthy state becomes the first checkpoint of a new attempt, in one rename."""
    source = checkpoint.newest_training(run / "healthy")
    assert source is not None, "the start of a run is healthy"
    state = checkpoint.load_training(source)
    checkpoint.save_training(attempt_folder(run, number), state)
    epoch = state.history[-1]["epoch"] if state.history else 0
    message = f"{error.what}; roll-back {number}: continuing from epoch {epoch} with {scale:g} of the learning rate"
    logger.warning(message)
    emit("progress", stage="pretrain", message=message, rolled_back_to=epoch, learning_rate_scale=scale)
