"""Look at images and at this machine, and choose the parameters: for a new workspace, or at the first run of one."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from deploy.artifact import write_atomically
from pipeline.config import IngestConfig
from pipeline.ingest.selection import ALL, Selection
from pipeline.params import Params, read
from pipeline.preflight import shortages
from pipeline.proposal import budget
from pipeline.proposal.collection import examine
from pipeline.proposal.machine import read_machine
from pipeline.proposal.measure import measure
from pipeline.proposal.propose import VALIDATE, Choice, propose
from pipeline.proposal.render import describe, params_text
from pipeline.recipes.recipe import is_auto
from pipeline.workspace import Workspace, template


@dataclass(frozen=True)
class Chosen:
    """``params`` is the text of params.yaml, ``table`` the lines that say what was found, what was chosen and why."""

    recipe: str
    params: str
    table: list[str]
    training_images: int


def choose(root: Path, sources: Sequence[str], time: str | None = None, ingest: IngestConfig | None = None) -> Chosen:
    """Choose the parameters for the images in ``sources`` on this machine.

    Args:
        root: where the workspace is, or will be.
        time: of the first run, as in ``2h``; None: 20 minutes on processors, two hours on GPUs.
        ingest: which files of the sources are taken; None: all.

    Raises:
        IngestError: a source cannot be read or holds no image.
        ParamsError: ``time`` is not one, or a few steps of training failed here.
    """
    machine = read_machine(root)
    seconds = budget.parse(time or (budget.WITH_GPU if machine.gpu_gigabytes else budget.WITHOUT_GPU))
    base = template("params.yaml").read_text(encoding="utf-8")
    given = [Choice("retraining.sources", [*dict.fromkeys(["inbox", *sources])], "where new images are looked for")]
    selection = Selection(ingest.include, ingest.exclude) if ingest else ALL
    patterns = {"ingest.include": ingest.include, "ingest.exclude": ingest.exclude} if ingest else {}
    given += [Choice(key, [*value], "as it was before the images were looked at") for key, value in patterns.items()]
    collection = examine(root, sources, selection)
    proposal = propose(collection, machine, seconds, partial(measure, base))
    params = params_text(base, proposal, collection, machine, given)
    shown = describe(proposal, collection, machine, shortages(proposal.images, _read(params), released=False))
    return Chosen(proposal.recipe, params, shown, collection.training_images)


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
    if chosen.training_images < VALIDATE.min_images:
        return []
    write_atomically(workspace.params, chosen.params)
    return [*chosen.table, "", "written to params.yaml, with these reasons as comments; you can change any value there"]
