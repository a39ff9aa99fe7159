"""Labels saved: how many labels it takes without the encoder to reach what a few reach with it.

With it are linear probes on its features. Without it is the best of what was measured on the same labels: the network
trained from scratch, and probes on a random encoder and on raw pixels. Between two numbers of labels accuracy is taken
to be linear in their logarithm, and more labels to do no harm. Where the best one never gets there, the answer is "more
than" the most that were measured.

The interval has the numbers of labels at which the two accuracies cannot be distinguished: their squared half-widths
add up, as for independent estimates. Both are of the same test images, so it is rather too wide than too narrow.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from simclr_core.evaluation_reports import (
    BudgetAccuracies,
    BudgetPrecision,
    Estimate,
    FinetuneReport,
    LinearEvalReport,
    Measured,
)

PROBE, FINETUNED, START, SCRATCH, RANDOM, PIXELS = "probe", "finetuned", "start", "scratch", "random_init", "pixels"
WITHOUT = (SCRATCH, RANDOM, PIXELS)
TITLES = {
    PROBE: "SimCLR, linear probe",
    FINETUNED: "SimCLR, fine-tuned",
    START: "weights unadapted, linear probe",
    SCRATCH: "from scratch",
    RANDOM: "random encoder, linear probe",
    PIXELS: "raw pixels, linear probe",
}
"""By curve."""


@dataclass(frozen=True)
class Point:
    """What is reached on this number of labels, in percent, with its 95 % interval."""

    labels: int
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Worth:
    """What ``labels`` with the encoder are worth without it, with the 95 % interval; None: more than ``most``, which
    was measured. ``least``, the fewest that were measured, stands for itself and for fewer."""

    labels: int
    value: float
    without: float | None
    low: float | None
    high: float | None
    least: int
    most: int


@dataclass(frozen=True)
class LabelsSaved:
    """``curves`` by name, by number of labels; ``worth`` for each number that probes had, and the one ``sentence``."""

    curves: Mapping[str, Sequence[Point]]
    worth: Sequence[Worth]
    sentence: str


def find_labels_saved(evaluation: LinearEvalReport | None, finetune: Iterable[FinetuneReport]) -> LabelsSaved | None:
    """From the reports; None where accuracies on two numbers of labels were not measured."""
    if evaluation is None:
        return None
    curves = read_curves(evaluation, finetune)
    without = find_best([point for name in WITHOUT for point in curves.get(name, ())])
    if len(without) < 2 or len(curves.get(PROBE, ())) < 2:
        return None
    worth = [find_worth(point, without) for point in curves[PROBE]]
    shares = {one.labels for name, one in _budgets(evaluation).items() if not name.endswith("per class")}
    return LabelsSaved(curves, worth, describe(_smallest_share(worth, shares)))


def read_curves(evaluation: LinearEvalReport, finetune: Iterable[FinetuneReport]) -> dict[str, list[Point]]:
    """Each curve with the numbers of labels that it was measured on, ascending."""
    found: dict[str, dict[int, Point]] = {name: {} for name in TITLES}

    def add(name: str, labels: int, value: Estimate | Measured | None) -> None:
        if value is not None:
            mean = value.top1 if isinstance(value, Estimate) else value.value
            found[name][labels] = Point(labels, mean, value.low, value.high)

    for one in _budgets(evaluation).values():
        for name, value in ((PROBE, one.simclr), (START, one.start), (RANDOM, one.random_init), (PIXELS, one.pixels)):
            add(name, one.labels, value)
    for tuned in finetune:
        several = tuned.multi_label
        add(FINETUNED, tuned.labels, several.simclr if several else tuned.interval)
        add(SCRATCH, tuned.labels, several.scratch if several else tuned.scratch_interval)
    return {name: [points[labels] for labels in sorted(points)] for name, points in found.items() if points}


def _budgets(evaluation: LinearEvalReport) -> Mapping[str, BudgetAccuracies | BudgetPrecision]:
    return evaluation.multi_label.budgets if evaluation.multi_label else evaluation.budgets


def find_best(points: Sequence[Point]) -> list[Point]:
    """Of each number of labels the point with the highest value, ascending."""
    best: dict[int, Point] = {}
    for point in points:
        if point.labels not in best or point.value > best[point.labels].value:
            best[point.labels] = point
    return [best[labels] for labels in sorted(best)]


def find_worth(point: Point, without: Sequence[Point]) -> Worth:
    """At which number of labels the curve ``without``, ascending, reaches the value of ``point``, and the interval."""

    def reach(values: Iterable[float]) -> float | None:
        return labels_to_reach(point.value, [(one.labels, value) for one, value in zip(without, values, strict=True)])

    upper = (one.value + math.hypot(one.high - one.value, point.value - point.low) for one in without)
    lower = (one.value - math.hypot(one.value - one.low, point.high - point.value) for one in without)
    middle = reach(one.value for one in without)
    least, most = without[0].labels, without[-1].labels
    return Worth(point.labels, point.value, middle, reach(upper), reach(lower), least, most)


def labels_to_reach(target: float, curve: Sequence[tuple[int, float]]) -> float | None:
    """The fewest labels with which a curve of (labels, value), ascending, reaches ``target``; None: none of them."""
    before: tuple[int, float] | None = None
    for labels, value in curve:
        if value >= target:
            if before is None:
                return float(labels)
            share = (target - before[1]) / (value - before[1])
            return math.exp(math.log(before[0]) + share * (math.log(labels) - math.log(before[0])))
        before = labels, value if before is None else max(value, before[1])  # more labels do no harm
    return None


def _smallest_share(worth: Sequence[Worth], shares: set[int]) -> Worth:
    """The smallest share of the labels; where all labels are the only share, the smallest number."""
    return next((one for one in worth[:-1] if one.labels in shares), worth[0])


def describe(one: Worth) -> str:
    """In one sentence."""
    interval = f"{_bound(one.low, one)} to {_bound(one.high, one)}"
    interval = interval if one.low != one.high else _bound(one.low, one)
    return (
        f"{one.labels:,} labels with this encoder are worth {_bound(one.without, one)} labels without it "
        f"(95 % interval: {interval})."
    )


def _bound(labels: float | None, one: Worth) -> str:
    if labels is None:
        return f"more than {one.most:,}"
    if labels <= one.least:
        return f"at most {one.least:,}"
    return f"{_round(labels):,}"


def _round(labels: float) -> int:
    """To two digits: the interval is wide."""
    digits = max(0, math.floor(math.log10(labels)) - 1)
    return int(round(labels / 10**digits) * 10**digits)


def rows(saved: LabelsSaved) -> Iterator[tuple[str, str, str, str]]:
    """For a person: labels, percent with them, what they are worth, and the interval."""
    for one in saved.worth:
        interval = f"{_bound(one.low, one)} to {_bound(one.high, one)}"
        yield f"{one.labels:,}", f"{one.value:.1f}", _bound(one.without, one), interval
