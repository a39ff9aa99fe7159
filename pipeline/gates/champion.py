"""The gates on what the candidate gives: is it no worse than the champion that it would replace?

Thresholds are those of the block ``gates`` in params.yaml at the time of the check. What is judged is committed JSON.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from deploy.plural import counted
from pipeline.config import GatesConfig
from pipeline.gates.evidence import Evidence, needed
from pipeline.gates.label_free import judge_views
from pipeline.gates.precision import gain_interval, gain_p_value, images_to_exclude, measured_interval
from pipeline.gates.verdict import Verdict, not_applicable, undecided
from simclr_core.champion import Champion
from simclr_core.errors import ReportError
from simclr_core.evaluation.paired_comparison import (
    Interval,
    disagreement,
    images_needed,
    interval,
    mcnemar_p_value,
    proportion,
    single_draw,
    widened,
)
from simclr_core.evaluation_reports import CompareReport, FinetunePrecision, FinetuneReport, Paired, finetune_name
from simclr_core.reports import parse

MEASURE = "mean average precision of "


@dataclass(frozen=True)
class Compared:
    """One classifier on both encoders: accuracies, difference and its lower bound in points, and the p-value of a gain
    by McNemar's test; of mean average precisions by the bootstrap."""

    title: str
    candidate: float
    champion: float
    difference: float
    bound: float
    p_value: float
    images_needed: int | None  # to rule the loss out if both are equally good
    loses: bool  # shown to be worse


def representation(evidence: Evidence) -> Verdict:
    """Neither kNN nor a linear probe on the served embeddings loses more to the champion than is allowed.

    A loss of `gates.max_loss` points has to be ruled out with `gates.confidence`, by a paired test on the same test
    images; where they show no loss either, it is undecided, and `gates.abstain` says what follows. Where an image may
    have several labels, mean average precision is compared instead, by bootstrap over the images.
    With `release_if: better`, one of the two has to be better beyond chance, whatever `gates.abstain` is. Without
    labels two views of each image judge (`label_free`); without a champion either, the release is UNJUDGED, a warning.
    """
    limits, report = evidence.limits, evidence.report(CompareReport)
    if report.unjudged or report.label_free:
        return judge_views(evidence, report)
    if report.reason:
        return not_applicable(report.reason)
    images = report.test_images
    pairs = _compare_precision(report, limits) if report.gains else _compare(report, limits)
    lost = [pair for pair in pairs.values() if not pair.bound > -limits.max_loss]
    # Either classifier may show the gain, so each gets half of the error that is allowed (Bonferroni).
    significance = (1 - limits.confidence) / len(pairs)
    gained = any(pair.p_value <= significance for pair in pairs.values())
    parts = [
        f"{pair.title} {pair.candidate:.2f} % against {pair.champion:.2f} % of {report.champion}, with "
        f"{100 * limits.confidence:g} % confidence at least {pair.bound:+.2f} points"
        for pair in pairs.values()
    ]
    parts.append(
        f"a loss of {limits.max_loss:g} points is {'not ' if lost else ''}ruled out by {counted(images, 'test image')}"
    )
    worse = [pair.title for pair in lost if pair.loses]
    needed = max((pair.images_needed or 0 for pair in lost), default=0)
    if worse:
        parts.append(f"by {' and '.join(worse)} it is shown to be worse")
    elif needed > images:
        parts.append(f"about {needed:,} would show it of an equally good encoder")
    if limits.release_if == "better":
        p_values = " and ".join(f"{pair.p_value:.2g}" for pair in pairs.values())
        test = "paired bootstrap" if report.gains else "McNemar"
        parts.append(f"{test} p {p_values}, one of them must be at most {significance:.3g}")
    numbers: dict[str, float] = {"test_images": images, "max_loss": limits.max_loss, "confidence": limits.confidence}
    for name, pair in pairs.items():
        numbers |= {f"{name}/{key}": getattr(pair, key) for key in ("candidate", "champion", "difference", "bound")}
        numbers[f"{name}/p_value"] = pair.p_value
    passed = not lost and (gained or limits.release_if == "not_worse")
    if lost and not worse and (gained or limits.release_if == "not_worse"):
        blocks = limits.undecided_stops
        allowed = ", or set gates.abstain to warn" if blocks else ""
        parts.append(f"add test images, train longer, or raise gates.max_loss{allowed}")
        return undecided("; ".join(parts), numbers, blocks)
    if lost:
        ask_less = " and set gates.release_if to not_worse" if not gained and limits.release_if == "better" else ""
        more = "" if worse else "add test images, "
        parts.append(f"{more}train longer, or raise gates.max_loss{ask_less}")
    elif not passed:
        parts.append("train longer, or set gates.release_if to not_worse")
    return Verdict(passed=passed, description="; ".join(parts), numbers=numbers)


def low_label(evidence: Evidence) -> Verdict:
    """Fine-tuned on few labels, the candidate is not below training from scratch, and loses little to the champion.

    A loss is refused when it is shown with `gates.confidence`: any to training from scratch, paired by seed and test
    image; more than `gates.max_low_label_loss` points to the champion. Intervals account for the test images and the
    spread between seeds. A loss of that many points that is neither shown nor ruled out is undecided, a warning.
    Without labels there is nothing to compare, and the check passes.
    """
    limits, champion = evidence.limits, evidence.report(Champion)
    reports = evidence.reports(FinetuneReport)
    known = [report for report in reports if report.reached is not None]
    parts = [
        f"no accuracies with {report.fraction} of the labels: {report.reason}"
        for report in reports
        if report not in known
    ]
    if not known:
        return not_applicable("; ".join(parts))
    if old := next(
        (report for report in known if not (report.paired or report.multi_label) or not report.test_images), None
    ):
        return undecided(f"{old.file} counts no test images in pairs; run its stage again", {}, blocks=False)
    numbers: dict[str, float] = {}
    outcomes: set[str] = set()
    for report in known:
        before = _released(champion, report.fraction)
        try:
            losses = list(_losses(report, before, len(known), limits))
        except ValueError as error:
            raise ReportError(
                f"{report.file} contradicts itself: {error}; run the stage that writes it again"
            ) from None
        reached = report.reached or 0.0
        measure, key = (MEASURE.removesuffix(" of ") + " ", "precision") if report.multi_label else ("", "top1")
        part = f"{measure}{reached:.2f} % with {counted(report.labels, 'label')}"
        numbers[f"{report.fraction}/{key}"] = reached
        for name, loss in losses:
            named = "from scratch" if name == "scratch" else f"{champion.version}"
            accuracy = reached - 100 * loss.gain.difference
            part += f", {named} {accuracy:.2f} % ({100 * loss.gain.low:+.1f} to {100 * loss.gain.high:+.1f} points)"
            numbers |= {
                f"{report.fraction}/{name}": accuracy,
                f"{report.fraction}/{name}/at_most": 100 * loss.gain.high,
            }
            outcomes.add(loss.outcome)
        parts += [] if part in parts else [part]  # of few images two shares are the same labels
    allowed = f"a loss of {limits.max_low_label_loss:g} points (gates.max_low_label_loss)"
    if "shown" in outcomes:
        parts.append(
            f"a loss is shown, of which {limits.max_low_label_loss:g} points to the champion are allowed and none to "
            "training from scratch; train longer, or raise gates.max_low_label_loss if less is enough"
        )
        return Verdict(False, "; ".join(parts), numbers)
    if "open" in outcomes:
        parts.append(f"{allowed} is not ruled out; more finetune.seeds or test images would settle it")
        return undecided("; ".join(parts), numbers, blocks=False)
    return Verdict(True, "; ".join([*parts, f"{allowed} is ruled out"]), numbers)


@dataclass(frozen=True)
class Loss:
    """A gain that may be a loss, ``refused`` from where it is shown to be below that, and what is known of it."""

    gain: Interval
    refused: float
    allowed: float

    @property
    def outcome(self) -> Literal["shown", "ruled out", "open"]:
        if self.gain.high < self.refused:
            return "shown"
        return "ruled out" if self.gain.low >= -self.allowed else "open"


def _losses(
    report: FinetuneReport, before: FinetuneReport | None, fractions: int, limits: GatesConfig
) -> Iterator[tuple[str, Loss]]:
    """Compared with training from scratch, and with the champion's result on its test images of that time.

    Each of the fractions may show a loss to training from scratch without there being one, so each gets its part of the
    error that is allowed (Bonferroni). A loss to the champion has a margin, which chance alone hardly ever exceeds.
    """
    assert report.test_images
    if report.multi_label:
        yield from _precision_losses(report.multi_label, before, report.labels, fractions, limits)
        return
    assert report.paired is not None
    allowed, confidence = limits.max_low_label_loss / 100, 1 - (1 - limits.confidence) / fractions
    pairs = report.paired.pairs()
    per_seed = [(won - lost) / report.test_images for won, lost in pairs]
    alone = single_draw(disagreement(report.test_images, pairs), report.labels)
    gain = widened(interval(report.test_images, pairs, confidence), per_seed, confidence, alone)
    yield "scratch", Loss(gain, 0.0, allowed)
    if before is not None and before.top1 is not None:
        ours = _accuracy(report, report.test_images, limits.confidence)
        theirs = _accuracy(before, before.test_images or report.test_images, limits.confidence)
        yield "champion", Loss(ours - theirs, -allowed, allowed)


def _precision_losses(
    found: FinetunePrecision, before: FinetuneReport | None, labels: int, fractions: int, limits: GatesConfig
) -> Iterator[tuple[str, Loss]]:
    """The same of mean average precision."""
    allowed, confidence = limits.max_low_label_loss / 100, 1 - (1 - limits.confidence) / fractions
    mean = found.scratch.value / 100
    per_seed, alone = [one / 100 for one in found.gain_per_seed], single_draw(mean * (1 - mean), labels)
    yield "scratch", Loss(widened(gain_interval(found.gain, confidence), per_seed, confidence, alone), 0.0, allowed)
    if before is not None and before.multi_label is not None:
        ours, theirs = (measured_interval(one, limits.confidence) for one in (found.simclr, before.multi_label.simclr))
        yield "champion", Loss(ours - theirs, -allowed, allowed)


def _accuracy(report: FinetuneReport, images: int, confidence: float) -> Interval:
    """The mean over the seeds, 0..1, with the spread that test images and seeds give it."""
    assert report.top1 is not None
    mean, per_seed = report.top1 / 100, [top1 / 100 for top1 in report.top1_per_seed]
    return widened(
        proportion(mean, images, confidence), per_seed, confidence, single_draw(mean * (1 - mean), report.labels)
    )


def old_index(evidence: Evidence) -> Verdict:
    """Whether an index of the champion's embeddings still answers when the candidate's are asked.

    With `gates.old_index: report` it is only reported; with `require`, an answer that is worse by more than
    `gates.max_old_index_loss` points, or that cannot be measured, does not pass. Without a champion there is none.
    """
    limits, report = evidence.limits, evidence.report(CompareReport)
    index, champion, required = report.old_index, report.champion, limits.old_index == "require"
    if champion is None:
        return not_applicable(f"there is no old index, {report.reason}")
    allow = ", and set gates.old_index to report" if required else ""
    if not index.comparable:
        why = report.reason or "their vectors have different lengths"
        description = f"the candidate cannot search the index of {champion}: {why}; embed everything again{allow}"
        return Verdict(passed=not required, description=description)
    names = ("old_queries", "new_queries", "same_neighbour")
    old, new, same = (needed(getattr(index, name), report, f"old_index.{name}") for name in names)
    measure = MEASURE if report.gains else ""
    answers = old - new <= limits.max_old_index_loss
    advice = "the index can stay" if answers else f"embed everything again{allow}"
    return Verdict(
        passed=answers or not required,
        description=f"{measure}kNN in the index of {champion}: {old:.2f} % with its own queries, {new:.2f} % with the "
        f"candidate's, {limits.max_old_index_loss:g} points may be lost{'' if required else ' (reported only)'}; "
        f"{same:.2f} % of {counted(report.test_images, 'test image')} keep their nearest neighbor; {advice}",
        numbers=dict(zip(names, (old, new, same), strict=True)),
    )


def _compare(report: CompareReport, limits: GatesConfig) -> dict[str, Compared]:
    return {
        "knn": _compared("kNN", report.knn, report, limits),
        "probe": _compared("linear probe", report.probe, report, limits),
    }


def _compare_precision(report: CompareReport, limits: GatesConfig) -> dict[str, Compared]:
    """Where an image may have several labels."""
    titles, max_loss = {"knn": f"{MEASURE}kNN", "probe": f"{MEASURE}the linear probe"}, limits.max_loss
    return {
        name: Compared(
            titles.get(name, name),
            one.trained,
            one.other,
            difference=one.difference,
            bound=100 * gain_interval(one, limits.confidence).low,
            p_value=gain_p_value(one),
            images_needed=images_to_exclude(one, report.test_images, max_loss, limits.confidence, limits.power)
            if max_loss
            else None,
            loses=gain_interval(one, (1 + limits.confidence) / 2).high < 0,  # one of two (Bonferroni)
        )
        for name, one in report.gains.items()
    }


def _compared(title: str, counts: Paired, report: CompareReport, limits: GatesConfig) -> Compared:
    """Raises ReportError: the counts are not there, or impossible."""
    images, max_loss = report.test_images, limits.max_loss / 100
    names = ("candidate", "champion", "candidate_only", "champion_only")
    candidate, champion, won, lost = (needed(getattr(counts, name), report, f"{name} of {title}") for name in names)
    try:
        found = interval(images, [(won, lost)], limits.confidence)
        loses = interval(images, [(won, lost)], (1 + limits.confidence) / 2).high < 0  # one of two (Bonferroni)
    except ValueError as error:
        raise ReportError(
            f"{report.file} contradicts itself: {title}: {error}; run the stage that writes it again"
        ) from None
    return Compared(
        title,
        candidate,
        champion,
        difference=100 * found.difference,
        bound=100 * found.low,
        p_value=mcnemar_p_value(won, lost),
        images_needed=images_needed(images, won, lost, max_loss, limits.confidence, limits.power) if max_loss else None,
        loses=loses,
    )


def _released(champion: Champion, fraction: str) -> FinetuneReport | None:
    """What the champion's report says of this share of the labels, if it has an accuracy."""
    name = finetune_name(fraction)
    if champion.version is None or name not in champion.reports:
        return None
    report = parse(champion.reports[name], FinetuneReport, f"{name} in {champion.file}")
    return report if report.reached is not None else None
