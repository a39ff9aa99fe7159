"""All that the page of a run tells, read from the workspace; what was never run, or cannot be read, is None."""

import csv
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from deploy.artifact import identity
from deploy.errors import DeployError
from pipeline import waiting
from pipeline import workspace as workspaces
from pipeline.costs import record
from pipeline.costs.record import Record
from pipeline.dvc.project import stage_names
from pipeline.gates.all_gates import verdicts
from pipeline.gates.verdict import Verdict
from pipeline.maintenance import disk
from pipeline.params import Params, read
from pipeline.release.registry import open_registry
from pipeline.reports import EmbeddingDriftReport, ValidationReport
from pipeline.waiting import Candidate
from pipeline.workspace import Workspace
from simclr_core import reports
from simclr_core.data.groups import Groups
from simclr_core.data.shards import ShardedImages, read_card
from simclr_core.errors import DatasetError
from simclr_core.evaluation_reports import FinetuneReport, LinearEvalReport
from simclr_core.reporter import read_timing
from simclr_core.reports import ExportReport, PretrainReport

COMMENTED = re.compile(r"^( *)([\w-]+):(.*?)(?: +# (.*))?$")


@dataclass(frozen=True)
class Reason:
    """A value of params.yaml that was chosen for these images, and why."""

    key: str
    value: str
    why: str


@dataclass(frozen=True)
class Mistake:
    """An image that the probe takes for another class: a row of ``scores.predictions``, as far as it is shown."""

    path: str | None
    sha256: str
    label: str
    probe: str
    probe_answer: float


@dataclass(frozen=True)
class RunFacts:
    """``curves`` has a row for each epoch, ``mistakes`` images that the probe takes for another class, the surest
    first; ``timings`` and ``disk`` are by stage and by part, in seconds and other units of the stages, and in bytes."""

    params: Params
    recipe: tuple[str, ...]
    reasons: tuple[Reason, ...]
    validation: ValidationReport | None
    drift: EmbeddingDriftReport | None
    pretrain: PretrainReport | None
    curves: tuple[dict[str, float], ...]
    evaluation: LinearEvalReport | None
    finetune: tuple[FinetuneReport, ...]
    export: ExportReport | None
    gates: dict[str, Verdict]
    mistakes: tuple[Mistake, ...]
    serving: str | None
    refused: str | None
    timings: dict[str, dict[str, float]]
    disk: dict[str, int]
    costs: Record | None
    groups: str | None = None
    waits: tuple[Candidate, ...] = ()  # for a person, the longest waiting first


def collect(workspace: Workspace) -> RunFacts:
    """Read everything; nothing is measured."""
    root, registry = workspace.root, open_registry(workspace)
    text = workspace.params.read_text(encoding="utf-8")
    return RunFacts(
        params=read(workspace),
        recipe=tuple(_paragraphs(line.removeprefix("# ") for line in text.splitlines() if line.startswith("# "))),
        reasons=tuple(reasons(text, workspaces.template("params.yaml").read_text(encoding="utf-8"))),
        validation=reports.known(root, ValidationReport),
        drift=reports.known(root, EmbeddingDriftReport),
        pretrain=reports.known(root, PretrainReport),
        curves=tuple(_curves(workspace)),
        evaluation=reports.known(root, LinearEvalReport),
        finetune=tuple(reports.known_each(root, FinetuneReport)),
        export=reports.known(root, ExportReport),
        gates=verdicts(workspace),
        mistakes=tuple(_mistakes(workspace)),
        serving=registry.current(),
        refused=_refused(workspace),
        timings={stage: numbers for stage, numbers in read_timings(root).items() if numbers},
        disk=disk.usage(workspace),
        costs=record.latest(root),
        groups=_groups(workspace),
        waits=waiting.look(registry.root, registry.current()).candidates,
    )


def read_timings(root: Path) -> dict[str, dict[str, float]]:
    """By stage, in the order of dvc.yaml; one of a matrix has the name of its report, and one that never ran nothing.

    Raises:
        DvcError: dvc.yaml has a fault.
    """
    names = (name.replace("@", "-") for name in stage_names(root))
    return {name: read_timing(name, root) for name in names}


def _paragraphs(lines: Iterable[str]) -> Iterator[str]:
    """The first line is a title; of the others, those of one sentence are a paragraph, however it is wrapped."""
    paragraph: list[str] = []
    for number, line in enumerate(lines):
        paragraph.append(line)
        if number == 0 or line.endswith("."):
            yield " ".join(paragraph)
            paragraph = []
    if paragraph:
        yield " ".join(paragraph)


def reasons(params: str, template: str) -> list[Reason]:
    """The values whose comment is not what every params.yaml says of them: `simclr init --from` writes why it chose."""
    usual = {comment for *_, comment in _commented(template)}
    return [Reason(*one) for one in _commented(params) if one[2] not in usual]


def _commented(text: str) -> list[tuple[str, str, str]]:
    """Key, value and comment of each line that has all three; the key with the names of the blocks around it."""
    found, path = [], list[tuple[int, str]]()
    for line in text.splitlines():
        if match := COMMENTED.match(line):
            indent, name, value, comment = len(match[1]), match[2], match[3].strip(), match[4]
            path = [*((depth, parent) for depth, parent in path if depth < indent), (indent, name)]
            if value and comment:
                found.append((".".join(part for _, part in path), value, comment))
    return found


def _groups(workspace: Workspace) -> str | None:
    """How many training images are of how many groups; None: there are no groups."""
    with suppress(DatasetError):
        numbers = ShardedImages(workspace.prepared / "train").groups
        return None if numbers is None else str(Groups(numbers))
    return None


def _curves(workspace: Workspace) -> list[dict[str, float]]:
    """The numbers of each epoch by name, without those that were not measured."""
    try:
        with (workspace.reports / "pretrain.csv").open(encoding="utf-8", newline="") as file:
            return [{name: float(cell) for name, cell in row.items() if cell} for row in csv.DictReader(file)]
    except (OSError, ValueError, TypeError):
        return []


def _mistakes(workspace: Workspace) -> list[Mistake]:
    import pyarrow.parquet as pq  # here, because a code location has to load quickly

    try:
        table = pq.read_table(workspace.reports / "predictions.parquet")
        if "labels" in table.column_names:
            classes = read_card(workspace.root / "data" / "prepared").classes
            found = [_of_several(row, classes) for row in table.to_pylist()]
        else:
            found = [Mistake(**row) for row in table.select([one.name for one in fields(Mistake)]).to_pylist()]
    except (OSError, ValueError, KeyError, DatasetError):  # not there, or not a table
        return []
    return sorted((one for one in found if one.probe != one.label), key=lambda one: (-one.probe_answer, one.sha256))


def _of_several(row: Mapping[str, Any], classes: Sequence[str]) -> Mistake:
    """An image that may have several labels: ``probe_answer`` is how sure the probe is of its surest wrong answer."""
    certainties = [
        max(likely, 1 - likely)
        for name, likely in zip(classes, row["probe_scores"], strict=True)
        if (name in row["labels"]) != (name in row["probe"])
    ]
    said, taken = (", ".join(row[name]) or "none of the classes" for name in ("labels", "probe"))
    return Mistake(row["path"], row["sha256"], said, taken, max(certainties, default=0.0))


def _refused(workspace: Workspace) -> str | None:
    """Which gate refused the present candidate, and why, if one did."""
    with suppress(DeployError, OSError):
        candidate = identity(workspace.root / "models" / "pretrained")[:12]
        said = [one for one in open_registry(workspace).rejections() if one.candidate == candidate]
        return f"{said[-1].gate}: {said[-1].reason}" if said else None
    return None
