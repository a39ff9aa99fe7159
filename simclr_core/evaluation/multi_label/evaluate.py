"""What the frozen features are worth where an image may have several labels, next to the same baselines.

A logistic regression for each class against the rest, and kNN that votes on each class, are judged by mean average
precision, F1 and their intervals, and paired with each baseline by bootstrap. Labels are drawn, and images divided into
folds, by the rarest class of each image.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from simclr_core.config import LinearEvalConfig
from simclr_core.data.shards import DatasetCard
from simclr_core.data.subsets import LabelDraw, draw_labels
from simclr_core.evaluation.linear_probe import Probe, fit_probe, on_most_labels, probe_logits
from simclr_core.evaluation.multi_label.classifiers import EVEN, KNN, PROBE, vote
from simclr_core.evaluation.multi_label.images import LabelSets, Targets, missing_labels, read_splits
from simclr_core.evaluation.multi_label.precision import (
    Precision,
    exact_precision,
    gain,
    mean_of_draws,
    mean_precision,
)
from simclr_core.evaluation.multi_label.scoring import score
from simclr_core.evaluation.paired_comparison import out_of_fold_worth
from simclr_core.evaluation.scores.budgets import SIMCLR, START, FeatureSets, plan_budgets, random_features
from simclr_core.evaluation.scores.folds import ask_test_images, divide, gather, read_near_groups
from simclr_core.evaluation_reports import (
    Accuracies,
    BudgetPrecision,
    Gain,
    LinearEvalReport,
    MultiLabelResults,
    OutOfFold,
)
from simclr_core.reporter import emit

PREVALENCE = "prevalence"

Answers = Mapping[str, NDArray[np.float64]]
"""By classifier, how likely each class is for each image that is asked about, [n, classes]: shares or log-odds."""


@dataclass(frozen=True)
class Asked:
    """``known`` are the labels of the training images, and ``truth`` those of the images that ``sets`` asks about."""

    sets: FeatureSets
    known: Targets
    truth: Targets


@dataclass(frozen=True)
class Evaluated:
    """The report; the probe to publish; what the classifiers on the trained features say; and the images by split."""

    report: LinearEvalReport
    probe: Probe
    answers: Answers
    asked: LabelSets
    sets: FeatureSets


def evaluate(
    workspace: Path,
    config: LinearEvalConfig,
    card: DatasetCard,
    bank: Mapping[str, NDArray[np.float32]],
    queries: Mapping[str, NDArray[np.float32]],
) -> Evaluated:
    """Measure the features of the training and the test images, by the names of ``FeatureSets``."""
    train, test = read_splits(workspace / "data" / "prepared")
    train = replace(train, images=train.images.with_near(read_near_groups(workspace)))
    classes = len(card.classes)
    draw = partial(_draw, train.images.keys, config)
    once = partial(draw, draws=1)
    tested = bool(test.images.labeled)
    folds = [] if tested else divide(train.images, config.seed, once)
    reason = None if folds else missing_labels(train, test)
    sets = FeatureSets(
        bank,
        queries,
        train.images,
        test.images,
        classes,
        ask_test_images(train.images, test.images, draw),
    )
    asked = Asked(sets, train.targets, test.targets)
    if folds:
        divided = replace(sets, queries=sets.bank, test=sets.train, folds=folds, worth=out_of_fold_worth(len(folds)))
        asked = Asked(divided, train.targets, train.targets)
    unknown = Accuracies(None, dict.fromkeys(config.fractions), dict.fromkeys(config.fractions))
    report = LinearEvalReport(
        simclr=unknown,
        random_init=unknown,
        pixels=unknown,
        labels={},
        test_images=test.images.labeled,
        classes=classes,
        reason=reason,
        estimate="out_of_fold" if folds else "test",
        out_of_fold=OutOfFold(train.images.labeled, len(folds)) if folds else None,
    )
    every = replace(asked, sets=sets)  # what is published has all labels
    if reason:
        fitted = _fit(every, SIMCLR, config)[0]
        return Evaluated(_with_labels(report, fitted), on_most_labels(fitted), {}, test, sets)
    probes = {name: _fit(asked, name, config) for name in sets.bank}
    answers = {name: answer(asked, name, probes[name], config) for name in sets.bank}
    fitted = _fit(every, SIMCLR, config)[0] if folds else probes[SIMCLR][0]
    results = describe(asked, probes, answers, card.classes, config)
    report = replace(_with_labels(report, fitted), multi_label=results)
    return Evaluated(report, on_most_labels(fitted), answers[SIMCLR], train if folds else test, sets)


def answer(asked: Asked, name: str, probes: Sequence[Sequence[Probe]], config: LinearEvalConfig) -> Answers:
    """Ask kNN, and the probes on the most labels, each fold by those that have not seen it."""
    sets, folds = asked.sets, asked.sets.folds
    bank, queries = sets.bank[name], sets.queries[name]
    votes = [
        vote(bank[seen], asked.known[seen], fold.rows(queries), config.knn_neighbours, config.knn_temperature)
        for fold in folds
        for seen in [fold.known >= 0]
    ]
    sure = [probe_logits(on_most_labels(one), fold.rows(queries)) for one, fold in zip(probes, folds, strict=True)]
    return {KNN: gather(folds, votes), PROBE: gather(folds, sure)}


def describe(
    asked: Asked,
    probes: Mapping[str, Sequence[Sequence[Probe]]],
    answers: Mapping[str, Answers],
    classes: Sequence[str],
    config: LinearEvalConfig,
) -> MultiLabelResults:
    """What all answers are worth, next to each other."""
    truth, worth = asked.truth, asked.sets.worth
    scores = {f"{name} {one}": found for name, both in answers.items() for one, found in both.items()}
    precisions = mean_precision(scores | {PREVALENCE: np.zeros(truth.shape)}, truth, config.seed)
    results = MultiLabelResults(
        labels_per_image=round(float(truth.sum(axis=1).mean()), 3),
        prevalence=round(100 * precisions[PREVALENCE].value, 3),
        scores={
            one: score(
                answers[SIMCLR][one], EVEN[one], precisions[f"{SIMCLR} {one}"], truth, asked.known, classes, worth
            )
            for one in (KNN, PROBE)
        },
        gains={one: _gains(precisions, one, list(answers), worth) for one in (KNN, PROBE)},
        budgets=dict(measure_budgets(probes, asked, config)),
    )
    for one, found in results.scores.items():
        message = f"{one}: mean average precision {found.mean_average_precision.value:.1f} %"
        emit("progress", stage="linear_eval", message=f"{message}, by chance {results.prevalence:.1f} %")
    return results


def measure_budgets(
    known: Mapping[str, Sequence[Sequence[Probe]]], asked: Asked, config: LinearEvalConfig
) -> Iterator[tuple[str, BudgetPrecision]]:
    """Yield each budget of labels, and the mean average precision of probes with it.

    ``known`` are, by features and fold, probes that were fitted on the first draw of some budgets.
    """
    sets, folds = asked.sets, asked.sets.folds
    fitted = {
        (name, index, probe.fraction): probe
        for name, of_folds in known.items()
        for index, of_fold in enumerate(of_folds)
        for probe in of_fold
    }

    def ask(name: str, budget: str, number: int) -> NDArray[np.float64]:
        found = []
        for index, fold in enumerate(folds):
            probe = fitted.get((name, index, budget)) if number == 0 else None
            if probe is None:
                drawn = fold.drawn[budget][number]
                probe = _fit_one(asked, name, drawn, config, config.seed + number)
            found.append(probe_logits(probe, fold.rows(sets.queries[name])))
        return gather(folds, found)

    for one in plan_budgets(sets, list(sets.bank)):
        answers = {row: [ask(name, one.budget, number) for name, number in pairs] for row, pairs in one.asked.items()}
        first = mean_precision({row: found[0] for row, found in answers.items()}, asked.truth, config.seed)
        precisions = {row: [exact_precision(each, asked.truth) for each in found] for row, found in answers.items()}
        measured = {row: mean_of_draws(found, first[row], sets.worth, one.labels) for row, found in precisions.items()}
        reached = BudgetPrecision(labels=one.labels, draws=one.draws, **measured)
        rows = reached.simclr, reached.random_init, reached.pixels
        ours, random_ones, pixels = (row.value for row in rows)
        message = (
            f"{one.labels} labels: linear {ours:.1f} %, random weights {random_ones:.1f} %, raw pixels {pixels:.1f} %"
        )
        emit("progress", stage="linear_eval", message=message)
        yield one.budget, reached


def _fit(asked: Asked, name: str, config: LinearEvalConfig) -> list[list[Probe]]:
    """By fold, a probe on the first draw of each share of the labels."""
    return [
        [_fit_one(asked, name, fold.drawn[fraction][0], config, config.seed) for fraction in config.fractions]
        for fold in asked.sets.folds
    ]


def _fit_one(asked: Asked, name: str, drawn: LabelDraw, config: LinearEvalConfig, seed: int) -> Probe:
    sets = asked.sets
    keys = sets.train.group_keys
    return fit_probe(sets.bank[name], asked.known, keys, sets.classes, drawn, config.l2_count, seed)


def _gains(precisions: Mapping[str, Precision], classifier: str, names: Sequence[str], worth: float) -> dict[str, Gain]:
    """Of the trained features over each baseline."""
    others = {
        "random_init": random_features(names),
        "pixels": ["pixels"],
        START: [name for name in names if name == START],
    }
    trained = precisions[f"{SIMCLR} {classifier}"]
    found = {
        baseline: gain(trained, [precisions[f"{name} {classifier}"] for name in members], worth)
        for baseline, members in others.items()
        if members
    }
    return found | {PREVALENCE: gain(trained, [precisions[PREVALENCE]], worth)}


def _with_labels(report: LinearEvalReport, fitted: Sequence[Probe]) -> LinearEvalReport:
    return replace(report, labels={probe.fraction: probe.labels for probe in fitted})


def _draw(
    keys: NDArray[np.uint8], config: LinearEvalConfig, labels: NDArray[np.int64], draws: int | None = None
) -> dict[str, list[LabelDraw]]:
    return draw_labels(labels, keys, config.fractions, config.labels_per_class, draws or config.draws, config.seed)
