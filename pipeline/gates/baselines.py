"""The gate on what training has gained: the encoder against what costs nothing to have.

Baselines are random weights, raw pixels, the answer that is most frequent, and the weights that training began with.
What is judged is how often one alone is right on the same test images (``LinearEvalReport.paired``); where there are
none, on the labeled training images, each answered out of fold. Where an image may have several labels, it is the mean
average precision of both on the same images.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from deploy.plural import counted
from pipeline.config import GatesConfig
from pipeline.gates.evidence import Evidence, needed
from pipeline.gates.precision import gain_interval, images_to_show, smallest_gain
from pipeline.gates.verdict import Verdict, not_applicable, undecided
from simclr_core.errors import ReportError
from simclr_core.evaluation.paired_comparison import (
    Interval,
    disagreement,
    images_to_find,
    interval,
    out_of_fold_worth,
    smallest_found,
)
from simclr_core.evaluation_reports import Accuracies, Gain, LinearEvalReport, PairedCounts

BASELINES = {
    "random_init": "random weights",
    "pixels": "raw pixels",
    "majority": "always answering the most frequent class",
    "prevalence": "chance",
    "start": "the weights that pretraining began with",
}
CLASSIFIERS = {"knn": "kNN", "probe": "the linear probe"}
OF_SETS = {"majority": "prevalence"}  # what has the place of a baseline where images have several labels
LITTLE = 0.02  # what a baseline may leave to gain for a match to be enough; `gates.min_gain`, if that is smaller


@dataclass(frozen=True)
class Comparison:
    """One classifier on the trained features against one baseline, on ``images`` images, each worth a test image or
    less: see ``out_of_fold_worth``."""

    classifier: str
    baseline: str
    images: int
    worth: float
    trained: float  # accuracy, 0..1
    gain: Interval
    most: float  # that it gains, with all the confidence that several comparisons need
    smallest: float  # difference that these images show with `gates.power`
    needed: int  # images that would show one of the observed size
    measure: str = ""  # of the difference, where it is not one of accuracy

    def __str__(self) -> str:
        low, high = 100 * self.gain.low, 100 * self.gain.high
        trained, baseline = 100 * self.trained, 100 * (self.trained - self.gain.difference)
        name, against = CLASSIFIERS[self.classifier], BASELINES[self.baseline]
        reached = f"{self.measure}{name} {trained:.2f} % against {baseline:.2f} % of {against}"
        return f"{reached} ({low:+.1f} to {high:+.1f} points)"

    def outcome(self, limits: GatesConfig) -> str:
        """What is known of it. Of a baseline that is right nearly everywhere, no gain can be asked for."""
        little = min(limits.min_gain / 100, LITTLE)
        if self.gain.low > 0:
            return "better"
        if self.most < 0:
            return "worse"
        if 1 - (self.trained - self.gain.difference) >= little:
            return "no better" if self.most < limits.min_gain / 100 else "not shown to be better"
        return "as good" if self.gain.difference >= 0 or self.gain.low > -little else "not shown to be as good"

    def settles(self, limits: GatesConfig) -> str:
        """What these test images can show, and how many would show a gain of the observed size."""
        noun = "test image" if self.worth == 1 else "labeled image"
        given = f"{counted(self.images, noun)} can show a difference of {100 * self.smallest:.1f} points"
        return (
            f"{given} at {100 * limits.power:g} % power; "
            f"about {self.needed:,} would settle one of {100 * _seeming(self.gain.difference, limits):.1f} points"
        )


def _seeming(difference: float, limits: GatesConfig) -> float:
    """The difference to settle: the observed one, if it is one that matters."""
    return max(abs(difference), limits.min_gain / 100)


def beats_baselines(evidence: Evidence) -> Verdict:
    """kNN and a linear probe classify better with the trained features than with random weights, pixels, or a guess.

    Each gain over one of `gates.baselines` has to be shown with `gates.confidence`, by a paired test on the same test
    images. What is shown to be worse, or to gain less than `gates.min_gain` points if anything, is refused; a
    result that shows neither is undecided, and `gates.abstain` says what follows. Where a baseline leaves less than
    that, and less than two points, to gain, it is enough to match it. Without labels there is nothing to compare.

    Where an image may have several labels, mean average precision is compared instead, by bootstrap over the images.

    Without test images the labeled training images are compared, each answered out of fold. Such intervals are
    approximate, and labels that decide nothing stop no release that would go out without them: undecided is a warning.
    """
    limits, report = evidence.limits, evidence.report(LinearEvalReport)
    if report.reason or not limits.baselines:
        return not_applicable(report.reason or "gates.baselines is empty")
    try:
        if report.multi_label:
            compared = list(_compare_precision(report, report.multi_label.gains, limits))
        else:
            compared = list(_compare(report, _measured(report, limits), limits))
    except ValueError as error:
        raise ReportError(f"{report.file} contradicts itself: {error}; run the stage that writes it again") from None
    if not compared:
        lacking = f"{report.file} measures none of gates.baselines: {', '.join(limits.baselines)}"
        if set(limits.baselines) == {"start"}:
            return not_applicable(lacking)
        raise ReportError(f"{lacking}; run the stage that writes it again")
    numbers = {
        f"{one.classifier}/{one.baseline}/{name}": 100 * value
        for one in compared
        for name, value in (("gain", one.gain.difference), ("at_least", one.gain.low), ("at_most", one.gain.high))
    }
    found: dict[str, list[Comparison]] = {}
    for one in compared:
        found.setdefault(one.outcome(limits), []).append(one)
    if list(found) == ["as good"]:
        what = ", ".join(dict.fromkeys(BASELINES[one.baseline] for one in compared))
        noun = "labeled image" if report.out_of_fold else "test image"
        return not_applicable(f"{what} classify nearly every {noun} correctly, too; add harder ones", numbers)
    approximate = f"; {report.asked}" if report.out_of_fold else ""
    if refused := _say(found, "worse", "no better"):
        asked = f"each of gates.baselines has to be beaten, shown with {100 * limits.confidence:g} % confidence"
        advice = f"{asked}; train longer, or look at reports/curves.png and augmentations.png"
        return Verdict(False, f"{refused}{approximate}; {advice}", numbers)
    open_ones = ("not shown to be better", "not shown to be as good")
    if missing := _say(found, *open_ones):
        hardest = min((one for name in open_ones for one in found.get(name, [])), key=lambda one: one.gain.difference)
        advice = "add test images" if hardest.gain.difference > 0 else "train longer, or add test images"
        blocks = limits.undecided_stops and not report.out_of_fold
        allowed = ", or set gates.abstain to warn to release it undecided" if blocks else ""
        description = f"{missing}{approximate}; {hardest.settles(limits)}; {advice}{allowed}"
        return undecided(description, numbers, blocks)
    return Verdict(True, f"{_say(found, 'better', 'as good')}{approximate}", numbers)


def _say(found: Mapping[str, Sequence[Comparison]], *outcomes: str) -> str:
    """Names every comparison with one of these outcomes."""
    return "; ".join(f"{name}: {', '.join(map(str, found[name]))}" for name in outcomes if name in found)


Measured = tuple[str, str, float, PairedCounts]


def _measured(report: LinearEvalReport, limits: GatesConfig) -> list[Measured]:
    """Each classifier with each baseline that is asked for and was measured: both names, accuracy, counts.

    Raises:
        ReportError: what the stage always measures is missing.
    """
    if not report.images:
        raise ReportError(f"{report.file} has accuracies without test images; run the stage that writes it again")
    counts = report.paired or _independent(report)
    for classifier in CLASSIFIERS if report.paired else ():
        for baseline in limits.baselines:
            known = counts.get(classifier, {}).get(baseline)
            if baseline != "start":
                needed(known, report, f"paired.{classifier}.{baseline}")
    return [
        (
            classifier,
            baseline,
            needed(_accuracy(report.simclr, classifier), report, f"the accuracy of {CLASSIFIERS[classifier]}"),
            one,
        )
        for classifier in CLASSIFIERS
        for baseline, one in counts.get(classifier, {}).items()
        if baseline in limits.baselines
    ]


def _compare(report: LinearEvalReport, measured: Sequence[Measured], limits: GatesConfig) -> Iterator[Comparison]:
    """Raises ValueError: the counts are impossible."""
    images, worth = report.images, out_of_fold_worth(report.out_of_fold.folds) if report.out_of_fold else 1.0
    # Any of them may refuse, so each gets its part of the error that is allowed (Bonferroni). All of them have to show
    # a gain, which needs no correction.
    confidence, power = limits.confidence, limits.power
    significance = (1 - confidence) / max(len(measured), 1)
    for classifier, baseline, trained, counts in measured:
        pairs = counts.pairs()
        gain, often = interval(images, pairs, confidence, worth), disagreement(images, pairs)
        most = interval(images, pairs, 1 - significance, worth).high
        smallest = smallest_found(worth * images, often, confidence, power)
        needed = images_to_find(_seeming(gain.difference, limits), often, confidence, power)
        yield Comparison(classifier, baseline, images, worth, trained, gain, most, smallest, math.ceil(needed / worth))


def _compare_precision(
    report: LinearEvalReport, gains: Mapping[str, Mapping[str, Gain]], limits: GatesConfig
) -> Iterator[Comparison]:
    """The same of answers with several labels."""
    asked = {OF_SETS.get(name, name) for name in limits.baselines}
    found = [(one, name, of) for one, by_name in gains.items() for name, of in by_name.items() if name in asked]
    significance = (1 - limits.confidence) / max(len(found), 1)
    worth = out_of_fold_worth(report.out_of_fold.folds) if report.out_of_fold else 1.0
    confidence, power = limits.confidence, limits.power
    for classifier, baseline, gain in found:
        seeming = _seeming(gain.difference / 100, limits)
        yield Comparison(
            classifier,
            baseline,
            report.images,
            worth,
            gain.trained / 100,
            gain_interval(gain, confidence),
            gain_interval(gain, 1 - significance).high,
            smallest_gain(gain, confidence, power),
            images_to_show(gain, report.images, seeming, confidence, power),
            "mean average precision of ",
        )


def _accuracy(accuracies: Accuracies, classifier: str) -> float | None:
    """0..1; of the probe with the largest share of the labels."""
    if classifier == "knn":
        percent = accuracies.knn_top1
    else:
        largest = max(accuracies.linear_top1, key=Fraction, default=None)
        percent = accuracies.linear_top1[largest] if largest else None
    return None if percent is None else percent / 100


def _independent(report: LinearEvalReport) -> dict[str, dict[str, PairedCounts]]:
    """What the counts would be if both erred independently of each other: for a report that was written before there
    were counts. Two encoders share their errors on hard images, so this widens the intervals."""
    counts: dict[str, dict[str, PairedCounts]] = {}
    for classifier in CLASSIFIERS:
        trained = _accuracy(report.simclr, classifier)
        for baseline, accuracies in (("random_init", report.random_init), ("pixels", report.pixels)):
            other = _accuracy(accuracies, classifier)
            if trained is not None and other is not None:
                won, lost = trained * (1 - other), other * (1 - trained)
                pair = PairedCounts((round(report.test_images * won),), (round(report.test_images * lost),))
                counts.setdefault(classifier, {})[baseline] = pair
    return counts
