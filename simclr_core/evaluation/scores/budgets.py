"""Accuracy by the number of labels: linear probes on several draws of each label budget, with intervals.

The first labels of a class are worth most, and which ones they are matters: one draw of ten labels may be five points
from the next. So each budget is drawn several times, and the interval of its mean knows of the draws and of the test
images.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simclr_core.evaluation.images import EvaluationImages
from simclr_core.evaluation.linear_probe import Probe, fit_probe, ranked_classes
from simclr_core.evaluation.scores.classification import estimate
from simclr_core.evaluation.scores.folds import Fold
from simclr_core.evaluation_reports import BudgetAccuracies, Estimate

SIMCLR, START = "simclr", "start"  # names of features: trained, and of given weights as they came


@dataclass(frozen=True)
class FeatureSets:
    """The features of both splits by name: float32 [n, d], of the images of ``train`` and ``test``.

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


def measure_budgets(
    known: Mapping[str, Sequence[Sequence[Probe]]], sets: FeatureSets, l2_count: int, seed: int
) -> Iterator[tuple[str, BudgetAccuracies]]:
    """Yield each budget, and what probes on the trained features, on random weights and on pixels reach with it.

    Args:
        known: by the name of the features and by fold, probes that were fitted on the first draw of some budgets.
        sets: with the features ``simclr``, ``pixels``, ``start`` if there is one, and those of random weights, each
            under a separate name.
    """
    fitted = {
        (name, index, probe.fraction, 0): probe
        for name, folds in known.items()
        for index, probes in enumerate(folds)
        for probe in probes
    }
    random = [name for name in sets.bank if name not in (SIMCLR, "pixels", START)]

    def right(name: str, budget: str, number: int, index: int) -> int:
        fold = sets.folds[index]
        probe = fitted.get((name, index, budget, number)) or fit_probe(
            sets.bank[name],
            fold.known,
            sets.train.keys,
            sets.classes,
            fold.drawn[budget][number],
            l2_count,
            seed + number,
        )
        answers = ranked_classes(probe, sets.queries[name][fold.asked])[:, 0]
        return int(np.sum(answers == sets.test.labels[fold.asked]))

    def of(budget: str, labels: int, pairs: Sequence[tuple[str, int]]) -> Estimate:
        each = range(len(sets.folds))
        counts = [sum(right(name, budget, number, index) for index in each) for name, number in pairs]
        accuracies = [count / len(sets.test.labels) for count in counts]
        return estimate(accuracies, sets.worth * sets.test.labeled, labels)

    for budget, first in sets.folds[0].drawn.items():
        if any(budget not in fold.drawn for fold in sets.folds):
            continue  # of classes with so few labels that one fold takes all and another does not
        draws, labels = min(len(fold.drawn[budget]) for fold in sets.folds), len(first[0].positions)
        each = range(draws)
        # A draw of the labels for each draw of the weights, as long as there are both.
        weights = [(random[n % len(random)], n % draws) for n in range(max(draws, len(random)))]
        yield (
            budget,
            BudgetAccuracies(
                labels=labels,
                draws=draws,
                simclr=of(budget, labels, [(SIMCLR, number) for number in each]),
                random_init=of(budget, labels, weights),
                pixels=of(budget, labels, [("pixels", number) for number in each]),
                start=of(budget, labels, [(START, number) for number in each]) if START in sets.bank else None,
            ),
        )
