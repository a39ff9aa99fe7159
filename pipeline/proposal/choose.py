"""Look at images and at this machine, and choose the parameters: for a new workspace, or at the first run of one."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from deploy.artifact import write_atomically
from pipeline.config import IngestConfig
from pipeline.costs.measured import keep, measure
from pipeline.costs.model import Measured, Work, stage_costs, total
from pipeline.costs.shortages import shortages
from pipeline.dvc.project import GRAPH, load, stage_names
from pipeline.ingest.files.selection import ALL, Selection
from pipeline.params import Params, read
from pipeline.preflight.images import Images
from pipeline.preflight.minimums import too_few
from pipeline.proposal import budget
from pipeline.proposal.collection import examine
from pipeline.proposal.judging import Judging
from pipeline.proposal.machine import GIGABYTE, read_machine
from pipeline.proposal.propose import VALIDATE, Choice, propose
from pipeline.proposal.render import describe, params_text
from pipeline.proposal.training import Training, Trial
from pipeline.recipes.recipe import is_auto, overlay, params_of
from pipeline.workspace import Workspace, template


@dataclass(frozen=True)
class Chosen:
    """``text`` is that of params.yaml, ``table`` the lines that say what was found, what was chosen and why; the others
    are what it was chosen by."""

    recipe: str
    text: str
    table: list[str]
    params: Params
    images: Images
    measured: Measured


def choose(root: Path, sources: Sequence[str], time: str | None = None, ingest: IngestConfig | None = None) -> Chosen:
    """Choose the parameters for the images in ``sources`` on this machine.

    Args:
        root: where the workspace is, or will be.
        time: of the first run, as in ``2h``; None: 20 minutes on processors, two hours on GPUs.
        ingest: which files of the sources are taken; None: all.

    Raises:
        IngestError: a source cannot be read or holds no image.
        ParamsError: ``time`` is not one, or a few steps of training failed here.
        DvcError: dvc.yaml of the workspace has a fault.
    """
    machine = read_machine(root)
    seconds = budget.parse(time or (budget.WITH_GPU if machine.gpu_gigabytes else budget.WITHOUT_GPU))
    base = template("params.yaml").read_text(encoding="utf-8")
    given = [Choice("retraining.sources", [*dict.fromkeys(["inbox", *sources])], "where new images are looked for")]
    selection = Selection(ingest.include, ingest.exclude) if ingest else ALL
    patterns = {"ingest.include": ingest.include, "ingest.exclude": ingest.exclude} if ingest else {}
    given += [Choice(key, [*value], "as it was before the images were looked at") for key, value in patterns.items()]
    collection = examine(root, sources, selection)
    stages = _stages(root)
    tried = overlay(base, f"prepare:\n  channels: {collection.channels}\n") if collection.channels else base
    proposal = propose(collection, machine, seconds, partial(attempt, tried, collection.contents, stages))
    text = params_text(base, proposal, collection, machine, given)
    params, measured = _read(text), proposal.trial.measured
    needed = total(stage_costs(_work(params, proposal.images, measured), stages).values())
    lacking = shortages(needed, machine.free_disk_gigabytes * GIGABYTE, machine.memory_gigabytes * GIGABYTE)
    notes = [*too_few(proposal.images, params, released=False), *lacking]
    shown = [
        *describe(proposal, collection, machine, notes),
        "",
        f"a first run takes about {needed}",
    ]
    return Chosen(proposal.recipe, text, shown, params, proposal.images, measured)


def attempt(base: str, contents: Sequence[bytes], stages: Sequence[str], training: Training, images: Images) -> Trial:
    """Measure a training; ``base`` is the text of the template's params.yaml, ``contents`` are some of the files, and
    ``stages`` the names of those that a run has."""
    encoder = f"{{name: {training.encoder}, width: {training.width}, stem: {training.stem}}}"
    changes = f"prepare:\n  short_side: null\npretrain:\n  encoder: {encoder}\n  image_size: {training.side}\n"
    changes += f"  resize: null\n  batch_size: {training.batch}\nfinetune:\n  batch_size: {training.tuning_batch}\n"
    text = overlay(params_of(training.recipe, base), changes)
    params = _read(text)
    measured = measure(text, params, contents, images)

    def seconds(epochs: int, judging: Judging) -> float:
        pretrain = params.pretrain.model_copy(update={"epochs": epochs})
        tuning = {"epochs": judging.tuning_epochs, "seeds": judging.seeds}
        finetune = params.finetune.model_copy(update=tuning)
        draws = {"draws": judging.draws, "labels_per_class": judging.labels_per_class}
        linear_eval = params.linear_eval.model_copy(update=draws)
        changed = replace(params, pretrain=pretrain, finetune=finetune, linear_eval=linear_eval)
        return total(stage_costs(_work(changed, images, measured), stages).values()).seconds

    return Trial(measured, seconds)


def _stages(root: Path) -> list[str]:
    """Those of the workspace; before there is one that trains, those that it will begin with."""
    names = [stage.name for stage in load(root).stages] if (root / GRAPH).exists() else []
    return names if "pretrain" in names else stage_names(template(GRAPH).parent)


def _work(params: Params, images: Images, measured: Measured) -> Work:
    """Of the first run."""
    return Work(params, images, images.total, released=False, measured=measured)


def _read(params: str) -> Params:
    with TemporaryDirectory() as folder:
        workspace = Workspace(Path(folder))
        workspace.params.write_text(params, encoding="utf-8")
        return read(workspace)


def choose_at_first_run(workspace: Workspace) -> list[str]:
    """Replace a params.yaml that is still ``auto``; returns the lines to show, none if it was chosen before.

    It stays ``auto`` while there are too few images to train on: the data contract will say so.
    """
    if not is_auto(workspace.params.read_text(encoding="utf-8")):
        return []
    params = read(workspace)
    chosen = choose(workspace.root, params.retraining.sources, ingest=params.ingest)
    if chosen.images.train.total() < VALIDATE.min_images:
        return []
    write_atomically(workspace.params, chosen.text)
    keep(workspace.root, chosen.params, chosen.measured)
    return [*chosen.table, "", "written to params.yaml, with these reasons as comments; you can change any value there"]
