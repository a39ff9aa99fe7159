"""What a released version is, read from its commit alone: numbers, lineage, and how it compares with another.

Nothing here depends on the present state of the workspace, so it can be read again at any time, on any machine.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field
from pathlib import PurePosixPath
from typing import Any, ClassVar

import yaml

from deploy.plural import align, counted
from pipeline.git import Git
from pipeline.release.registry import Rejection
from pipeline.release.versions import History, Version
from pipeline.reports import ImageCounts, ValidationReport
from pipeline.waiting import Open
from simclr_core.evaluation_reports import CompareReport, FinetuneReport, Gain, LinearEvalReport
from simclr_core.params import flatten
from simclr_core.reports import ExportReport, Report, Saved, find_each_in, find_in

ABSENT = "–"
GATE = re.compile(r"^Gate ([^:\n]+): (.+)$", re.MULTILINE)  # in the message of a released commit
RESULTS = ("reports/**", "dvc.lock", "params.yaml", "**/*.dvc")  # what differs between two versions besides the code


@dataclass(frozen=True)
class Facts:
    """One version: ``metrics`` are percentages of test images, numbers of images, and megabytes; by name.

    ``gates`` has what each gate said of it, empty for a release by an earlier version of this program; ``approved``
    by whom it was approved, when and why, if a person was asked.
    """

    artifact: str
    version: str
    commit: str
    branch: str
    bundle: str
    registered: str
    champion: str | None
    data: str | None
    metrics: dict[str, float]
    compare: CompareReport | None
    gates: dict[str, str] = field(default_factory=dict)
    approved: str | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"


@dataclass(frozen=True)
class _Images(Report):
    """The report of the validation, as far as ``reports`` keeps it."""

    path: ClassVar[str] = ValidationReport.path

    images: ImageCounts


def branch(bundle: str) -> str:
    """The branch that holds the commit of a candidate."""
    return f"runs/{bundle[:12]}"


def facts(git: Git, history: History, versions: Sequence[Version]) -> list[Facts]:
    """Everything that is known of each of these versions."""
    commits = [version.commit for version in versions]
    read = git.contents([*(f"{commit}:data/raw.dvc" for commit in commits), *commits])
    raw, messages = read[: len(commits)], read[len(commits) :]
    return [
        Facts(
            artifact=history.artifact,
            version=version.name,
            commit=version.commit,
            branch=branch(version.bundle),
            bundle=version.bundle,
            registered=version.registered.isoformat(timespec="seconds"),
            champion=history.before(version.name),
            data=_hash(tracked or b""),
            metrics=metrics(about),
            compare=find_in(about, CompareReport),
            gates=dict(GATE.findall((message or b"").decode())),
            approved=version.approved,
        )
        for version, tracked, about, message in zip(versions, raw, reports(git, commits), messages, strict=True)
    ]


def reports(git: Git, commits: Sequence[str]) -> list[Saved]:
    """What the reports/*.json of each commit say, by name; of the validation only the images, not every expectation."""
    paths = [[path for path in listed if path.endswith(".json")] for listed in git.listings(commits, "reports")]
    asked = [f"{commit}:{path}" for commit, listed in zip(commits, paths, strict=True) for path in listed]
    contents = iter(git.contents(asked))
    found: list[Saved] = []
    for listed in paths:
        about = {PurePosixPath(path).stem: json.loads(next(contents) or b"{}") for path in listed}
        if "validation" in about:
            about["validation"] = {"images": about["validation"].get("images", {})}
        found.append(about)
    return found


def metrics(reports: Saved) -> dict[str, float]:
    """The few numbers that an encoder is chosen by, from all that the stages report.

    Accuracies out of fold have names of another kind, so that no list compares them with those of test images.
    """
    validation, evaluation = find_in(reports, _Images), find_in(reports, LinearEvalReport)
    finetune, export = find_each_in(reports, FinetuneReport), find_in(reports, ExportReport)
    under = "out_of_fold/" if evaluation and evaluation.out_of_fold else ""
    several = evaluation.multi_label.scores if evaluation and evaluation.multi_label else {}
    linear = evaluation.simclr.linear_top1 if evaluation else {}
    found = {
        "images": validation.images.accepted if validation else None,
        f"{under}knn_top1": evaluation.simclr.knn_top1 if evaluation else None,
        **{f"{under}linear_top1/{one}": top1 for one, top1 in linear.items()},
        **{f"{under}{one}_mean_average_precision": of.mean_average_precision.value for one, of in several.items()},
        **{f"finetune_top1/{one.fraction}": one.top1 for one in finetune},
        "megabytes": export.megabytes if export else None,
    }
    return {name: value for name, value in found.items() if value is not None}


def card(version: Facts, model_card: str) -> str:
    """The model card of a version, with where it comes from, as Markdown."""
    rows = [
        ("version", f"{version.artifact} {version.version}"),
        ("registered", version.registered),
        ("bundle", version.bundle),
        ("commit", f"{version.commit} (branch {version.branch})"),
        ("raw images", f"{version.metrics.get('images', ABSENT)} accepted, DVC {version.data or ABSENT}"),
        ("champion before", version.champion or "none, this is the first"),
        *([("approved", version.approved)] if version.approved else []),
    ]
    lines = [f"# {version.artifact} {version.version}", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in rows]
    lines += ["", "## Gates", "", *(f"- {name}: {said}" for name, said in version.gates.items())]
    lines += [] if version.gates else ["Not recorded."]
    lines += ["", "## Compared with the champion before", "", comparison(version), "", "## Get it again", ""]
    lines += [f"    git checkout {version.commit}", "    dvc pull", ""]
    return "\n".join(lines) + (f"\n{model_card}" if model_card else "")


def comparison(version: Facts) -> str:
    """The candidate compared with the champion on the same test images, as a Markdown table."""
    compare = version.compare
    if compare and (unjudged := compare.unjudged):
        return f"{unjudged}."
    if compare and (views := compare.label_free):
        return (
            f"Without labels: two views of an image have {views.candidate:.2f} % of their neighbors in common, "
            f"{views.champion:.2f} % with {compare.champion}, on {counted(views.images, 'image')}."
        )
    if compare is None or compare.champion is None:
        return f"Not applicable: {(compare.reason if compare else None) or 'there was no champion to compare with'}."
    if compare.gains:
        return _gains(version.version, compare.champion, compare.gains)
    lines = [
        f"| top-1 % | {version.version} | {compare.champion} | only it is right | only the champion is |",
        "|---|---|---|---|---|",
    ]
    for name, pair in (("knn", compare.knn), ("probe", compare.probe)):
        lines.append(f"| {name} | " + " | ".join(map(_text, astuple(pair))) + " |")
    return "\n".join(lines)


def _gains(version: str, champion: str, gains: Mapping[str, Gain]) -> str:
    """Where images have several labels."""
    title = "mean average precision, %"
    lines = [f"| {title} | {version} | {champion} | difference | standard error |", "|---|---|---|---|---|"]
    for name, one in gains.items():
        lines.append(f"| {name} | " + " | ".join(map(_text, astuple(one))) + " |")
    return "\n".join(lines)


@dataclass(frozen=True)
class Listing:
    """Every version, the one that serves, the candidates that were refused, and those that wait for a person."""

    versions: tuple[Facts, ...]
    current: str | None
    serving: str | None
    rejected: tuple[Rejection, ...]
    waiting: Open

    def __str__(self) -> str:
        if not self.versions and not self.rejected and self.waiting == Open():
            return "nothing has been released yet; `simclr run` releases the first encoder that passes its gates"
        names = list(dict.fromkeys(name for version in self.versions for name in version.metrics))
        rows = [["", "version", "registered", *names, "bundle", "commit"]]
        for version in reversed(self.versions):
            mark = "*" if version.version == self.current else ""
            numbers = [_number(version.metrics.get(name)) for name in names]
            when = version.registered[:16].replace("T", " ")
            rows.append([mark, version.version, when, *numbers, version.bundle[:12], version.commit[:10]])
        lines = align(rows) if self.versions else []
        if self.serving != self.current:
            lines.append(
                f"the registry serves {self.serving or 'nothing'} although {self.current or 'nothing'} is released; "
                f"`simclr release promote {self.current}` fixes it"
            )
        lines += [f"rejected {one.candidate} at {one.recorded[:16]}: {one.gate}: {one.reason}" for one in self.rejected]
        lines += self.waiting.lines()
        if self.waiting.missed:
            missed = counted(self.waiting.missed, "candidate")
            lines.append(f"{missed} expired, or compared with what no longer serves: no person can approve them")
        return "\n".join(lines)

    def to_json(self) -> str:
        return json.dumps(asdict(self) | {"waiting": self.waiting.to_dict()}, indent=2, ensure_ascii=False)


@dataclass(frozen=True)
class Difference:
    """What changed from one version to the other: name → the value in each."""

    one: Facts
    other: Facts
    params: dict[str, tuple[Any, Any]]
    code: str

    def __str__(self) -> str:
        pair = (self.one, self.other)
        rows = [["", *(version.version for version in pair)]]
        names = dict.fromkeys([*self.one.metrics, *self.other.metrics])
        rows += [[name, *(_number(version.metrics.get(name)) for version in pair)] for name in names]
        rows.append(["raw images", *((version.data or ABSENT)[:12] for version in pair)])
        rows += [[name, *map(_text, values)] for name, values in self.params.items()]
        rows.append(["commit", *(version.commit[:10] for version in pair)])
        return "\n".join([*align(rows), f"code: {self.code or 'the same'}"])


def difference(git: Git, one: Facts, other: Facts) -> Difference:
    """Compare two versions."""
    before, after = (_params(git, version.commit) for version in (one, other))
    changed = {
        name: (before.get(name), after.get(name))
        for name in dict.fromkeys([*before, *after])
        if before.get(name) != after.get(name)
    }
    return Difference(one, other, changed, git.changes(one.commit, other.commit, RESULTS))


def _params(git: Git, commit: str) -> dict[str, Any]:
    document = yaml.safe_load(git.show(commit, "params.yaml") or "{}") or {}
    return dict(flatten(document))


def _hash(tracked: bytes) -> str | None:
    """Of what a file for DVC tracks."""
    document = yaml.safe_load(tracked) or {}
    outs = document.get("outs") or [{}]
    md5: str | None = outs[0].get("md5")
    return md5


def _text(value: Any) -> str:
    return ABSENT if value is None else str(value)


def _number(value: float | None) -> str:
    return ABSENT if value is None else f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"
