"""When training ends before its last epoch, and which epoch's network is kept, by what the monitor measures.

Both look at how many records in a row, up to the last one, were bad: worse than the weights that training began
with, by more than chance (``AdaptationAlarm``, an error), or no better than the best one so far (``EarlyStopping``).
Measured are held-out labels of training images, or, without labels, the effective rank. No test image is looked at; but
an epoch that is chosen by labels owes a part of its accuracy on them to the choice.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from deploy.artifact import verify
from deploy.errors import ArtifactError
from simclr_core.errors import AdaptationError, CheckpointError
from simclr_core.launch import Member
from simclr_core.monitoring.diagnostics import Record
from simclr_core.pretraining import checkpoint
from simclr_core.pretraining.checkpoint import TrainingState

ACCURACIES = ("knn_top1", "probe_top1")
STANDARD_ERRORS = 1.645  # one-sided, 95 %

logger = logging.getLogger(__name__)

Measure = Literal["knn_top1", "probe_top1", "effective_rank"]


def count_in_a_row(history: Sequence[Record], is_bad: Callable[[Record], bool]) -> int:
    """How many records up to the last one are all bad."""
    good = (number for number, record in enumerate(reversed(history)) if not is_bad(record))
    return next(good, len(history))


@dataclass(frozen=True)
class AdaptationAlarm:
    """Raised when ``patience`` epochs in a row are less accurate on held-out labels than ``before``, the accuracies of
    the given weights in percent on ``judged`` images, by more than chance. Every process has one; the first one's
    history decides."""

    patience: int
    before: Mapping[str, float | None]
    judged: int

    def judge(self, state: TrainingState, member: Member) -> None:
        """At the start and after every look at the features.

        Raises:
            AdaptationError: on every process at once.
        """
        raised = member.rank == 0 and count_in_a_row(state.history, self._is_worse) >= self.patience
        found = member.from_first((state.history[-1], dict(self.before)) if raised else None)
        if found is not None:
            record, before = found
            shown = f"kNN {record['knn_top1']:.1f} % and probe {record['probe_top1']:.1f} %"
            start = " and ".join(f"{before[name]:.1f} %" for name in ACCURACIES)
            raise AdaptationError(
                f"epoch {record['epoch']}: {shown} of held-out training labels, {start} with the unchanged weights; "
                f"worse for {self.patience} epochs in a row. Lower pretrain.warm_start.learning_rate_share or "
                "pretrain.weights.layer_decay, set pretrain.weights.frozen_stem: true, weaken pretrain.augmentation; "
                "pretrain.weights.stop_after: null trains to the end in spite of that"
            )

    def _is_worse(self, record: Record) -> bool:
        return all(self._below(self.before[name], record.get(name)) for name in ACCURACIES)

    def _below(self, before: float | None, now: Any) -> bool:
        """Two proportions on the same images, taken for independent: their errors are not, so this is careful."""
        if before is None or now is None or not self.judged:
            return False
        share = (before + now) / 200
        margin = STANDARD_ERRORS * 100 * math.sqrt(2 * share * (1 - share) / self.judged)
        return bool(now < before - margin)


@dataclass(frozen=True)
class EarlyStopping:
    """Ends a training when ``patience`` records in a row have no higher ``measure`` than the best before them; None:
    never. ``best`` is where the state of the best epoch is kept, None for nowhere. Every process has one; the first
    one's history decides. Of equal epochs the first is the best."""

    measure: Measure
    patience: int | None
    best: Path | None

    def judge(self, state: TrainingState, member: Member) -> bool:
        """At the start and after every look, on every process at once: keep the state if its epoch is the best, and
        say whether training ends here."""
        if member.rank == 0 and self.best is not None:
            self._keep(self.best, state)
        if self.patience is None or not member.from_first(self._has_ended(state.history)):
            return False
        if member.rank == 0:
            epoch = state.history[-1]["epoch"]
            logger.info(
                "%s has not risen for %d epochs: training ends after epoch %d", self.measure, self.patience, epoch
            )
        return True

    def best_record(self, history: Sequence[Record]) -> Record | None:
        """None where nothing was measured, as without labels."""
        measured = [record for record in history if record[self.measure] is not None]
        return max(measured, key=self._value, default=None)

    def best_checkpoint(self, history: Sequence[Record], steps_per_epoch: int) -> Path | None:
        """Where the best epoch is kept; None if that is the last one, or none was kept.

        Raises:
            CheckpointError: it is damaged, or is not there.
        """
        found = self.best_record(history)
        if self.best is None or found is None or found is history[-1]:
            return None
        path = checkpoint.path_of(self.best, found["epoch"] * steps_per_epoch)
        try:
            verify(path)
        except ArtifactError as error:
            raise CheckpointError(
                f"the best epoch, {found['epoch']}, was kept in {path}, which cannot be used ({error}); set "
                "pretrain.early_stopping.keep: last, or remove the directory of the run to train from the start"
            ) from None
        return path

    def _has_ended(self, history: Sequence[Record]) -> bool:
        best = self.best_record(history)
        if best is None or self.patience is None:
            return False
        return count_in_a_row(history, lambda record: record is not best) >= self.patience

    def _keep(self, folder: Path, state: TrainingState) -> None:
        """What is there already was saved before an interruption."""
        whole = state.history and not state.unfinished
        is_best = whole and self.best_record(state.history) is state.history[-1]
        if is_best and not checkpoint.path_of(folder, state.step).exists():
            checkpoint.save_training(folder, state)

    def _value(self, record: Record) -> float:
        value = record[self.measure]
        assert value is not None
        return value
