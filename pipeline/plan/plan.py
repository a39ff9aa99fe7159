"""Which stages the next run has to compute, on how many images, and what that costs: what ``simclr plan`` says."""

import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice

import psutil

from pipeline.costs import measured, record
from pipeline.costs.images import SAMPLED, sample
from pipeline.costs.model import REST, Cost, Measured, Work, stage_costs, total
from pipeline.costs.shortages import shortages
from pipeline.dvc.project import Project, Stage, find_unchanged, load
from pipeline.ingest.files.selection import Selection
from pipeline.ingest.found import News, count_news
from pipeline.ingest.raw import batches, next_name, read_bytes
from pipeline.params import Params, read
from pipeline.preflight.images import Images, ingested
from pipeline.preflight.minimums import too_few
from pipeline.proposal.choose import choose
from pipeline.proposal.collection import Collection, examine, share_of
from pipeline.recipes.recipe import is_auto
from pipeline.reports import ValidationReport
from pipeline.retraining import completed
from pipeline.workspace import Workspace
from simclr_core import reports
from simclr_core.champion import Champion

RAW_STAGE = "raw_images"
NOTHING = "nothing to do: all is as the last run left it"


@dataclass(frozen=True)
class Plan:
    """The cost of each stage by name, None for one that a run leaves as it is; ``notes`` are sentences, ``shortages``
    those that say what this machine lacks, ``warnings`` those that say what the numbers of images do not allow."""

    stages: dict[str, Cost | None]
    notes: tuple[str, ...] = ()
    shortages: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def costs(self) -> dict[str, Cost]:
        return {name: cost for name, cost in self.stages.items() if cost is not None}

    @property
    def total(self) -> Cost:
        return total(self.costs.values())


def make(workspace: Workspace) -> Plan:
    """Look at what there is to do, and measure what has not been measured for these parameters; some seconds.

    Raises:
        IngestError: there are no images, or a source cannot be listed.
        ParamsError: params.yaml has faults, or a few steps of training failed here.
        DvcError: dvc.yaml has a fault.
    """
    params, text = read(workspace), workspace.params.read_text(encoding="utf-8")
    sources = params.retraining.sources
    if is_auto(text):
        chosen = choose(workspace.root, sources, ingest=params.ingest)
        note = f"recipe auto: the first run chooses the parameters; this is the plan of {chosen.recipe}, chosen now"
        work = Work(chosen.params, chosen.images, chosen.images.total, released=False, measured=chosen.measured)
        return _plan(workspace, load(workspace.root), work, note)
    if completed.has_nothing_to_do(workspace, sources):
        stages = [stage.name for stage in load(workspace.root).stages]
        return Plan(dict.fromkeys((RAW_STAGE, *stages, REST)), (NOTHING,))
    first, found = not batches(workspace.raw), None
    news = News(0, 0) if first else count_news(workspace, sources)
    if news.images or first:
        found = examine(
            workspace.root,
            sources,
            Selection(params.ingest.include, params.ingest.exclude, params.prepare.channels is not None),
        )
    images = ingested(workspace)
    if found is not None:
        news = News(found.images, 0) if first else news
        images = with_new(images, found, params, news.images, next_name(batches(workspace.raw)))
    known = measured.read_measured(workspace.root, params)
    if known is None:
        contents = found.contents if found else sample(_ingested_contents(workspace))
        known = measured.measure(text, params, contents, images)
        measured.keep(workspace.root, params, known)
    return _of_workspace(workspace, params, known, images, news)


def foresee(workspace: Workspace, news: News) -> Plan | None:
    """The plan of a run that has ingested so much; None where that would need a measurement."""
    params = read(workspace)
    known = measured.read_measured(workspace.root, params)
    return None if known is None else _of_workspace(workspace, params, known, ingested(workspace), news)


def _of_workspace(workspace: Workspace, params: Params, known: Measured, images: Images, news: News) -> Plan:
    report, champion = reports.known(workspace.root, ValidationReport), reports.known(workspace.root, Champion)
    released = champion is not None and champion.version is not None
    project = load(workspace.root)
    unseen = max(0, images.total - (report.images.ingested if report else 0))
    left = frozenset[str]() if any(news) else leave(project, find_unchanged(workspace.root))
    return _plan(workspace, project, Work(params, images, unseen, released, known), str(news), left)


def _plan(workspace: Workspace, project: Project, work: Work, note: str, left: frozenset[str] = frozenset()) -> Plan:
    names = [stage.name for stage in project.stages]
    costs = correct(stage_costs(work, names), record.factors(workspace.root))
    unknown = [name for name in names if name not in costs]
    notes = [note, *([f"not estimated, being stages of your own: {', '.join(unknown)}"] if unknown else [])]
    plan = Plan({name: None if name in left else cost for name, cost in costs.items()}, tuple(notes))
    free, memory = shutil.disk_usage(workspace.root).free, psutil.virtual_memory().total
    few = too_few(work.images, work.params, work.released)
    return replace(plan, shortages=tuple(shortages(plan.total, free, memory)), warnings=tuple(few))


def correct(costs: Mapping[str, Cost], factors: Mapping[str, float]) -> dict[str, Cost]:
    """By how far each stage was off when it last ran here."""
    return {name: replace(cost, seconds=cost.seconds * factors.get(name, 1.0)) for name, cost in costs.items()}


def with_new(before: Images, found: Collection, params: Params, waiting: int, batch: str) -> Images:
    """The images of earlier batches, and those that wait for ``batch``: as the others in the sources are."""
    if params.ingest.class_folders:
        found = found.with_class_folders()
    if params.ingest.hold_out:
        found = found.with_held_out(params.ingest.hold_out)
    share, new = min(1.0, waiting / found.images), found.numbers
    train, test = (
        earlier + Counter(share_of(counts, share))
        for earlier, counts in ((before.train, new.train), (before.test, new.test))
    )
    return Images(train, test, before.batches + Counter({batch: round(share * found.training_images)}))


def leave(project: Project, unchanged: frozenset[str]) -> frozenset[str]:
    """Those of the unchanged stages that read nothing which another one will write again."""
    written: set[str] = set()
    left: set[str] = set()
    for stage in _in_order(project):
        if stage.name in unchanged and written.isdisjoint(project.upstream(stage)):
            left.add(stage.name)
        else:
            written |= {out.path for out in stage.data}
    return frozenset(left)


def _in_order(project: Project) -> Iterator[Stage]:
    waiting, done = list(project.stages), set(project.sources)
    while waiting:
        ready = [stage for stage in waiting if done.issuperset(project.upstream(stage))]
        yield from ready
        done |= {out.path for stage in ready for out in stage.data}
        waiting = [stage for stage in waiting if stage not in ready]


def _ingested_contents(workspace: Workspace) -> Iterator[bytes]:
    return (data for _, _, data in islice(read_bytes(workspace.raw), SAMPLED))
