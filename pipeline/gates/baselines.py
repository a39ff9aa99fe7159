"""The gate on what training has gained: the encoder against what costs nothing to have.

Baselines are random weights, raw pixels, the answer that is most frequent, and the weights that training began with.
What is judged is how often one alone is right on the same test images (``LinearEvalReport.paired``).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from pipeline.config import GatesConfig
from pipeline.gates.evidence import Evidence
from pipeline.gates.verdict import Verdict, not_applicable, undecided
from simclr_core.errors import ReportError
from simclr_core.evaluation.paired_comparison import (
    Interval,
    disagreement,
    images_to_find,
    interval,
    smallest_found,
)
from simclr_core.reports import Accuracies, LinearEvalReport, PairedCounts

BASELINES = {
    "random_init": "random weights",
    "pixels": "raw pixels",
    "majority": "always answering the most frequent class",
    "start": "the weights that pretraining began with",
}
CLASSIFIERS = {"knn": "kNN", "probe": "the linear probe"}


@dataclass(frozen=True)
class Comparison:
    """One classifier on the trained features against one baseline, on ``images`` test images."""

    classifier: str
    baseline: str
    images: int
    pairs: Sequence[tuple[int, int]]  # trained alone right, baseline alone right; one for each draw of the baseline
    trained: float  # accuracy, 0..1
    gain: Interval
    most: float  # that it gains, with all the confidence that several comparisons need

    def __str__(self) -> str:
        low, high = 100 * self.gain.low, 100 * self.gain.high
        trained, baseline = 100 * self.trained, 100 * (self.trained - self.gain.difference)
        name, against = CLASSIFIERS[self.classifier], BASELINES[self.baseline]
        return f"{name} {trained:.2f} % against {baseline:.2f} % of {against} ({low:+.1f} to {high:+.1f} points)"

    def has_room(self, limits: GatesConfig) -> bool:
        """Whether the baseline leaves so much to gain that a gain can be asked for."""
        return 1 - (self.trained - self.gain.difference) >= limits.min_gain / 100

    def fails(self, limits: GatesConfig) -> bool:
        """Whether it is shown to be worse, or not to gain what matters where there is so much to gain."""
        return self.most < (limits.min_gain / 100 if self.has_room(limits) else 0) and self.gain.low <= 0

    def settles(self, limits: GatesConfig) -> str:
        """What these test images can show, and how many would show a gain as large as it seems."""
        smallest = 100 * smallest_found(self.images, self._disagreement, limits.confidence, limits.power)
        seeming = max(abs(self.gain.difference), limits.min_gain / 100)
        return (
            f"{self.images} test images show a difference of {smallest:.1f} points at {100 * limits.power:g} % power; "
            f"about {self._images(seeming, limits):,} would settle one of {100 * seeming:.1f}"
        )

    def _images(self, difference: float, limits: GatesConfig) -> int:
        return images_to_find(difference, self._disagreement, limits.confidence, limits.power)

    @property
    def _disagreement(self) -> float:
        return disagreement(self.images, self.pairs)


def beats_baselines(evidence: Evidence) -> Verdict:
    """kNN and a linear probe classify better with the trained features than with random weights, pixels, or a guess.

    Each gain over one of `gates.baselines` has to be shown with `gates.confidence`, by a paired test on the same test
    images. What is shown to be worse, or to gain less than `gates.min_gain` points if anything, is refused; what is
    neither shown to be better nor that is undecided, and `gates.abstain` says what follows. Where a baseline leaves
    less than that to gain, it is enough not to be shown worse. Without labels there is nothing to compare.
    """
    limits, report = evidence.limits, evidence.report(LinearEvalReport)
    try:
        compared = list(_compare(report, limits))
    except ValueError as error:
        raise ReportError(f"{report.file} contradicts itself: {error}") from None
    if not compared:
        return not_applicable(report.reason or "no accuracies to compare")
    numbers = {
        f"{one.classifier}/{one.baseline}/{name}": 100 * value
        for one in compared
        for name, value in (("gain", one.gain.difference), ("at_least", one.gain.low), ("at_most", one.gain.high))
    }
    asked = [one for one in compared if one.has_room(limits) or one.fails(limits)]
    if not asked:
        what = ", ".join(dict.fromkeys(BASELINES[one.baseline] for one in compared))
        return not_applicable(f"{what} classify nearly every test image correctly, too; add harder ones", numbers)
    missing = [one for one in asked if not one.gain.low > 0]
    refused = [one for one in missing if one.fails(limits)]
    if refused:
        shown = [f"{'worse' if one.most < 0 else 'no better'}: {one}" for one in refused]
        advice = "train longer, or look at reports/curves.png and augmentations.png; gates.baselines says what is asked"
        return Verdict(False, "; ".join([*shown, advice]), numbers)
    if missing:
        hardest = min(missing, key=lambda one: one.gain.difference)
        allowed = ", or set gates.abstain to warn to release it undecided" if limits.abstain == "refuse" else ""
        parts = [*(f"not shown to be better: {one}" for one in missing), hardest.settles(limits)]
        return undecided("; ".join([*parts, f"add test images{allowed}"]), numbers, limits.abstain == "refuse")
    return Verdict(True, "; ".join(f"better: {one}" for one in asked), numbers)


def _compare(report: LinearEvalReport, limits: GatesConfig) -> Iterator[Comparison]:
    """Each classifier with each baseline that is asked for and was measured."""
    if report.reason or not report.test_images:
        return
    counts = report.paired or _independent(report)
    asked = [
        (classifier, baseline, list(zip(one.trained_only, one.baseline_only, strict=True)))
        for classifier in CLASSIFIERS
        for baseline, one in counts.get(classifier, {}).items()
        if baseline in limits.baselines
    ]
    # Any of them may refuse, so each gets its part of the error that is allowed (Bonferroni). All of them have to show
    # a gain, which needs no correction.
    significance = (1 - limits.confidence) / max(len(asked), 1)
    for classifier, baseline, pairs in asked:
        trained = _accuracy(report.simclr, classifier)
        if trained is None or not pairs:
            continue
        gain = interval(report.test_images, pairs, limits.confidence)
        most = interval(report.test_images, pairs, 1 - significance).high
        yield Comparison(classifier, baseline, report.test_images, pairs, trained, gain, most)


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
