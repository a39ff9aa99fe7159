"""``simclr status``: what is in the workspace, what a run would do, and how good the encoder is."""

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace

from deploy.failure import printable
from deploy.plural import counted, duration
from pipeline import waiting
from pipeline.costs import record
from pipeline.costs.comparison import TOTAL, comparison
from pipeline.costs.model import Cost
from pipeline.costs.record import Record
from pipeline.dvc import client
from pipeline.dvc.project import find_never_run
from pipeline.errors import BusyError
from pipeline.gates.all_gates import verdicts
from pipeline.gates.verdict import Verdict
from pipeline.ingest.raw import batches, read_occurrences
from pipeline.ingest.unfinished import describe
from pipeline.maintenance import disk
from pipeline.maintenance.state import Unkept, unkept
from pipeline.release.registry import Rejection, open_registry
from pipeline.reports import ValidationReport
from pipeline.validation.contract import next_step
from pipeline.validation.expectations import NEAR_LABELS
from pipeline.waiting import Open
from pipeline.workspace import Workspace, how_to_write, unwritable
from simclr_core import reports
from simclr_core.compute.record import Ran, all_ran
from simclr_core.evaluation_reports import Accuracies, LinearEvalReport, MultiLabelResults
from simclr_core.reports import ExportReport

OUTCOMES = (
    "passed",
    "refused",
    "undecided, which stops the release",
    "undecided, only a warning",
    "not applicable",
)
MISSING = "data/raw is missing"


@dataclass(frozen=True)
class Stages:
    """What a run would do.

    ``changed`` are the stages that it would bring up to date, with DVC's reasons. Why DVC was not asked is in
    ``running`` or ``unknown``. ``next`` is what a person does now.
    """

    changed: dict[str, list[str]] = field(default_factory=dict)
    never_run: list[str] = field(default_factory=list)
    running: str | None = None
    unknown: str | None = None
    waits_for_contract: bool = False
    unfinished: str | None = None
    next: str | None = None

    def lines(self) -> list[str]:
        if self.unknown or self.running:
            return [f"stages     not known: {self.unknown}" if self.unknown else f"running    {self.running}"]
        if self.waits_for_contract:
            return [f"waiting    for data_contract: {', '.join(self.changed)}", f"next       {self.next}"]
        lines = [
            f"changed    {name}: {'not run yet' if name in self.never_run else '; '.join(reasons)}"
            for name, reasons in self.changed.items()
        ]
        lines += [f"unfinished a run was interrupted {self.unfinished}"] if self.unfinished else []
        return [*lines, f"next       {self.next}" if self.next else "stages     all up to date"]


@dataclass(frozen=True)
class Expectation:
    """What the latest run took, and what it was expected to take."""

    actual: Cost
    expected: Cost

    def __str__(self) -> str:
        took = f"{duration(self.actual.seconds)}, expected {duration(self.expected.seconds)}"
        disk_used = f"{disk.size(self.actual.disk_bytes)} of disk, expected {disk.size(self.expected.disk_bytes)}"
        return f"{took}; {disk_used}"


@dataclass(frozen=True)
class Status:
    """What is in the workspace. ``disk`` is in bytes; what was never computed, or cannot be read, is None."""

    workspace: str
    images: int
    batches: int
    stages: Stages
    labels: str | None = None  # a contradiction among near copies
    evaluation: LinearEvalReport | None = None
    bundle: str | None = None
    gates: dict[str, Verdict] = field(default_factory=dict)
    registry: str | None = None
    released: str | None = None
    rejected: Rejection | None = None
    waiting: Open = field(default_factory=Open)
    report: str | None = None
    not_sent: Unkept | None = None
    latest_run: Expectation | None = None
    ran: dict[str, Ran] = field(default_factory=dict)  # where stages ran last
    disk: dict[str, int] = field(default_factory=dict)
    raw_is_linked: bool = False

    def __str__(self) -> str:
        """Some lines for a person."""
        if self.stages.unknown == MISSING:
            raw = "raw        data/raw is missing, only data/raw.dvc is here"
            return "\n".join([f"workspace  {self.workspace}", raw, f"next       {self.stages.next}"])
        raw = f"raw        {counted(self.images, 'image')} in {counted(self.batches, 'batch')}"
        lines = [f"workspace  {self.workspace}", raw]
        if not self.batches:
            return "\n".join([*lines, f"next       {self.stages.next}"])
        lines += self.stages.lines()
        lines += [f"labels     {self.labels}"] if self.labels else []
        lines += describe_evaluation(self.evaluation)
        lines += [f"bundle     models/bundle, {self.bundle[:12]}"] if self.bundle else []
        lines += describe_gates(self.gates)
        if self.released:
            lines.append(f"released   {self.released} serves from {self.registry}; see `simclr release list`")
        if self.rejected:
            lines.append(f"rejected   {self.rejected.candidate} by {self.rejected.gate}: {self.rejected.reason}")
        lines += self.waiting.lines()
        lines += [f"report     {self.report}, of the last run"] if self.report else []
        lines += [f"not sent   {self.not_sent}"] if self.not_sent else []
        lines += [f"latest run {self.latest_run}"] if self.latest_run else []
        several = {name: one for name, one in self.ran.items() if one.workers > 1 or one.gpus}
        lines += [f"ran        {name} on {one}" for name, one in several.items()]
        parts = [f"{name} {disk.size(count)}" for name, count in self.disk.items()]
        shared = "; raw is linked into the cache and takes no more room" if self.raw_is_linked else ""
        return "\n".join([*lines, f"disk       {', '.join(parts)}{shared}"])

    def to_json(self) -> str:
        """For a program; of the evaluation what the lines say."""
        known = asdict(replace(self, evaluation=None, gates={}))
        known["gates"] = {name: {"outcome": one.outcome, "reason": one.description} for name, one in self.gates.items()}
        known["waiting"] = self.waiting.to_dict()
        if self.evaluation:
            whole = asdict(self.evaluation)
            known["evaluation"] = {name: whole[name] for name in ("simclr", "start", "multi_label")}
            known["evaluation"]["asked"] = self.evaluation.asked
        return json.dumps(known, indent=2, ensure_ascii=False)


def look(workspace: Workspace) -> Status:
    """Everything that ``simclr status`` says; nothing is changed, and nothing measured."""
    raw = batches(workspace.raw)
    images = len({sha256 for batch in raw for sha256, seen in read_occurrences(batch).items() if seen})
    root = str(workspace.root)
    if not raw and workspace.raw.with_suffix(".dvc").exists():
        restore = "`dvc checkout data/raw.dvc`, or `dvc pull data/raw.dvc` if the cache does not have them"
        return Status(root, 0, 0, Stages(unknown=MISSING, next=restore))
    if not raw:
        return Status(root, 0, 0, Stages(next="put images into inbox/unlabeled, then `simclr run`"))
    with ThreadPoolExecutor(1) as pool:  # DVC runs in a separate process, and takes longer than all else
        asked = pool.submit(look_at_stages, workspace)
        used = disk.usage(workspace)
        stages = asked.result()
    export, registry = reports.known(workspace.root, ExportReport), open_registry(workspace)
    page = workspace.reports / "run.html"
    return Status(
        workspace=root,
        images=images,
        batches=len(raw),
        stages=stages,
        labels=find_contradiction(workspace),
        evaluation=reports.known(workspace.root, LinearEvalReport),
        bundle=export.bundle if export else None,
        gates=verdicts(workspace),
        registry=str(registry.root),
        released=registry.current(),
        rejected=next(reversed(registry.rejections()), None),
        waiting=waiting.look(registry.root, registry.current()),
        report=str(page.relative_to(workspace.root)) if page.is_file() else None,
        not_sent=unkept(workspace),
        latest_run=compare_latest_run(record.latest(workspace.root)),
        ran=all_ran(workspace.root),
        disk=used,
        raw_is_linked=disk.raw_is_linked(workspace),
    )


def compare_latest_run(latest: Record | None) -> Expectation | None:
    """None where nothing can be compared."""
    compared = comparison(latest)
    if TOTAL not in compared:
        return None
    expected, actual = compared[TOTAL]
    return Expectation(actual, expected)


def describe_evaluation(found: LinearEvalReport | None) -> list[str]:
    if found is None:
        return []
    lines = []
    if found.simclr.knn_top1 is not None:
        lines.append(f"encoder    {describe_accuracy(found.simclr, found.asked)}")
        lines += [f"unadapted  {describe_accuracy(found.start, found.asked)}"] if found.start else []
    if found.multi_label:
        lines.append(f"encoder    {describe_precision(found.multi_label, found.asked)}")
    return lines


def describe_accuracy(found: Accuracies, asked: str) -> str:
    """The top-1 accuracies of the frozen features, those of the linear probe by its share of the labels; ``asked`` says
    which images they are of."""
    linear = [
        f"{100 * float(one):g} % of the labels: {top1:.1f} %"
        for one, top1 in found.linear_top1.items()
        if top1 is not None
    ]
    probe = f"; linear probe with {', '.join(linear)}" if linear else ""
    return f"top-1: kNN {found.knn_top1:.1f} %{probe}; of {asked}"


def describe_precision(found: MultiLabelResults, asked: str) -> str:
    """Where an image may have several labels."""
    reached = [
        f"{name} {one.mean_average_precision.value:.1f} %"
        for name, one in (("kNN", found.scores["knn"]), ("linear probe", found.scores["probe"]))
    ]
    return f"mean average precision: {', '.join(reached)}, by chance {found.prevalence:.1f} %; of {asked}"


def describe_gates(verdicts: Mapping[str, Verdict]) -> list[str]:
    """What the gates say of the reports there are; nothing is measured for them."""
    found = {name: one for name, one in verdicts.items() if one.outcome != "not judged"}
    names = {outcome: [name for name in found if _with_effect(found[name]) == outcome] for outcome in OUTCOMES}
    said = [f"{outcome}: {', '.join(names[outcome])}" for outcome in OUTCOMES if names[outcome]]
    lines = [f"gates      {'; '.join(said)}"] if said else []
    return lines + [f"{name}: {found[name].description}" for outcome in OUTCOMES[1:4] for name in names[outcome]]


def _with_effect(verdict: Verdict) -> str:
    """The outcome, and where it is undecided whether that stops the release."""
    if not verdict.undecided:
        return verdict.outcome
    return f"undecided, {'which stops the release' if verdict.severity == 'error' else 'only a warning'}"


def find_contradiction(workspace: Workspace) -> str | None:
    """Which near copies have different labels, if validation has warned of it."""
    report = reports.known(workspace.root, ValidationReport)
    warned = report and any(one.name == NEAR_LABELS and not one.success for one in report.expectations)
    if not warned or not workspace.manifest.is_dir():
        return None
    from pipeline.validation import manifest
    from pipeline.validation.report.side_by_side import label_conflicts

    groups = label_conflicts(
        manifest.read(workspace.manifest, ["path", "split", "label", "verdict", "warnings", "near_group"])
    )
    if not groups:
        return None
    names = [f"{printable(file['path'])} ({printable(file['label'])})" for file in (groups[0][0], groups[0][-1])]
    count = sum(map(len, groups))
    return f"{count:,} near copies have different labels, such as {' and '.join(names)}; see reports/validation.html"


def look_at_stages(workspace: Workspace) -> Stages:
    """While something is at work, only what: DVC answers no question then."""
    if folders := unwritable(workspace):  # without a lock, DVC answers no question
        return Stages(unknown=f"{folders[0]} cannot be written; {how_to_write(folders[0])}")
    if holder := client.holder(workspace.root):
        return Stages(running=holder)
    try:
        changed = client.changed_stages(workspace.root)
    except BusyError as error:
        return Stages(running=str(error))
    report = reports.known(workspace.root, ValidationReport)
    if changed and "validate" not in changed and report and (step := next_step(report)):
        return Stages(changed, waits_for_contract=True, next=step)
    interrupted = describe(workspace, changed)
    return Stages(
        changed,
        never_run=sorted(find_never_run(workspace.root, changed)),
        unfinished=interrupted.progress if interrupted else None,
        next="`simclr run`" if changed or interrupted else None,
    )
