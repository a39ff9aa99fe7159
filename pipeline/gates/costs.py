"""What it costs to serve the candidate: milliseconds and megabytes, in absolute terms and compared with the champion.

The latency is a fact of this machine, measured here when it is not known of these very bundles.
"""

import subprocess
import sys

from deploy.artifact import identity
from deploy.errors import ArtifactError
from deploy.failure import killed_by
from pipeline.errors import StageFailedError
from pipeline.gates.evidence import Evidence, needed
from pipeline.gates.verdict import Verdict, not_applicable, not_judged
from pipeline.workspace import Workspace
from simclr_core import reports
from simclr_core.evaluation_reports import CompareReport
from simclr_core.reports import LatencyReport

RAISE = {
    "ms": "gates.max_latency_milliseconds or gates.max_latency_ratio",
    "MB": "gates.max_megabytes or gates.max_size_ratio",
}
LATENCY_SECONDS = 600.0  # for some 200 inferences


def latency_budget(evidence: Evidence) -> Verdict:
    """One image takes no longer than allowed, in absolute terms and compared with the champion, measured in turns here.

    A measurement that does not pass is taken again, once: the machine may have been busy.
    """
    limits = evidence.limits

    def judged(timing: LatencyReport) -> Verdict:
        champion = needed(timing.champion_p50_ms, timing, "champion_p50_ms") if timing.champion else None
        what = f"one image on one thread, median of {timing.rounds}"
        return _budget(timing.p50_ms, champion, limits.max_latency_milliseconds, limits.max_latency_ratio, "ms", what)

    known = _known_latency(evidence)
    if not evidence.measures:
        return judged(known) if known else not_judged("not measured yet on this machine; `simclr run` measures it")
    first = judged(known or _measured_latency(evidence))
    return first if first.passed else judged(_measured_latency(evidence))


def size_budget(evidence: Evidence) -> Verdict:
    """The ONNX file stays within its limits, in absolute terms and compared with the champion's."""
    limits, report = evidence.limits, evidence.report(CompareReport)
    megabytes = report.megabytes
    champion = needed(megabytes.champion, report, "megabytes.champion") if report.champion else None
    return _budget(megabytes.candidate, champion, limits.max_megabytes, limits.max_size_ratio, "MB", "ONNX file")


def _budget(given: float, champion: float | None, most: float | None, ratio: float, unit: str, what: str) -> Verdict:
    """Hold a cost against what it may be, and against the champion's; every limit that applies is named."""
    passed, parts, numbers = True, [f"{given:.4g} {unit} ({what})"], {unit: given}
    if most is not None:
        passed = given <= most
        parts.append(f"at most {most:g} {unit} allowed")
    if champion is not None:
        passed = passed and given <= ratio * champion
        parts.append(f"the champion's {champion:.4g} {unit}, {100 * ratio:g} % of that allowed")
        numbers[f"champion_{unit}"] = champion
    if len(parts) == 1:
        return not_applicable("; ".join([*parts, "no champion and no limit to compare it with"]), numbers)
    if not passed:
        parts.append(f"train a smaller encoder, or raise {RAISE[unit]}")
    return Verdict(passed=passed, description="; ".join(parts), numbers=numbers)


def _known_latency(evidence: Evidence) -> LatencyReport | None:
    """What was measured on this machine, if it was of these two bundles."""
    timing = reports.known(evidence.workspace.root, LatencyReport)
    try:
        return timing if timing and (timing.bundle, timing.champion) == _bundles(evidence.workspace) else None
    except ArtifactError:  # measuring will say what is wrong with it
        return None


def _measured_latency(evidence: Evidence) -> LatencyReport:
    """Measure now, in a separate process: nothing here may load onnxruntime.

    Raises:
        StageFailedError: it could not be measured.
    """
    command = [sys.executable, "-P", "-m", "simclr_core", "latency"]
    try:
        done = subprocess.run(
            command,
            cwd=evidence.workspace.root,
            capture_output=True,
            text=True,
            check=False,
            timeout=LATENCY_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise StageFailedError(
            f"latency: not measured within {LATENCY_SECONDS:g} s; `simclr run` measures it again, best on an idle one"
        ) from None
    if done.returncode != 0:
        said = done.stderr.strip().rpartition("\n")[2].removeprefix("error: ") or f"exit code {done.returncode}"
        if killed := killed_by(done.returncode):
            said = f"its process {killed}"
        raise StageFailedError(f"latency: could not be measured: {said}; `simclr run` measures it again")
    return evidence.report(LatencyReport)


def _bundles(workspace: Workspace) -> tuple[str, str | None]:
    """The ids of the candidate's and the champion's bundle."""
    models = workspace.root / "models"
    champion = models / "champion" / "bundle"
    return identity(models / "bundle"), identity(champion) if champion.exists() else None
