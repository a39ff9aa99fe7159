"""The candidate and the champion where no labels are: what two views of an image say, and how long both were trained.

Views decide less surely than labels. So a candidate that was trained far less than the champion has to be shown better,
and what nothing can be said of is released as UNJUDGED.
"""

from statistics import NormalDist

from deploy.plural import counted
from pipeline.gates.evidence import Evidence
from pipeline.gates.verdict import Verdict, undecided
from simclr_core.champion import Champion
from simclr_core.evaluation_reports import CompareReport
from simclr_core.reports import PretrainReport, find_in

FAR_LESS = 0.5  # of the champion's steps: retraining with the same parameters on more images never takes fewer


def judge_views(evidence: Evidence, report: CompareReport) -> Verdict:
    """How many neighbors views of an image keep, candidate and champion paired by image; undecided without a champion.

    A loss of `gates.max_loss` points has to be ruled out with `gates.confidence`. If the candidate was trained for less
    than half the steps of the champion, or with `release_if: better`, a gain has to be shown.
    """
    limits, views = evidence.limits, report.label_free
    demand = _demand(evidence, report)
    if views is None:
        unjudged = report.unjudged or "UNJUDGED"
        return Verdict(False, f"{unjudged}; {demand}") if demand else undecided(unjudged, {}, blocks=False)
    margin = NormalDist().inv_cdf(limits.confidence) * views.standard_error
    low, high = views.difference - margin, views.difference + margin
    seen = "" if views.split == "test" else ", which both may have been trained on"
    parts = [
        f"no labels ({report.reason})",
        f"two views of an image have {views.candidate:.2f} % of their neighbors in common, {views.champion:.2f} % with "
        f"{report.champion}: {low:+.2f} to {high:+.2f} points with {100 * limits.confidence:g} % confidence, on "
        f"{counted(views.images, 'image')}{seen}",
    ]
    numbers = {"candidate": views.candidate, "champion": views.champion, "at_least": low, "at_most": high}
    if demand and not low > 0:
        return Verdict(False, "; ".join([*parts, demand]), numbers)
    if low > -limits.max_loss:
        return Verdict(True, "; ".join(parts), numbers)
    parts.append(f"a loss of {limits.max_loss:g} points is not ruled out")
    parts.append("train longer, label test images, or raise gates.max_loss")
    if high < 0:
        return Verdict(False, "; ".join(parts), numbers)
    return undecided("; ".join(parts), numbers, limits.undecided_stops)


def _demand(evidence: Evidence, report: CompareReport) -> str | None:
    """Why it is not enough to be no worse than the champion, and what to do; None if it is."""
    if report.champion is None:
        return None
    steps = _steps(evidence)
    if steps is not None and steps[0] < FAR_LESS * steps[1]:
        short = f"trained for {steps[0]:,} steps, {report.champion} for {steps[1]:,}, and not shown to be better"
        return f"{short}; train longer, or label test images"
    if evidence.limits.release_if == "better":
        return "not shown to be better; train longer, label test images, or set gates.release_if to not_worse"
    return None


def _steps(evidence: Evidence) -> tuple[int, int] | None:
    """Of the candidate and of the champion; None if they cannot be compared, as those of one that continued another."""
    candidate = evidence.report(PretrainReport)
    champion = find_in(evidence.report(Champion).reports, PretrainReport)
    if champion is None or candidate.init != "scratch":
        return None
    return candidate.steps, champion.steps
