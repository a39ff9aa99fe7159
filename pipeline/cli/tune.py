"""``simclr tune``: search settings of pretraining on the user's own images."""

import click

from pipeline.cli.options import as_json, pass_workspace
from pipeline.tune.report import Asked
from pipeline.workspace import Workspace


@click.command()
@click.option("--budget", metavar="TIME", default="2h", show_default=True, help="Of the search: 10m, 2h, overnight.")
@click.option(
    "--trials",
    default=9,
    show_default=True,
    type=click.IntRange(min=2),
    help="Settings in the first rung, the present ones among them.",
)
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(min=3), help="Of the comparison at the end.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Of what is drawn.")
@click.option("--write", is_flag=True, help="Write settings that are shown to be better into params.yaml.")
@as_json
@pass_workspace
def tune(workspace: Workspace, budget: str, trials: int, seeds: int, seed: int, write: bool, as_json: bool) -> None:
    """Search settings of pretraining on the prepared images, by successive halving over short trainings.

    They are judged by the labels of training images, or without any by views of the images; the test images are not
    opened. What wins is compared with the present settings on other seeds. The same command continues an interrupted
    search. Needs the extra `tune`, and `simclr run --select prepare` before.

    \b
    Examples: simclr tune --budget 2h
              simclr tune --budget overnight --trials 27 --write
    """
    from simclr_core.machine import wait_policy

    wait_policy.apply()  # before torch is imported
    from pipeline.proposal.budget import parse
    from pipeline.tune.tune import tune

    asked = Asked(parse(budget), trials, seeds, seed, write)
    found = tune(workspace, asked, lambda line: click.echo(line, err=True))
    click.echo(found.to_json() if as_json else found)
