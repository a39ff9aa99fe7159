"""``simclr quarantine``: look at what validation has refused, and decide otherwise."""

from datetime import date, datetime
from pathlib import Path

import click

from pipeline.cli.options import as_json, pass_workspace
from pipeline.validation import quarantine as decisions
from pipeline.workspace import Workspace

names = click.argument("names", nargs=-1, required=True, metavar="HASH|PATH...")
why = click.option("--why", required=True, help="The reason, for later readers.")
who = click.option("--who", help="Default: your name in Git.")
expires = click.option("--expires", type=click.DateTime(["%Y-%m-%d"]), help="The last day on which it applies.")


@click.group()
def quarantine() -> None:
    """The files that validation has refused: list, show, release, deny, rescan.

    Nothing is ever moved or deleted. Decisions are lines of overrides.csv, by the hash of the bytes.

    \b
    Examples: simclr quarantine list
              simclr quarantine show 3f0c92
              simclr quarantine release 3f0c92 --why "dark on purpose"
    """


@quarantine.command("list")
@click.option("--reason", help="Only files with this primary reason.")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(min=0))
@as_json
@pass_workspace
def list_quarantined(workspace: Workspace, reason: str | None, limit: int, as_json: bool) -> None:
    """How many files are quarantined for which reason, the first of them, and what people have decided."""
    found = decisions.list_files(workspace, reason, limit)
    click.echo(found.to_json() if as_json else str(found))


@quarantine.command()
@click.argument("name", metavar="HASH|PATH")
@click.option("--save", type=click.Path(dir_okay=False, path_type=Path), help="Write its bytes to this file.")
@pass_workspace
def show(workspace: Workspace, name: str, save: Path | None) -> None:
    """Everything that is known of one content.

    \b
    Example: simclr quarantine show unlabeled/holiday/0001.jpg --save 0001.jpg
    """
    click.echo(decisions.details(workspace, name, save))


@quarantine.command()
@names
@why
@who
@expires
@pass_workspace
def release(workspace: Workspace, names: tuple[str, ...], why: str, who: str | None, expires: datetime | None) -> None:
    """Use contents in spite of the reason for which they were refused.

    Possible where there are pixels: not for damaged files, exact copies, or copies of test images.
    """
    click.echo(decisions.release(workspace, names, who or decisions.person(), why, _day(expires)))


@quarantine.command()
@names
@why
@who
@expires
@pass_workspace
def deny(workspace: Workspace, names: tuple[str, ...], why: str, who: str | None, expires: datetime | None) -> None:
    """Refuse contents, whatever the rules say: by hash, by path, or by a file on this disk.

    Their bytes stay; `simclr purge` removes them.

    \b
    Example: simclr quarantine deny ~/stock/0001.jpg --why "a stock photograph"
    """
    click.echo(decisions.deny(workspace, names, who or decisions.person(), why, _day(expires)))


@quarantine.command()
@click.argument("names", nargs=-1, metavar="[HASH|PATH]...")
@click.option("--all", "everything", is_flag=True, help="Every image, not only the quarantined ones.")
@pass_workspace
def rescan(workspace: Workspace, names: tuple[str, ...], everything: bool) -> None:
    """Forget what is known of quarantined contents, or of those that are named, and validate again."""
    click.echo(decisions.rescan(workspace, names, everything, click.echo))


def _day(moment: datetime | None) -> date | None:
    return moment.date() if moment else None
