"""What to do next, in sentences: each rule looks at what a run has measured, and is silent where it does not apply."""

from collections.abc import Iterator, Mapping, Sequence

from deploy.failure import printable
from deploy.plural import counted, listed
from pipeline.reports import EmbeddingDriftReport, ImageCounts, ValidationReport
from pipeline.run_report.facts import RunFacts
from simclr_core.evaluation_reports import (
    BudgetAccuracies,
    Estimate,
    FinetuneReport,
    Gain,
    LinearEvalReport,
    Scores,
    SetScores,
)
from simclr_core.reports import PretrainReport

SHOWN = 5  # classes that a sentence names
MORE_LABELS = 20  # of a class that is never the answer
FEW_LABELS = 20  # of a class
BEHIND = 15  # percentage points of recall below the mean: a class that is recognized badly
STILL_FALLING = 0.02  # of the whole fall of the loss, in the last tenth of the epochs
LOW_RANK = 5
WIDE = 5  # percentage points to each side: an interval that decides little
LABELS_PAY = 2  # percentage points that the largest budget gains over the one before
MOST_QUARANTINED = 0.02  # of the files
SURE = 0.95  # probability of a wrong answer that may be a wrong label


def advise(facts: RunFacts) -> list[str]:
    """What follows from the run, the most useful first."""
    found: list[str] = []
    if (evaluation := facts.evaluation) is not None:
        found += missing_labels(evaluation)
        found += no_test_images(evaluation)
        found += baselines(evaluation)
        if probe := evaluation.scores.get("probe"):
            found += [*untested(probe), *never_predicted(probe)]
            found += badly_recognized(probe)
            found += test_images(probe.top1, evaluation.test_images) if evaluation.test_images else ()
        if several := evaluation.multi_label:
            probe_of_sets = several.scores["probe"]
            found += [*untested(probe_of_sets), *never_predicted(probe_of_sets)]
            found += no_gain(several.gains.get("probe", {}))
        found += more_labels(evaluation.budgets)
    if facts.pretrain is not None:
        found += training(facts.pretrain)
        found += epochs([row["loss"] for row in facts.curves if "loss" in row])
    found += wrong_labels([one.probe_answer for one in facts.mistakes])
    found += seeds(facts.finetune)
    found += worse_than_scratch(facts.finetune)
    if facts.validation is not None:
        found += quarantine(facts.validation.images)
        found += drift(facts.validation, facts.drift)
    return found


def missing_labels(evaluation: LinearEvalReport) -> Iterator[str]:
    if evaluation.reason:
        yield f"How good the encoder is was not measured: {evaluation.reason}."


def no_test_images(evaluation: LinearEvalReport) -> Iterator[str]:
    if evaluation.out_of_fold:
        yield (
            f"No labeled test images: accuracies are of {evaluation.asked}. For an accuracy on images that the encoder "
            "has never seen, put labeled ones into inbox/test/<class>/."
        )


def baselines(evaluation: LinearEvalReport) -> Iterator[str]:
    """Where raw pixels, or random weights, do nearly as well on all labels."""
    largest = max(evaluation.budgets.values(), key=lambda one: one.labels, default=None)
    if largest is None:
        return
    for name, other in (("raw pixels", largest.pixels), ("a random encoder", largest.random_init)):
        if largest.simclr.top1 <= other.high:
            yield (
                f"On {largest.labels:,} labels the encoder reaches {largest.simclr.top1:.1f} %, {name} "
                f"{other.top1:.1f} %: train longer, on more images or at a higher resolution, and look at "
                "augmentations.png: the augmentations must not change what distinguishes the classes."
            )


def no_gain(gains: Mapping[str, Gain]) -> Iterator[str]:
    """Where raw pixels, or random weights, do nearly as well, of images with several labels."""
    for name, baseline in (("raw pixels", "pixels"), ("a random encoder", "random_init")):
        gain = gains.get(baseline)
        if gain and gain.difference <= 2 * gain.standard_error:
            yield (
                f"The linear probe's mean average precision is {gain.trained:.1f} %, on {name} {gain.other:.1f} %: "
                "train longer, on more images or at a higher resolution, and look at augmentations.png: the "
                "augmentations must not change what distinguishes the classes."
            )


def untested(probe: Scores | SetScores) -> Iterator[str]:
    without = [name for name, one in probe.per_class.items() if not one.images]
    if without:
        one = len(without) == 1
        yield (
            f"{len(without)} of {counted(len(probe.per_class), 'class')} {'has' if one else 'have'} no test image, and "
            f"how well {'it is' if one else 'they are'} recognized is not known, and means over classes leave "
            f"{'it' if one else 'them'} out: put labeled images of {_names(without)} into inbox/test/<class>/, or give "
            "them the split test in labels.csv."
        )


def never_predicted(probe: Scores | SetScores) -> Iterator[str]:
    present = {name: one for name, one in probe.per_class.items() if one.images}
    never = [name for name, one in present.items() if not one.answers]
    if never:
        tested = "" if len(present) == len(probe.per_class) else " with test images"
        verb = "is" if len(never) == 1 else "are"
        yield (
            f"{len(never)} of {counted(len(present), 'class')}{tested} {verb} never predicted: "
            f"label {MORE_LABELS} more images of {'each of ' if len(never) > 1 else ''}{_names(never)}."
        )


def badly_recognized(probe: Scores) -> Iterator[str]:
    """Classes with few labels that are found far less often than the others."""
    behind = [
        (name, one)
        for name, one in probe.per_class.items()
        if one.answers and one.recall is not None and one.recall < probe.balanced_accuracy - BEHIND
    ]
    few = [f"{printable(name, 60)} ({counted(one.labels, 'label')})" for name, one in behind if one.labels < FEW_LABELS]
    confused = [name for name, one in behind if one.labels >= FEW_LABELS]
    if few:
        yield f"Recognized badly, and labeled rarely: label more images of {', '.join(few[:SHOWN])}."
    if confused:
        yield f"Recognized badly although labeled: {_names(confused)}; confusion.png shows what they are taken for."


def test_images(top1: Estimate, images: int) -> Iterator[str]:
    half = (top1.high - top1.low) / 2
    if half > WIDE:
        needed = round(images * (half / WIDE) ** 2)
        yield (
            f"{counted(images, 'test image')} tell the accuracy to ± {half:.0f} points: label about "
            f"{counted(needed - images, 'more test image')} for ± {WIDE}."
        )


def more_labels(budgets: Mapping[str, BudgetAccuracies]) -> Iterator[str]:
    by_labels = sorted(budgets.values(), key=lambda one: one.labels)
    if len(by_labels) < 2 or by_labels[-1].labels == by_labels[-2].labels:
        return
    fewer, most = by_labels[-2:]
    if most.simclr.low > fewer.simclr.top1 + LABELS_PAY:
        yield (
            f"Labels still pay: from {fewer.labels:,} to {most.labels:,} of them the linear probe gains "
            f"{most.simclr.top1 - fewer.simclr.top1:.1f} points. `simclr suggest` chooses which images to label next."
        )


def training(report: PretrainReport) -> Iterator[str]:
    if report.collapsed or not report.finite:
        yield "Pretraining failed, features collapsed or the loss ran away: lower pretrain.learning_rate."
    elif report.effective_rank < LOW_RANK:
        yield (
            f"Features vary along {report.effective_rank:.1f} directions only: strengthen the augmentation, or raise "
            "pretrain.batch_size."
        )


def epochs(losses: Sequence[float]) -> Iterator[str]:
    """Whether the loss fell in the last tenth of the epochs, compared with the tenth before."""
    last = max(1, len(losses) // 10)
    if len(losses) < 3 * last or len(losses) < 3:
        return
    fall = sum(losses[-2 * last : -last]) / last - sum(losses[-last:]) / last
    if fall > STILL_FALLING * (losses[0] - losses[-1]) > 0:
        span = "epoch" if last == 1 else f"{last} epochs"
        yield f"More epochs: the loss still falls, by {fall:.3f} in the last {span}."


def wrong_labels(answers: Sequence[float]) -> Iterator[str]:
    sure = sum(answer >= SURE for answer in answers)
    if sure:
        yield (
            f"{counted(sure, 'image')} {'is' if sure == 1 else 'are'} taken for another class with at least "
            f"{100 * SURE:.0f} % probability: look at the first mistakes below, their labels may be wrong. "
            "`simclr suggest --by mistakes` looks for wrong labels among the training images."
        )


def seeds(tuned: Sequence[FinetuneReport]) -> Iterator[str]:
    if any(len(one.seeds) == 1 and one.top1 is not None for one in tuned):
        yield "Fine-tuning has one seed, which says little: give finetune.seeds three."


def worse_than_scratch(tuned: Sequence[FinetuneReport]) -> Iterator[str]:
    for one in tuned:
        if one.interval and one.scratch_interval and one.interval.high < one.scratch_interval.top1:
            yield (
                f"With {counted(one.labels, 'label')} the network trained from scratch is better than fine-tuning: "
                "pretrain longer, or on images that are more like those with labels."
            )


def quarantine(images: ImageCounts) -> Iterator[str]:
    refused = images.ingested - images.accepted
    if images.quarantined and refused > MOST_QUARANTINED * images.ingested:
        reason, count = max(images.quarantined.items(), key=lambda one: one[1])
        yield (
            f"{counted(refused, 'file')} of {images.ingested:,} were refused, {count:,} as {printable(reason, 60)}: "
            "validation.html shows them."
        )


def drift(validation: ValidationReport, embedding: EmbeddingDriftReport | None) -> Iterator[str]:
    for report in (validation.drift, embedding):
        if report is not None and report.verdict in ("drift", "broken"):
            yield f"The newest batch differs from the earlier ones: {printable(report.advice, 1000)}."


def _names(names: Sequence[str]) -> str:
    return listed([printable(name, 60) for name in names], SHOWN)
