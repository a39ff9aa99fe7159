"""The gates on what the candidate gives: is it no worse than the champion that it would replace?

Thresholds are those of the block ``gates`` in params.yaml at the time of the check. What is judged is committed JSON.
"""

from dataclasses import dataclass

from pipeline.config import GatesConfig
from pipeline.gates.evidence import Evidence, needed
from pipeline.gates.paired_comparison import images_needed, lower_bound, mcnemar_p_value
from pipeline.gates.verdict import Verdict, not_applicable
from simclr_core.champion import Champion
from simclr_core.errors import ReportError
from simclr_core.reports import CompareReport, FinetuneReport, Paired, parse


@dataclass(frozen=True)
class Compared:
    """One classifier on both encoders: accuracies, difference and its lower bound in points, McNemar's p-value."""

    title: str
    candidate: float
    champion: float
    difference: float
    bound: float
    p_value: float
    images_needed: int | None  # to rule the loss out if both are equally good


def representation(evidence: Evidence) -> Verdict:
    """Neither kNN nor a linear probe on the served embeddings loses more to the champion than is allowed.

    A loss of `gates.max_loss` points has to be ruled out with `gates.confidence`, by a paired test on the same test
    images. With `release_if: better`, one of the two has to be better beyond chance as well. Without a champion, or
    without labels, there is nothing to compare, and the check passes.
    """
    limits, report = evidence.limits, evidence.report(CompareReport)
    if report.reason:
        return not_applicable(report.reason)
    images = report.test_images
    pairs = {
        "knn": _compared("kNN", report.knn, report, limits),
        "probe": _compared("linear probe", report.probe, report, limits),
    }
    lost = [pair for pair in pairs.values() if not pair.bound > -limits.max_loss]
    # Either classifier may show the gain, so each gets half of the error that is allowed (Bonferroni).
    significance = (1 - limits.confidence) / len(pairs)
    gained = any(pair.p_value <= significance for pair in pairs.values())
    parts = [
        f"{pair.title} {pair.candidate:.2f} % against {pair.champion:.2f} % of {report.champion}, with "
        f"{100 * limits.confidence:g} % confidence at least {pair.bound:+.2f} points"
        for pair in pairs.values()
    ]
    parts.append(f"a loss of {limits.max_loss:g} points is {'not ' if lost else ''}ruled out by {images} test images")
    needed = max((pair.images_needed or 0 for pair in lost), default=0)
    if needed > images:
        parts.append(f"about {needed} would show it of an equally good encoder")
    if limits.release_if == "better":
        p_values = " and ".join(f"{pair.p_value:.2g}" for pair in pairs.values())
        parts.append(f"McNemar p {p_values}, one of them must be at most {significance:.3g}")
    numbers: dict[str, float] = {"test_images": images, "max_loss": limits.max_loss, "confidence": limits.confidence}
    for name, pair in pairs.items():
        numbers |= {f"{name}/{key}": getattr(pair, key) for key in ("candidate", "champion", "difference", "bound")}
        numbers[f"{name}/p_value"] = pair.p_value
    passed = not lost and (gained or limits.release_if == "not_worse")
    if lost:
        parts.append("add test images, train longer, or raise gates.max_loss")
    elif not passed:
        parts.append("train longer, or set gates.release_if to not_worse")
    return Verdict(passed=passed, description="; ".join(parts), numbers=numbers)


def low_label(evidence: Evidence) -> Verdict:
    """Fine-tuned on few labels, the candidate is not below training from scratch, and loses little to the champion.

    Below means beyond the 95 % intervals of both means; to the champion's own result, `gates.max_low_label_loss`
    points are allowed besides. Without labels there is nothing to compare, and the check passes.
    """
    allowed = evidence.limits.max_low_label_loss
    champion = evidence.report(Champion)
    parts: list[str] = []
    numbers: dict[str, float] = {}
    passed = True
    for report in evidence.reports(FinetuneReport):
        fraction, labels = report.fraction, report.labels
        ours, scratch = _interval(report.top1, report.ci95), _interval(report.scratch_top1, report.scratch_ci95)
        if ours is None or scratch is None:
            parts.append(f"no accuracies with {fraction} of the labels: {report.reason}")
            continue
        theirs = _released(champion, fraction)
        top1, high = ours[0], sum(ours)
        passed = passed and high >= scratch[0] - scratch[1]
        part = f"{top1:.2f} ± {ours[1]:.2f} % with {labels} labels, from scratch {scratch[0]:.2f} ± {scratch[1]:.2f} %"
        numbers |= {f"{fraction}/top1": top1, f"{fraction}/scratch": scratch[0]}
        if theirs is not None:
            passed = passed and high >= theirs[0] - theirs[1] - allowed
            part += f", {champion.version} {theirs[0]:.2f} ± {theirs[1]:.2f} % (may lose {allowed:g} points)"
            numbers[f"{fraction}/champion"] = theirs[0]
        parts.append(part)
    if not passed:
        parts.append("train longer, or raise gates.max_low_label_loss if less is enough")
    description = "; ".join(parts)
    return Verdict(passed=passed, description=description, numbers=numbers) if numbers else not_applicable(description)


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
    answers = old - new <= limits.max_old_index_loss
    advice = "the index can stay" if answers else f"embed everything again{allow}"
    return Verdict(
        passed=answers or not required,
        description=f"kNN in the index of {champion}: {old:.2f} % with its own queries, {new:.2f} % with the "
        f"candidate's, {limits.max_old_index_loss:g} points may be lost{'' if required else ' (reported only)'}; "
        f"{same:.2f} % of {report.test_images} test images keep their nearest neighbor; {advice}",
        numbers=dict(zip(names, (old, new, same), strict=True)),
    )


def _compared(title: str, counts: Paired, report: CompareReport, limits: GatesConfig) -> Compared:
    """Raises ReportError: the counts are not there, or impossible."""
    images, max_loss = report.test_images, limits.max_loss / 100
    names = ("candidate", "champion", "candidate_only", "champion_only")
    candidate, champion, won, lost = (needed(getattr(counts, name), report, f"{name} of {title}") for name in names)
    try:
        bound = lower_bound(images, won, lost, limits.confidence)
    except ValueError as error:
        raise ReportError(f"{report.file} contradicts itself: {title}: {error}") from None
    return Compared(
        title,
        candidate,
        champion,
        difference=100 * (won - lost) / images,
        bound=100 * bound,
        p_value=mcnemar_p_value(won, lost),
        images_needed=images_needed(images, won, lost, max_loss, limits.confidence) if max_loss else None,
    )


def _released(champion: Champion, fraction: str) -> tuple[float, float] | None:
    """What the champion's report says of this share of the labels, if it has one."""
    name = f"finetune-{fraction}"
    if champion.version is None or name not in champion.reports:
        return None
    report = parse(champion.reports[name], FinetuneReport, f"{name} in {champion.file}")
    return _interval(report.top1, report.ci95)


def _interval(top1: float | None, width: float | None) -> tuple[float, float] | None:
    """Mean top-1 and half the width of its interval, 0 for a single seed; None without labels."""
    return None if top1 is None else (top1, width or 0.0)
