"""``simclr plan``: what the next run will cost, and how far the expectation of the latest one was off."""

import json

import click

from pipeline.cli.options import pass_workspace
from pipeline.workspace import Workspace


@click.command()
@click.option("--json", "as_json", is_flag=True, help="For programs: seconds and bytes.")
@pass_workspace
def plan(workspace: Workspace, as_json: bool) -> None:
    """Time, memory and disk of each stage of the next run, and how far off that was for the latest one.

    Nothing is ingested or trained. What was not measured for these parameters yet is measured first, by a few steps of
    training and some of the images; that takes some seconds.

    \b
    Examples: simclr plan
              simclr plan --json
    """
    from pipeline.costs.record import latest
    from pipeline.plan.plan import make
    from pipeline.plan.render import document, table

    made, record = make(workspace), latest(workspace.root)
    click.echo(json.dumps(document(made, record), indent=2) if as_json else table(made, record))
