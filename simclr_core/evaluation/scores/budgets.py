"""Accuracy by the number of labels: linear probes on several draws of each label budget, with intervals.

The first labels of a class are worth most, and which ones they are matters: one draw of ten labels may be five points
from the next. So each budget is drawn several times, and the interval of its mean knows of the draws and of the test
images.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simclr_core.data.subsets import LabelDraw
from simclr_core.evaluation.images import EvaluationImages
from simclr_core.evaluation.linear_probe import Probe, fit_probe, ranked_classes
from simclr_core.evaluation.scores.classification import estimate
from simclr_core.evaluation_reports import BudgetAccuracies, Estimate

SIMCLR, START = "simclr", "start"  # names of features: trained, and of given weights as they came


@dataclass(frozen=True)
class FeatureSets:
    """The features of both splits by name: float32 [n, d], of the images of ``train`` and ``test``."""

    bank: Mapping[str, NDArray[np.float32]]
    queries: Mapping[str, NDArray[np.float32]]
    train: EvaluationImages
    test: EvaluationImages


def measure_budgets(
    drawn: Mapping[str, Sequence[LabelDraw]],
    known: Mapping[str, Sequence[Probe]],
    sets: FeatureSets,
    classes: int,
    l2_count: int,
    seed: int,
) -> Iterator[tuple[str, BudgetAccuracies]]:
    """Yield each budget, and what probes on the trained features, on random weights and on pixels reach with it.

    Args:
        known: by the name of the features, probes that were fitted on the first draw of some budgets.
        sets: with the features ``simclr``, ``pixels``, ``start`` if there is one, and those of random weights, each
            under a separate name.
    """
    fitted = {(name, probe.fraction, 0): probe for name, probes in known.items() for probe in probes}
    random = [name for name in sets.bank if name not in (SIMCLR, "pixels", START)]

    def accuracy(name: str, budget: str, number: int) -> float:
        probe = fitted.get((name, budget, number)) or fit_probe(
            sets.bank[name], sets.train.labels, sets.train.keys, classes, drawn[budget][number], l2_count, seed + number
        )
        return float(np.mean(ranked_classes(probe, sets.queries[name])[:, 0] == sets.test.labels))

    def of(budget: str, pairs: Sequence[tuple[str, int]]) -> Estimate:
        accuracies = [accuracy(name, budget, number) for name, number in pairs]
        return estimate(accuracies, sets.test.labeled, len(drawn[budget][0].positions))

    for budget, draws in drawn.items():
        each = range(len(draws))
        # A draw of the labels for each draw of the weights, as long as there are both.
        weights = [(random[n % len(random)], n % len(draws)) for n in range(max(len(draws), len(random)))]
        yield (
            budget,
            BudgetAccuracies(
                labels=len(draws[0].positions),
                draws=len(draws),
                simclr=of(budget, [(SIMCLR, number) for number in each]),
                random_init=of(budget, weights),
                pixels=of(budget, [("pixels", number) for number in each]),
                start=of(budget, [(START, number) for number in each]) if START in sets.bank else None,
            ),
        )
