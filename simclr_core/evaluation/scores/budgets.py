"""Accuracy by the number of labels: linear probes on several draws of each label budget, with intervals.

The first labels of a class are worth most, and which ones they are matters: one draw of ten labels may be five points
from the next. So each budget is drawn several times, and the interval of its mean knows of the draws and of the test
images.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simclr_core.evaluation.images import EvaluationImages
from simclr_core.evaluation.linear_probe import Probe, fit_probe, ranked_classes
from simclr_core.evaluation.scores.classification import estimate
from simclr_core.evaluation.scores.folds import Fold
from simclr_core.evaluation_reports import BudgetAccuracies, Estimate
from simclr_core.launch import Member

SIMCLR, START, PIXELS = "simclr", "start", "pixels"  # names of features: trained, of given weights as they came, raw


@dataclass(frozen=True)
class FeatureSets:
    """The features of both splits by name: float32 [n, d], of the images of ``train`` and ``test``. Where processes
    share the names, each has the features of some.

    ``folds`` says who answers which of the images of ``test``; out of fold these are the training images again.
    ``worth`` is what an answered image counts for, of a test image.
    """

    bank: Mapping[str, NDArray[np.float32]]
    queries: Mapping[str, NDArray[np.float32]]
    train: EvaluationImages
    test: EvaluationImages
    classes: int
    folds: Sequence[Fold]
    worth: float = 1.0


@dataclass(frozen=True)
class PlannedBudget:
    """Labels and draws of a budget; ``asked`` has for each row of the report the names of features, and which draw."""

    budget: str
    labels: int
    draws: int
    asked: Mapping[str, Sequence[tuple[str, int]]]


def plan_budgets(sets: FeatureSets, names: Collection[str]) -> Iterator[PlannedBudget]:
    """Each budget that all folds have, for the features of these ``names``: of classes with few labels, one fold may
    take all and another not.

    Of random weights there is a draw of the labels for each draw of the weights, as long as there are both.
    """
    random = random_features(names)
    rows = [name for name in (SIMCLR, PIXELS, START) if name in names]
    for budget, first in sets.folds[0].drawn.items():
        if any(budget not in fold.drawn for fold in sets.folds):
            continue
        draws = min(len(fold.drawn[budget]) for fold in sets.folds)
        asked = {name: [(name, number) for number in range(draws)] for name in rows}
        asked["random_init"] = [(random[n % len(random)], n % draws) for n in range(max(draws, len(random)))]
        yield PlannedBudget(budget, len(first[0].positions), draws, asked)


def random_features(names: Iterable[str]) -> list[str]:
    """The names of the features of random weights."""
    return [name for name in names if name not in (SIMCLR, PIXELS, START)]


def measure_budgets(
    known: Mapping[str, Sequence[Sequence[Probe]]], sets: FeatureSets, l2_count: int, seed: int, member: Member
) -> Iterator[tuple[str, BudgetAccuracies]]:
    """Yield each budget, and what probes on the trained features, on random weights and on pixels reach with it.

    Args:
        known: by the name of the features and by fold, probes that were fitted on the first draw of some budgets.
        sets: with the features ``simclr``, ``pixels``, ``start`` if there is one, and those of random weights, each
            under a separate name; the processes of a group, which all call this at once, have them in turn.
    """
    names = list(known)
    fitted = {
        (name, index, probe.fraction, 0): probe
        for name, folds in known.items()
        for index, probes in enumerate(folds)
        for probe in probes
    }

    def of(counts: Sequence[int], labels: int) -> Estimate:
        accuracies = [number / len(sets.test.labels) for number in counts]
        return estimate(accuracies, sets.worth * sets.test.labeled, labels)

    def right(name: str, budget: str, number: int, index: int) -> int:
        fold = sets.folds[index]
        probe = fitted.get((name, index, budget, number)) or fit_probe(
            sets.bank[name],
            fold.known,
            sets.train.group_keys,
            sets.classes,
            fold.drawn[budget][number],
            l2_count,
            seed + number,
        )
        answers = ranked_classes(probe, fold.rows(sets.queries[name]))[:, 0]
        return int(np.sum(answers == sets.test.labels[fold.asked]))

    def count(budget: str, pairs: Iterable[tuple[str, int]]) -> dict[tuple[str, int], int]:
        """Right answers with the features of a name on a draw of the labels."""
        own = dict.fromkeys(pair for pair in pairs if names.index(pair[0]) % member.size == member.rank)
        counts = {pair: sum(right(pair[0], budget, pair[1], fold) for fold in range(len(sets.folds))) for pair in own}
        return {pair: number for part in member.gathered(counts) for pair, number in part.items()}

    for one in plan_budgets(sets, names):
        counts = count(one.budget, [pair for asked in one.asked.values() for pair in asked])
        measured = {row: of([counts[pair] for pair in asked], one.labels) for row, asked in one.asked.items()}
        yield one.budget, BudgetAccuracies(labels=one.labels, draws=one.draws, **measured)
