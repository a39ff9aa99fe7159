"""``simclr suggest``: which images to label next."""

import click

from pipeline.cli.options import pass_workspace
from pipeline.workspace import Workspace
from simclr_core.suggest import WAYS, By


@click.command()
@click.option("--budget", default=100, show_default=True, type=click.IntRange(min=1), help="How many images.")
@click.option("--by", type=click.Choice(WAYS), default="typical", show_default=True, help="How they are chosen.")
@pass_workspace
def suggest(workspace: Workspace, budget: int, by: By) -> None:
    """Choose which images to label next, by the features of the newest trained encoder.

    Writes a table to fill in, a sheet of pictures and a list of paths to reports/suggest-*, and says what to do next.

    \b
    typical    the most typical image of each large group of similar images; needs no labels
    diverse    the images farthest from all that have a label; needs no labels
    uncertain  the images for which the linear probe hesitates most
    novel      the images least like any labeled one; needs no labels
    mistakes   the labels that are most likely wrong

    \b
    Example: simclr suggest --budget 50
             simclr suggest --by mistakes
    """
    from simclr_core.machine import wait_policy

    wait_policy.apply()  # before torch is imported
    from pipeline.suggest.suggest import suggest

    click.echo(suggest(workspace, by, budget))
