"""``simclr status``: what is in the workspace, what a run would do, and how good the encoder is."""

from concurrent.futures import ThreadPoolExecutor

from deploy.failure import printable
from deploy.plural import counted, duration
from pipeline.costs import record
from pipeline.costs.comparison import TOTAL, comparison
from pipeline.costs.record import Record
from pipeline.dvc import client
from pipeline.dvc.project import find_never_run
from pipeline.errors import BusyError
from pipeline.gates.all_gates import verdicts
from pipeline.gates.verdict import Verdict
from pipeline.ingest.raw import batches, read_occurrences
from pipeline.ingest.unfinished import describe
from pipeline.maintenance import disk
from pipeline.maintenance.state import unkept
from pipeline.release.registry import open_registry
from pipeline.reports import ValidationReport
from pipeline.validation.contract import next_step
from pipeline.validation.expectations import NEAR_LABELS
from pipeline.workspace import Workspace, how_to_write, unwritable
from simclr_core import reports
from simclr_core.evaluation_reports import Accuracies, LinearEvalReport, MultiLabelResults
from simclr_core.reports import ExportReport

OUTCOMES = (
    "passed",
    "refused",
    "undecided, which stops the release",
    "undecided, only a warning",
    "not applicable",
)


def describe_workspace(workspace: Workspace) -> str:
    """Some lines for a person; nothing is changed."""
    raw = batches(workspace.raw)
    images = len({sha256 for batch in raw for sha256, seen in read_occurrences(batch).items() if seen})
    lines = [f"workspace  {workspace.root}", f"raw        {counted(images, 'image')} in {counted(len(raw), 'batch')}"]
    if not raw and workspace.raw.with_suffix(".dvc").exists():
        restore = "`dvc checkout data/raw.dvc`, or `dvc pull data/raw.dvc` if the cache does not have them"
        return "\n".join(
            [lines[0], "raw        data/raw is missing, only data/raw.dvc is here", f"next       {restore}"]
        )
    if not raw:
        return "\n".join([*lines, "next       put images into inbox/unlabeled, then `simclr run`"])
    with ThreadPoolExecutor(1) as pool:  # DVC runs in a separate process, and takes longer than all else
        asked = pool.submit(describe_stages, workspace)
        used = disk.usage(workspace)
        lines += asked.result()
    lines += describe_contradictions(workspace)
    evaluation = reports.known(workspace.root, LinearEvalReport)
    export = reports.known(workspace.root, ExportReport)
    if evaluation and evaluation.simclr.knn_top1 is not None:
        lines.append(f"encoder    {describe_accuracy(evaluation.simclr, evaluation.asked)}")
        lines += [f"unadapted  {describe_accuracy(evaluation.start, evaluation.asked)}"] if evaluation.start else []
    if evaluation and evaluation.multi_label:
        lines.append(f"encoder    {describe_precision(evaluation.multi_label, evaluation.asked)}")
    if export:
        lines.append(f"bundle     models/bundle, {export.bundle[:12]}")
    lines += describe_gates(workspace)
    registry = open_registry(workspace)
    serving = registry.current()
    if serving:
        lines.append(f"released   {serving} serves from {registry.root}; see `simclr release list`")
    lines += [f"rejected   {one.candidate} by {one.gate}: {one.reason}" for one in registry.rejections()[-1:]]
    missing = unkept(workspace)
    page = workspace.reports / "run.html"
    lines += [f"report     {page.relative_to(workspace.root)}, of the last run"] if page.is_file() else []
    lines += [f"not sent   {missing}"] if missing else []
    lines += describe_expectation(record.latest(workspace.root))
    parts = [f"{name} {disk.size(count)}" for name, count in used.items()]
    shared = "; raw is linked into the cache and takes no more room" if disk.raw_is_linked(workspace) else ""
    lines.append(f"disk       {', '.join(parts)}{shared}")
    return "\n".join(lines)


def describe_expectation(latest: Record | None) -> list[str]:
    """What the latest run took, and what it was expected to take."""
    if TOTAL not in (compared := comparison(latest)):
        return []
    expected, actual = compared[TOTAL]
    took = f"{duration(actual.seconds)}, expected {duration(expected.seconds)}"
    return [f"latest run {took}; {disk.size(actual.disk_bytes)} of disk, expected {disk.size(expected.disk_bytes)}"]


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


def describe_gates(workspace: Workspace) -> list[str]:
    """What the gates say of the reports there are; nothing is measured for them."""
    found = {name: one for name, one in verdicts(workspace).items() if one.outcome != "not judged"}
    names = {outcome: [name for name in found if _with_effect(found[name]) == outcome] for outcome in OUTCOMES}
    said = [f"{outcome}: {', '.join(names[outcome])}" for outcome in OUTCOMES if names[outcome]]
    lines = [f"gates      {'; '.join(said)}"] if said else []
    return lines + [f"{name}: {found[name].description}" for outcome in OUTCOMES[1:4] for name in names[outcome]]


def _with_effect(verdict: Verdict) -> str:
    """The outcome, and where it is undecided whether that stops the release."""
    if not verdict.undecided:
        return verdict.outcome
    return f"undecided, {'which stops the release' if verdict.severity == 'error' else 'only a warning'}"


def describe_contradictions(workspace: Workspace) -> list[str]:
    """Which near copies have different labels, if validation has warned of it."""
    report = reports.known(workspace.root, ValidationReport)
    warned = report and any(one.name == NEAR_LABELS and not one.success for one in report.expectations)
    if not warned or not workspace.manifest.is_dir():
        return []
    from pipeline.validation import manifest
    from pipeline.validation.report.side_by_side import label_conflicts

    groups = label_conflicts(
        manifest.read(workspace.manifest, ["path", "split", "label", "verdict", "warnings", "near_group"])
    )
    if not groups:
        return []
    names = [f"{printable(file['path'])} ({printable(file['label'])})" for file in (groups[0][0], groups[0][-1])]
    count = sum(map(len, groups))
    found = f"{count:,} near copies have different labels, such as {' and '.join(names)}"
    return [f"labels     {found}; see reports/validation.html"]


def describe_stages(workspace: Workspace) -> list[str]:
    """What a run would do; while something is at work, only what: DVC answers no question then."""
    if folders := unwritable(workspace):  # without a lock, DVC answers no question
        return [f"stages     not known: {folders[0]} cannot be written; {how_to_write(folders[0])}"]
    if holder := client.holder(workspace.root):
        return [f"running    {holder}"]
    try:
        changed = client.changed_stages(workspace.root)
    except BusyError as error:
        return [f"running    {error}"]
    report = reports.known(workspace.root, ValidationReport)
    if changed and "validate" not in changed and report and (step := next_step(report)):
        return [f"waiting    for data_contract: {', '.join(changed)}", f"next       {step}"]
    never = find_never_run(workspace.root, changed)
    lines = [
        f"changed    {name}: {'not run yet' if name in never else '; '.join(reasons)}"
        for name, reasons in changed.items()
    ]
    interrupted = describe(workspace, changed)
    lines += [f"unfinished a run was interrupted {interrupted.progress}"] if interrupted else []
    return [*lines, "next       `simclr run`" if lines else "stages     all up to date"]
