"""``simclr transfer``: how good the encoder is on other labeled sets."""

from pathlib import Path

import click

from deploy.artifact import write_atomically
from pipeline import workspace as workspaces
from pipeline.cli.options import as_json, pass_workspace
from pipeline.git import leave_out
from pipeline.workspace import Workspace, expand_home

BUNDLED = ("digits",)


@click.command()
@click.argument("folders", metavar="NAME=FOLDER...", nargs=-1)
@click.option("--set", "bundled", multiple=True, type=click.Choice(BUNDLED), help="A set that needs no files.")
@as_json
@pass_workspace
def transfer(workspace: Workspace, folders: tuple[str, ...], bundled: tuple[str, ...], as_json: bool) -> None:
    """Measure the trained encoder on labeled sets from elsewhere.

    FOLDER holds a folder for each class, or the folders train and test with a folder for each class in both. Linear
    evaluation, kNN and few-shot are compared with random weights, raw pixels and, if training began with public
    weights, with these. Writes reports/transfer.json and reports/transfer.html.

    \b
    Examples: simclr transfer birds=~/birds flowers=~/flowers
              simclr transfer --set digits
    """
    named = [_parse(given) for given in folders]
    names = [*(name for name, _ in named), *bundled]
    if not names:
        raise click.UsageError("no set to measure on; give NAME=FOLDER or --set digits")
    if len(set(names)) < len(names):
        raise click.UsageError(f"{', '.join(names)}: a name occurs twice; give each set its own name")
    workspaces.require_writable(workspace)
    from simclr_core.machine import wait_policy

    wait_policy.apply()  # before torch is imported
    from simclr_core.evaluation.linear_eval import compared_encoders
    from simclr_core.evaluation.transfer.labeled_set import digits, open_folder
    from simclr_core.evaluation.transfer.measure import measure
    from simclr_core.evaluation.transfer.report import describe, page, to_json
    from simclr_core.model.model_directory import load_model

    model = load_model(workspace.root / "models" / "pretrained")
    sets = [*(open_folder(name, folder) for name, folder in named), *(digits() for _ in bundled)]
    encoders = compared_encoders(workspace.root, model, seed=0)
    found = [measure(one, model, encoders) for one in sets]
    workspace.reports.mkdir(exist_ok=True)
    leave_out(workspace.reports, "transfer.json", "transfer.html")  # they name files that could not be read
    content = to_json("models/pretrained", found)
    write_atomically(workspace.reports / "transfer.json", content)
    write_atomically(workspace.reports / "transfer.html", page(found))
    click.echo(content.rstrip() if as_json else describe(found))


def _parse(given: str) -> tuple[str, Path]:
    name, equals, folder = given.partition("=")
    if not (name and equals and folder):
        raise click.UsageError(f"{given!r}: give NAME=FOLDER, such as birds=~/birds")
    return name, expand_home(folder)
