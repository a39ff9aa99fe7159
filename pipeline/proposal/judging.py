"""How thoroughly a run judges what it has trained: as thoroughly as the time allows."""

from collections.abc import Callable
from dataclasses import dataclass

from simclr_core.config import FinetuneConfig, LinearEvalConfig

SHARE = 0.2  # of the time of a run, for more than the least


@dataclass(frozen=True)
class Judging:
    """Epochs of fine-tuning, draws of labels for a linear probe, the budgets in labels of each class, and the seeds of
    fine-tuning, each of which is two trainings."""

    tuning_epochs: int
    draws: int
    labels_per_class: tuple[int, ...]
    seeds: tuple[int, ...] = FinetuneConfig().seeds


MOST = Judging(
    FinetuneConfig().epochs, LinearEvalConfig().draws, tuple(int(one) for one in LinearEvalConfig().labels_per_class)
)
LEVELS = (
    MOST,
    *(Judging(epochs, MOST.draws, MOST.labels_per_class) for epochs in (20, 10, 5)),
    *(Judging(5, 1, budgets) for budgets in (MOST.labels_per_class, (5, 25), ())),
    Judging(5, 1, (), MOST.seeds[:1]),
)
"""From the most thorough to the least."""


def choose_judging(seconds: float, cost: Callable[[Judging], float]) -> Judging:
    """The most thorough level that leaves enough of these ``seconds`` for the rest of a run; ``cost`` says what a run
    takes at a level."""
    least = cost(LEVELS[-1])
    return next(one for one in LEVELS if cost(one) - least <= SHARE * seconds)
