"""What one kind of features is worth: probes and kNN that are asked for the classes of images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from simclr_core.config import LinearEvalConfig
from simclr_core.evaluation.calibration import log_odds, sigmoid
from simclr_core.evaluation.images import Answers, percent
from simclr_core.evaluation.knn import knn_votes, shares
from simclr_core.evaluation.linear_probe import Probe, fit_probe, on_most_labels, probe_logits, ranked_classes
from simclr_core.evaluation.scores.accuracies import linear_accuracies
from simclr_core.evaluation.scores.budgets import SIMCLR, FeatureSets
from simclr_core.evaluation.scores.classification import score
from simclr_core.evaluation.scores.folds import Fold, gather
from simclr_core.evaluation_reports import Accuracies, Scores
from simclr_core.machine.devices import own_device


@dataclass(frozen=True)
class Judged:
    """What one encoder's features are worth: by fold a probe for each share of the labels, and how often answers are
    right.

    The last three are of the trained encoder alone: of each answered image the probability of each class, [n, classes],
    by classifier, and the probe's answer, [n]; and what the answers are worth by class.
    """

    probes: list[list[Probe]]
    accuracies: Accuracies
    answers: Answers | None = None
    likely: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    predicted: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    scores: dict[str, Scores] = field(default_factory=dict)


def unmeasured(config: LinearEvalConfig) -> Judged:
    """Where labels are missing."""
    unknown: dict[str, float | None] = dict.fromkeys(config.fractions)
    return Judged([], Accuracies(None, unknown, unknown))


def judge(sets: FeatureSets, name: str, classes: Sequence[str], config: LinearEvalConfig) -> Judged:
    """In each fold fit a probe on a draw of each share of the labels, and ask it and kNN for the classes."""
    bank, queries, labels, folds = sets.bank[name], sets.queries[name], sets.test.labels, sets.folds
    probes = [fit_probes(sets, name, fold, config) for fold in folds]
    votes = gather(folds, [_votes(bank, queries, fold, len(classes), config) for fold in folds])
    largest = [on_most_labels(one) for one in probes]
    asked = [fold.rows(queries) for fold in folds]
    first = gather(folds, [ranked_classes(probe, one)[:, 0] for probe, one in zip(largest, asked, strict=True)])
    answers = {"knn": votes.argmax(axis=1), "probe": first}
    right = Answers(**{classifier: answer == labels for classifier, answer in answers.items()})
    accuracies = Accuracies(percent(right.knn), *linear_accuracies(probes, queries, labels, folds))
    if name != SIMCLR:
        return Judged(probes, accuracies, right)
    sure = log_odds(gather(folds, [probe_logits(probe, one) for probe, one in zip(largest, asked, strict=True)]))
    ranked = {"knn": votes, "probe": sure}
    scores = {one: score(ranked[one], labels, answers[one], sets.train.labels, classes, sets.worth) for one in answers}
    return Judged(probes, accuracies, right, {"knn": shares(votes), "probe": sigmoid(sure)}, first, scores)


def fit_probes(sets: FeatureSets, name: str, fold: Fold, config: LinearEvalConfig) -> list[Probe]:
    """One on the first draw of each share of the labels."""
    bank, keys, classes = sets.bank[name], sets.train.group_keys, sets.classes
    draws = [fold.drawn[fraction][0] for fraction in config.fractions]
    return [fit_probe(bank, fold.known, keys, classes, draw, config.l2_count, config.seed) for draw in draws]


def _votes(
    bank: NDArray[np.float32], queries: NDArray[np.float32], fold: Fold, classes: int, config: LinearEvalConfig
) -> NDArray[np.float64]:
    """Of the images whose labels are known, for those that are asked about: [n, classes]."""
    seen = fold.known >= 0
    known = bank if seen.all() else bank[seen]  # a copy of the bank may be large
    return knn_votes(
        known,
        fold.known[seen],
        fold.rows(queries),
        classes,
        config.knn_neighbours,
        config.knn_temperature,
        own_device(),
    )
