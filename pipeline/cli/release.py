"""``simclr release``: which encoder is served, and how to change that."""

import click

from pipeline import workspace as workspaces
from pipeline.workspace import Workspace


@click.group()
def release() -> None:
    """The released encoders: list, promote, roll back, compare.

    \b
    Examples: simclr release list
              simclr release rollback
              simclr release diff v0.0.1 v0.0.2
    """


@release.command("list")
@click.pass_context
def list_releases(context: click.Context) -> None:
    """Every version with its date and numbers, the one that is served, and the rejected candidates with reasons."""
    from pipeline.release.release import listing

    click.echo(listing(_find(context)))


@release.command()
@click.argument("version")
@click.pass_context
def promote(context: click.Context, version: str) -> None:
    """Serve this version, whatever the gates decided since.

    \b
    Example: simclr release promote v0.0.3
    """
    from pipeline.release.release import promote

    click.echo(promote(_find(context), version))


@release.command()
@click.argument("version", required=False)
@click.pass_context
def rollback(context: click.Context, version: str | None) -> None:
    """Serve the version before the present one, or the one that is named. It stays until something new is released.

    \b
    Examples: simclr release rollback
              simclr release rollback v0.0.1
    """
    from pipeline.release.release import rollback

    click.echo(rollback(_find(context), version))


@release.command()
@click.argument("one")
@click.argument("other")
@click.pass_context
def diff(context: click.Context, one: str, other: str) -> None:
    """What changed between two versions: images, parameters, accuracies, code.

    \b
    Example: simclr release diff v0.0.1 v0.0.2
    """
    from pipeline.release.release import diff

    click.echo(diff(_find(context), one, other))


def _find(context: click.Context) -> Workspace:
    return workspaces.find(context.find_root().obj)
