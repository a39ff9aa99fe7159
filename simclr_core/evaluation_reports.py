"""What evaluation reports: accuracies next to baselines, fine-tuning, candidate and champion. See ``reports``."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from deploy.plural import counted
from simclr_core.reports import Report


@dataclass(frozen=True)
class Accuracies:
    """Of one kind of features; the linear probe by its share of the labels."""

    knn_top1: float | None
    linear_top1: dict[str, float | None]
    linear_top5: dict[str, float | None]


@dataclass(frozen=True)
class AugmentedProbe:
    """A linear classifier that SGD has trained on augmented images and all labels (SimCLR, section B.6). ``reason`` is
    why it has no accuracies."""

    epochs: int
    steps: int
    top1: float | None
    top5: float | None
    reason: str | None = None


@dataclass(frozen=True)
class PairedCounts:
    """Of the test images, how many the trained encoder alone classifies rightly, and how many the baseline alone.

    One count for each repetition: of random weights, for each draw; of fine-tuning, for each seed.
    """

    trained_only: tuple[int, ...]
    baseline_only: tuple[int, ...]

    def pairs(self) -> list[tuple[int, int]]:
        """(trained alone, baseline alone) of each repetition.

        Raises:
            ValueError: the two counts have different numbers of repetitions, or none.
        """
        if not self.trained_only or len(self.trained_only) != len(self.baseline_only):
            given = f"{len(self.trained_only)} and {len(self.baseline_only)}"
            raise ValueError(f"counts of {given} repetitions; both need the same number, at least one")
        return list(zip(self.trained_only, self.baseline_only, strict=True))


@dataclass(frozen=True)
class Estimate:
    """A mean accuracy over draws of the labels, and its 95 % interval: test images and draws both count."""

    top1: float
    low: float
    high: float


@dataclass(frozen=True)
class BudgetAccuracies:
    """Of linear probes on ``labels`` labels, drawn ``draws`` times; of random weights one draw for each encoder."""

    labels: int
    draws: int
    simclr: Estimate
    random_init: Estimate
    pixels: Estimate
    start: Estimate | None = None  # of given weights as they came


@dataclass(frozen=True)
class ClassScores:
    """Of one class: how many training images have it as their label, how many test images are of it, and how many are
    taken for it; then percentages, None where there is nothing to divide by; then how many are rightly taken for it."""

    labels: int
    images: int
    answers: int
    recall: float | None
    precision: float | None
    f1: float | None
    average_precision: float | None
    right: int | None = None


@dataclass(frozen=True)
class Scores:
    """Of one classifier. The means over classes are over those that test images are of; each counts the same."""

    top1: Estimate
    balanced_accuracy: float
    macro_f1: float
    mean_average_precision: float
    per_class: dict[str, ClassScores]


@dataclass(frozen=True)
class Measured:
    """A percentage with its 95 % interval, of which the images know, and the draws of the labels if there are some."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class SetScores:
    """Of a classifier that says of each class whether an image has it: it does from a probability of one half on.

    Means over classes are over those that test images have, and each counts the same; in ``micro_f1`` each answer does.
    """

    mean_average_precision: Measured
    macro_f1: Measured
    micro_f1: Measured
    per_class: dict[str, ClassScores]


@dataclass(frozen=True)
class Gain:
    """Mean average precision of two encoders on the same images, percent, and the standard error of the difference.

    ``images`` is how many images with equal parts in the mean would make it as sure; None in older reports.
    """

    trained: float
    other: float
    difference: float
    standard_error: float
    images: float | None = None


@dataclass(frozen=True)
class BudgetPrecision:
    """Mean average precision of linear probes on ``labels`` labeled images, drawn ``draws`` times; see
    ``BudgetAccuracies``."""

    labels: int
    draws: int
    simclr: Measured
    random_init: Measured
    pixels: Measured
    start: Measured | None = None


@dataclass(frozen=True)
class MultiLabelResults:
    """In place of accuracies, where an image may have several labels, or none of the classes.

    ``prevalence`` is the mean average precision of chance: the share of the images that have a class, mean over the
    classes. ``gains`` are by classifier (knn, probe), and by baseline: random_init, pixels, prevalence, start.
    """

    labels_per_image: float
    prevalence: float
    scores: dict[str, SetScores]  # of the trained features, by classifier
    gains: dict[str, dict[str, Gain]]
    budgets: dict[str, BudgetPrecision]


OUT_OF_FOLD = "estimated out of fold ({} folds); the encoder was pretrained on them too, without their labels"


@dataclass(frozen=True)
class OutOfFold:
    """Each of ``images`` labeled training images was answered once, by classifiers that had seen the other folds."""

    images: int
    folds: int


@dataclass(frozen=True)
class LinearEvalReport(Report):
    """Accuracies of the test images; where ``estimate`` is "out_of_fold", of the labeled training images instead."""

    path: ClassVar[str] = "reports/linear_eval.json"

    simclr: Accuracies
    random_init: Accuracies
    pixels: Accuracies
    labels: dict[str, int]  # by share
    test_images: int
    classes: int
    reason: str | None
    majority_class: float | None = None  # who answers every test image with the most frequent class of the labels
    paired: dict[str, dict[str, PairedCounts]] = field(default_factory=dict)  # by classifier (knn, probe), by baseline
    budgets: dict[str, BudgetAccuracies] = field(default_factory=dict)  # by share of the labels, or "5 per class"
    scores: dict[str, Scores] = field(default_factory=dict)  # of the trained features, by classifier (knn, probe)
    start: Accuracies | None = None  # of given weights as they came, if training began with some
    estimate: Literal["test", "out_of_fold"] = "test"
    out_of_fold: OutOfFold | None = None  # where that is the estimate
    multi_label: MultiLabelResults | None = None  # where images have several labels; there are no accuracies then
    sgd: AugmentedProbe | None = None  # if the configuration asks for one, and there are test images

    @property
    def images(self) -> int:
        """How many the accuracies are of."""
        return self.out_of_fold.images if self.out_of_fold else self.test_images

    @property
    def asked(self) -> str:
        """Which images the accuracies are of, for a person."""
        if self.out_of_fold is None:
            return counted(self.test_images, "test image")
        return f"{counted(self.images, 'labeled training image')}, {OUT_OF_FOLD.format(self.out_of_fold.folds)}"


@dataclass(frozen=True)
class FinetunePrecision:
    """In place of accuracies, where an image may have several labels: mean average precisions, means over the seeds.

    ``gain`` is over training from scratch, paired by image; its standard error knows of the images alone, and
    ``gain_per_seed`` tells the spread.
    """

    simclr: Measured
    scratch: Measured
    probe: Measured  # of linear probes on the same labels
    gain: Gain
    gain_per_seed: tuple[float, ...]
    scores: SetScores  # of the first seed, which is the model that is kept


def finetune_name(fraction: str) -> str:
    """Of the stage and of its report; in dvc.yaml, where a matrix makes the stages, DVC names them."""
    return f"finetune-{fraction}"


@dataclass(frozen=True)
class FinetuneReport(Report):
    """On one share of the labels: means over the seeds, and half the widths of their 95 % intervals."""

    path: ClassVar[str] = f"reports/{finetune_name('*')}.json"

    fraction: str
    labels: int
    seeds: tuple[int, ...]
    top1: float | None
    ci95: float | None
    scratch_top1: float | None
    scratch_ci95: float | None
    top1_per_seed: tuple[float, ...]
    scratch_top1_per_seed: tuple[float, ...]
    reason: str | None
    test_images: int | None = None
    paired: PairedCounts | None = None  # with training from scratch, one count for each seed
    interval: Estimate | None = None  # of top1
    scratch_interval: Estimate | None = None
    probe: Estimate | None = None  # of linear probes on the same labels
    scores: Scores | None = None  # of the first seed, which is the model that is kept
    multi_label: FinetunePrecision | None = None  # where images have several labels; there are no accuracies then

    @property
    def reached(self) -> float | None:
        """Percent: top-1, or mean average precision where images have several labels."""
        return self.multi_label.simclr.value if self.multi_label else self.top1

    @property
    def name(self) -> str:
        return finetune_name(self.fraction)

    @property
    def file(self) -> str:
        return self.path.replace("*", self.fraction)


@dataclass(frozen=True)
class Paired:
    """Accuracies of a classifier on both encoders, and the number of test images that only one of them gets right."""

    candidate: float | None = None
    champion: float | None = None
    candidate_only: int | None = None
    champion_only: int | None = None


@dataclass(frozen=True)
class OldIndex:
    """kNN in an index of the champion's embeddings, asked with its own and with the candidate's.

    ``same_neighbour`` is the percentage of test images that find the same nearest training image either way.
    """

    comparable: bool = False
    old_queries: float | None = None
    new_queries: float | None = None
    same_neighbour: float | None = None


@dataclass(frozen=True)
class Megabytes:
    """Of the ONNX files."""

    candidate: float
    champion: float | None = None


@dataclass(frozen=True)
class LabelFree:
    """How many of an image's nearest neighbors two views of it have in common, in percent, without labels.

    ``images`` of ``split`` were looked at; those of ``train`` have been trained on. ``standard_error`` is that of the
    difference between candidate and champion, in percentage points, paired by image.
    """

    images: int
    split: str
    candidate: float
    champion: float
    difference: float
    standard_error: float


@dataclass(frozen=True)
class CompareReport(Report):
    path: ClassVar[str] = "reports/compare.json"

    champion: str | None
    test_images: int
    classes: int
    reason: str | None
    knn: Paired
    probe: Paired
    old_index: OldIndex
    megabytes: Megabytes
    label_free: LabelFree | None = None  # only without labels
    estimated: bool = False  # whether linear_eval judges the encoder out of fold, which compares it with no champion
    # Where images have several labels: the candidate's mean average precision, and what it gains on the champion.
    precision: dict[str, float] = field(default_factory=dict)
    gains: dict[str, Gain] = field(default_factory=dict)

    @property
    def unjudged(self) -> str | None:
        """Why nothing says how good the candidate is; None where labels do, or views in place of labels."""
        judged = self.knn.candidate is not None or self.precision or self.label_free is not None
        if self.reason is None or judged:
            return None
        if self.estimated and self.champion is None:
            return None
        advice = (
            f"; to compare it with {self.champion} without labels, run it again with at least 50 images"
            if self.champion
            else ""
        )
        return f"UNJUDGED: nothing says how good this encoder is: {self.reason}{advice}"
