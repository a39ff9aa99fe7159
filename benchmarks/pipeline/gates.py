"""How often each gate passes, refuses, and cannot decide, by simulation: the table of ``docs/gates.md``.

    python -m benchmarks.pipeline.gates

Answers of several classifiers to the same test images are drawn, counted as the stages count them, and judged by the
gate itself. A gate that asks for a gain errs when it passes an encoder that gains nothing; the others err when they
refuse one that loses nothing. The other difference is twice the smallest one that matters to the gate.

Where images have several labels, what is drawn are scores, and differences are those of mean average precision. A
bootstrap of each takes its time: there are fewer rounds and images.
"""

from collections import Counter
from collections.abc import Callable
from functools import cache
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import header, parser, write
from pipeline.config import GatesConfig
from pipeline.gates.baselines import beats_baselines
from pipeline.gates.champion import low_label, representation
from pipeline.gates.evidence import Evidence
from simclr_core.champion import Champion
from simclr_core.config import ExportConfig
from simclr_core.evaluation.compare import paired
from simclr_core.evaluation.images import count_pairs
from simclr_core.evaluation.multi_label.images import Targets
from simclr_core.evaluation.multi_label.precision import Scores, exact_precision, gain, mean_precision
from simclr_core.evaluation_reports import (
    Accuracies,
    CompareReport,
    FinetuneReport,
    Gain,
    LinearEvalReport,
    Megabytes,
    MultiLabelResults,
    OldIndex,
    Paired,
)
from simclr_core.export.variants import judge_losses
from simclr_core.reports import AnyReport, Report

SIZES = (50, 200, 1000, 5000)
ROUNDS = 2000
ALIKE = 0.8  # how much of what makes an image hard is the same for every classifier
SEEDS = 3
SEED_SPREAD = 0.005  # standard deviation of accuracy between seeds of fine-tuning
PLAINLY = 0.2  # by how much the encoder beats the baselines that are not in question
FLIPS = 0.01  # share of the test images that int8 alone gets right, or fp32 alone, if both are equally good
LIMITS = GatesConfig()
VARIANT_LOSS = ExportConfig().max_loss
SET_SIZES, SET_ROUNDS = (50, 200), 200  # where images have several labels
PREVALENCE = (0.03, 0.06, 0.12, 0.25, 0.5)  # the share of the images that have each class
SIGNAL = 1.5  # by how many standard deviations the scores of images with a class are higher

Outcome = str
Judge = Callable[[np.random.Generator, int, float], Outcome]


class Simulated(Evidence):
    """Reports that were drawn instead of read."""

    def __init__(self, *drawn: Report) -> None:
        self.drawn = {type(report): report for report in drawn}
        self.limits = LIMITS

    def report(self, model: type[AnyReport]) -> AnyReport:
        found = self.drawn[model]
        assert isinstance(found, model)
        return found

    def reports(self, model: type[AnyReport]) -> list[AnyReport]:
        return [self.report(model)]


def draw(random: np.random.Generator, images: int, *accuracies: float) -> list[NDArray[np.bool_]]:
    """Which of the same test images classifiers of these accuracies get right: some images are hard for all of them."""
    hard = random.standard_normal(images)
    return [
        ALIKE**0.5 * hard + (1 - ALIKE) ** 0.5 * random.standard_normal(images) < NormalDist().inv_cdf(accuracy)
        for accuracy in accuracies
    ]


def baselines(random: np.random.Generator, images: int, difference: float) -> Outcome:
    """The gain over raw pixels is in question, in both classifiers; every other is plain."""
    others = 0.7 - PLAINLY
    counts, accuracy = {}, {}
    for classifier in ("knn", "probe"):
        trained, pixels, majority, *draws = draw(random, images, 0.7, 0.7 - difference, others, others, others, others)
        accuracy[classifier] = 100 * float(trained.mean())
        counts[classifier] = {
            "random_init": count_pairs((trained, one) for one in draws),
            "pixels": count_pairs([(trained, pixels)]),
            "majority": count_pairs([(trained, majority)]),
        }
    known = Accuracies(accuracy["knn"], {"1.0": accuracy["probe"]}, {})
    report = LinearEvalReport(
        simclr=known,
        random_init=known,
        pixels=known,
        labels={},
        test_images=images,
        classes=10,
        reason=None,
        paired=counts,
    )
    return beats_baselines(Simulated(report)).outcome


def champion(random: np.random.Generator, images: int, difference: float) -> Outcome:
    """Both classifiers gain as much, or lose as much."""
    pairs = []
    for _ in range(2):
        candidate, released = draw(random, images, 0.7 + difference, 0.7)
        pairs.append(paired({"candidate": candidate, "champion": released}))
    report = CompareReport(
        champion="v0.0.1",
        test_images=images,
        classes=10,
        reason=None,
        knn=pairs[0],
        probe=pairs[1],
        old_index=OldIndex(),
        megabytes=Megabytes(1.0),
    )
    return representation(Simulated(report)).outcome


def few_labels(random: np.random.Generator, images: int, difference: float) -> Outcome:
    """Fine-tuned compared with from scratch; each seed has another difference, around the true one."""
    per_seed = random.normal(difference, SEED_SPREAD, SEEDS)
    answers = draw(random, images, *(0.7 + per_seed), *[0.7] * SEEDS)
    tuned, scratch = answers[:SEEDS], answers[SEEDS:]
    ours, theirs = (tuple(100 * float(one.mean()) for one in group) for group in (tuned, scratch))
    report = FinetuneReport(
        fraction="0.01",
        labels=80,
        seeds=tuple(range(SEEDS)),
        top1=float(np.mean(ours)),
        ci95=None,
        scratch_top1=float(np.mean(theirs)),
        scratch_ci95=None,
        top1_per_seed=ours,
        scratch_top1_per_seed=theirs,
        reason=None,
        test_images=images,
        paired=count_pairs(zip(tuned, scratch, strict=True)),
    )
    return low_label(Simulated(report, Champion(None))).outcome


def smaller_copy(random: np.random.Generator, images: int, difference: float) -> Outcome:
    """int8 compared with fp32, which it follows but for few images, by kNN and by the classifier."""
    exact, found = {}, {}
    for measure in ("knn_top1", "classifier_top1"):
        (right,) = draw(random, images, 0.7)
        flipped = random.random(images)
        lost, won = right & (flipped < (FLIPS / 2 - difference) / 0.7), ~right & (flipped < FLIPS / 2 / 0.3)
        exact[measure], found[measure] = right, (right & ~lost) | won
    left_out, undecided = judge_losses(exact, found, None, VARIANT_LOSS)
    return "refused" if left_out else "undecided" if undecided else "passed"


def draw_sets(
    random: np.random.Generator, images: int, *signals: float, prevalence: tuple[float, ...] = PREVALENCE
) -> tuple[Targets, list[Scores]]:
    """Which classes images have, and what classifiers say of them: some images are hard for all, class by class."""
    truth = random.random((images, len(prevalence))) < prevalence
    truth[0] |= ~truth.any()  # of images without any class nothing can be measured
    hard = random.standard_normal(truth.shape)
    return truth, [
        signal * truth + ALIKE**0.5 * hard + (1 - ALIKE) ** 0.5 * random.standard_normal(truth.shape)
        for signal in signals
    ]


@cache
def signal_with(difference: float) -> float:
    """With which the mean average precision is that of SIGNAL, and this much higher, in a draw of many images."""
    if not difference:
        return SIGNAL
    signals = np.linspace(0.8, 2.2, 29)
    truth, scores = draw_sets(np.random.default_rng(0), 20_000, *signals, SIGNAL)
    *found, usual = (exact_precision(one, truth) for one in scores)
    return float(np.interp(usual + difference, found, signals))


def gains_of_sets(random: np.random.Generator, images: int, signal: float) -> dict[str, Gain]:
    """Of kNN and the probe on the same images, over classifiers with the usual signal."""
    truth, scores = draw_sets(random, images, signal, SIGNAL, signal, SIGNAL)
    found = mean_precision(dict(zip(("knn", "knn other", "probe", "probe other"), scores, strict=True)), truth, 0)
    return {one: gain(found[one], [found[f"{one} other"]], 1.0) for one in ("knn", "probe")}


def baselines_of_sets(random: np.random.Generator, images: int, difference: float) -> Outcome:
    """The gain over raw pixels is in question; every other is plain."""
    plain = Gain(70.0, 50.0, 20.0, 1.0)
    others = {"random_init": plain, "prevalence": plain}
    found = gains_of_sets(random, images, signal_with(difference))
    gains = {classifier: {**others, "pixels": one} for classifier, one in found.items()}
    unknown = Accuracies(None, {}, {})
    report = LinearEvalReport(
        simclr=unknown,
        random_init=unknown,
        pixels=unknown,
        labels={},
        test_images=images,
        classes=len(PREVALENCE),
        reason=None,
        multi_label=MultiLabelResults(1.0, 20.0, {}, gains, {}),
    )
    return beats_baselines(Simulated(report)).outcome


def champion_of_sets(random: np.random.Generator, images: int, difference: float) -> Outcome:
    """Both classifiers gain as much, or lose as much."""
    report = CompareReport(
        champion="v0.0.1",
        test_images=images,
        classes=len(PREVALENCE),
        reason=None,
        knn=Paired(None),
        probe=Paired(None),
        old_index=OldIndex(),
        megabytes=Megabytes(1.0),
        gains=gains_of_sets(random, images, signal_with(difference)),
    )
    return representation(Simulated(report)).outcome


GATES: dict[str, tuple[Judge, float]] = {
    "beats_baselines": (baselines, LIMITS.min_gain / 100),
    "representation": (champion, -LIMITS.max_loss / 100),
    "low_label": (few_labels, -LIMITS.max_low_label_loss / 100),
    "int8": (smaller_copy, -VARIANT_LOSS / 100),
}
"""By its name: one simulated verdict, and the smallest difference that matters, a gain or a loss."""

SET_GATES: dict[str, tuple[Judge, float]] = {
    "beats_baselines": (baselines_of_sets, LIMITS.min_gain / 100),
    "representation": (champion_of_sets, -LIMITS.max_loss / 100),
}
"""The same where images have several labels."""


def shares(judge: Judge, images: int, difference: float, rounds: int) -> dict[Outcome, float]:
    """How often each outcome occurred; the same on every run."""
    random = np.random.default_rng([images, round(1e4 * abs(difference))])
    counts = Counter(judge(random, images, difference) for _ in range(rounds))
    return {outcome: counts[outcome] / rounds for outcome in ("passed", "refused", "undecided")}


def simulate(
    gates: dict[str, tuple[Judge, float]] = GATES, sizes: tuple[int, ...] = SIZES, rounds: int = ROUNDS
) -> list[dict[str, Any]]:
    """A row for each gate, size and difference."""
    return [
        {"gate": name, "images": images, "points": round(100 * true, 2), **shares(judge, images, true, rounds)}
        for name, (judge, smallest) in gates.items()
        for images in sizes
        for true in (0.0, 2 * smallest)
    ]


def table(rows: list[dict[str, Any]], sizes: tuple[int, ...] = SIZES) -> str:
    """Markdown; each cell is passed / refused / undecided in percent."""
    titles = " | ".join(f"{size:,} images" for size in sizes)
    lines = [f"| gate | true difference | {titles} |", "|---" * (2 + len(sizes)) + "|"]
    for name in dict.fromkeys(row["gate"] for row in rows):
        for points in dict.fromkeys(row["points"] for row in rows if row["gate"] == name):
            found = {row["images"]: row for row in rows if (row["gate"], row["points"]) == (name, points)}
            cells = (
                " / ".join(f"{100 * found[size][one]:.0f}" for one in ("passed", "refused", "undecided"))
                for size in sizes
            )
            lines.append(f"| `{name}` | {points:+g} points | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parsing = parser(__doc__)
    parsing.add_argument("--several-labels", action="store_true", help="of images with several labels each")
    options = parsing.parse_args()
    gates, sizes, rounds = (SET_GATES, SET_SIZES, SET_ROUNDS) if options.several_labels else (GATES, SIZES, ROUNDS)
    found = simulate(gates, sizes, rounds)
    print(table(found, sizes))
    write(header("gates", "numpy", "scipy") | {"rounds": rounds, "rows": found}, options.json)
