"""How often the classifiers on each kind of features are right, and which of two is right alone."""

import statistics
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from simclr_core.evaluation.images import Answers, count_pairs, percent
from simclr_core.evaluation.linear_probe import Probe, ranked_classes
from simclr_core.evaluation.scores.budgets import PIXELS, SIMCLR, START, FeatureSets
from simclr_core.evaluation.scores.folds import Fold, gather
from simclr_core.evaluation_reports import Accuracies, PairedCounts

RANDOM_INIT = "random_init"


def mean_accuracies(draws: Sequence[Accuracies]) -> Accuracies:
    """The mean of each number over the draws that have it; None where no draw has."""
    fractions = draws[0].linear_top1
    return Accuracies(
        _mean([draw.knn_top1 for draw in draws]),
        {fraction: _mean([draw.linear_top1[fraction] for draw in draws]) for fraction in fractions},
        {fraction: _mean([draw.linear_top5[fraction] for draw in draws]) for fraction in fractions},
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(statistics.fmean(known), 3) if known else None


def linear_accuracies(
    probes: Sequence[Sequence[Probe]], features: NDArray[np.float32], labels: NDArray[np.int64], folds: Sequence[Fold]
) -> tuple[dict[str, float | None], dict[str, float | None]]:
    """By label budget, the percentage of images whose class comes first, and among the first five.

    ``probes`` are by fold; ``features`` [n, d] and ``labels`` [n] are of the images that are asked about.
    """
    top1: dict[str, float | None] = {}
    top5: dict[str, float | None] = {}
    for of_budget in zip(*probes, strict=True):
        hits: NDArray[np.bool_] = gather(
            folds,
            [
                ranked_classes(probe, fold.rows(features))[:, :5] == labels[fold.asked, None]
                for probe, fold in zip(of_budget, folds, strict=True)
            ],
        )
        top1[of_budget[0].fraction] = percent(hits[:, 0])
        top5[of_budget[0].fraction] = percent(np.logical_or.reduce(hits, axis=1))
    return top1, top5


def majority_right(sets: FeatureSets) -> NDArray[np.bool_]:
    """Which images [n] are of the class that most known labels are of; the first one of several."""
    labels = sets.test.labels
    most = [np.bincount(fold.known[fold.known >= 0]).argmax() for fold in sets.folds]
    right = [labels[fold.asked] == one for fold, one in zip(sets.folds, most, strict=True)]
    return gather(sets.folds, right)


def pair_with_baselines(
    answers: Mapping[str, Answers], majority: NDArray[np.bool_]
) -> dict[str, dict[str, PairedCounts]]:
    """By classifier and baseline, how many test images the trained encoder alone gets right, and the baseline alone."""
    draws = [name for name in answers if name.startswith(RANDOM_INIT)]

    def against(trained: NDArray[np.bool_], others: Mapping[str, NDArray[np.bool_]]) -> dict[str, PairedCounts]:
        return {
            RANDOM_INIT: count_pairs((trained, others[draw]) for draw in draws),
            PIXELS: count_pairs([(trained, others[PIXELS])]),
            "majority": count_pairs([(trained, majority)]),
            **({START: count_pairs([(trained, others[START])])} if START in others else {}),
        }

    return {
        "knn": against(answers[SIMCLR].knn, {name: one.knn for name, one in answers.items()}),
        "probe": against(answers[SIMCLR].probe, {name: one.probe for name, one in answers.items()}),
    }
