"""``simclr release``: which encoder is served, and how to change that."""

import sqlite3
from typing import TYPE_CHECKING

import click

from deploy.failure import fail
from pipeline.cli.options import as_json, pass_workspace
from pipeline.errors import FORESEEN
from pipeline.workspace import Workspace

if TYPE_CHECKING:
    from pipeline.release.approval import Held
    from pipeline.release.serving import Released

why = click.option("--why", required=True, help="The reason, which is recorded.")
who = click.option("--who", help="Default: your name in Git.")


@click.group()
def release() -> None:
    """The released encoders: list, approve or reject a candidate, promote, roll back, compare.

    \b
    Examples: simclr release list
              simclr release rollback
              simclr release diff v0.0.1 v0.0.2
    """


@release.command("list")
@as_json
@pass_workspace
def list_releases(workspace: Workspace, as_json: bool) -> None:
    """Every version with its date and numbers, the one that is served, the candidates that wait for a person, and the
    rejected ones with reasons."""
    from pipeline.release.release import list_versions

    found = list_versions(workspace)
    click.echo(found.to_json() if as_json else str(found))


@release.command()
@click.argument("candidate")
@why
@who
@pass_workspace
def approve(workspace: Workspace, candidate: str, why: str, who: str | None) -> None:
    """Release a candidate that waits for a person: see `gates.approval`, and `simclr release list` for who waits.

    CANDIDATE are the first digits of its bundle. Possible while the version that it was compared with serves, until the
    candidate expires. Interrupted, the same command completes it.

    \b
    Example: simclr release approve 3f0c92 --why "the drift is the new camera"
    """
    from pipeline.release.approval import approve
    from pipeline.validation.quarantine import person

    _show(workspace, approve(workspace, candidate, who or person(), why))


@release.command()
@click.argument("candidate")
@why
@who
@pass_workspace
def reject(workspace: Workspace, candidate: str, why: str, who: str | None) -> None:
    """Refuse a candidate that waits for a person, for good; what serves stays.

    \b
    Example: simclr release reject 3f0c92 --why "the drift is a broken lens"
    """
    from pipeline.release.approval import reject
    from pipeline.validation.quarantine import person

    _show(workspace, reject(workspace, candidate, who or person(), why))


@release.command()
@click.argument("version")
@pass_workspace
def promote(workspace: Workspace, version: str) -> None:
    """Serve this version, without asking the gates again.

    \b
    Example: simclr release promote v0.0.3
    """
    from pipeline.release.release import promote

    click.echo(promote(workspace, version))


@release.command()
@click.argument("version", required=False)
@pass_workspace
def rollback(workspace: Workspace, version: str | None) -> None:
    """Serve the version before the present one, or the one that is named. It stays until something new is released.

    \b
    Examples: simclr release rollback
              simclr release rollback v0.0.1
    """
    from pipeline.release.release import rollback

    try:
        click.echo(rollback(workspace, version))
    except KeyboardInterrupt:
        if version:
            raise
        said = "interrupted; `simclr release list` says which version serves, and another rollback may go back one more"
        raise click.exceptions.Exit(fail(said, code=130)) from None


@release.command()
@click.argument("version")
@click.option("--why", required=True, help="The reason, which the tag records.")
@pass_workspace
def withdraw(workspace: Workspace, version: str, why: str) -> None:
    """Take a version back for good: it leaves the registry, and cannot be promoted any more.

    For a release that must not be served again, such as one whose bundle shows an image that was purged. Another
    version has to serve.

    \b
    Example: simclr release withdraw v0.0.1 --why "consent withdrawn"
    """
    from pipeline.release.release import withdraw

    click.echo(withdraw(workspace, version, why))


@release.command()
@click.argument("one")
@click.argument("other")
@pass_workspace
def diff(workspace: Workspace, one: str, other: str) -> None:
    """What changed between two versions: images, parameters, accuracies, code.

    \b
    Example: simclr release diff v0.0.1 v0.0.2
    """
    from pipeline.release.release import diff

    click.echo(diff(workspace, one, other))


def _show(workspace: Workspace, done: "Released | Held") -> None:
    """Here, on the page of the run and in the UI. The decision stands, also where these cannot be written."""
    from pipeline.defs.release import record_decision
    from pipeline.run_report import page

    click.echo(done)
    try:
        page.write(workspace)
    except (*FORESEEN, OSError) as error:
        click.echo(f"warning: reports/run.html does not say so before the next run: {error}", err=True)
    try:
        record_decision(workspace, done)
    except (*FORESEEN, sqlite3.OperationalError) as error:
        click.echo(f"warning: the UI does not show it before the next run: {error}", err=True)
