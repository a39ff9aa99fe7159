"""``simclr purge``: remove contents for good."""

import click

from pipeline.cli.options import pass_workspace
from pipeline.errors import OverridesError, WorkspaceError
from pipeline.workspace import Workspace


@click.command()
@click.argument("names", nargs=-1, metavar="[HASH|PATH]...")
@click.option("--why", help="The reason, which is recorded.")
@click.option("--who", help="Default: your name in Git.")
@pass_workspace
def purge(workspace: Workspace, names: tuple[str, ...], why: str | None, who: str | None) -> None:
    """Remove the bytes of images from raw batches, derived data, the cache, every remote, and all versions.

    For what may not be kept, such as withdrawn consent; it cannot be undone. Models stay, and those that have seen the
    images are named. Without a name, a purge that was interrupted is completed. Exit code 1: a remote was not cleaned,
    or a release still shows a small copy of an image; the output says what to do.

    \b
    Example: simclr purge 3f0c92 --why "consent withdrawn"
    """
    from pipeline.dvc.purged import find_interrupted_purge
    from pipeline.purge.purge import describe, purge
    from pipeline.validation.quarantine import person, resolve

    if names and not why:
        raise click.UsageError("--why is missing; give the reason, such as --why 'consent withdrawn'")
    try:
        hashes = [resolve(workspace, name) for name in names]
    except (OverridesError, WorkspaceError) as error:
        if not find_interrupted_purge(workspace.root):
            raise
        raise OverridesError(
            f"{error}; or it is in the purge that was interrupted: `simclr purge` without a name completes that"
        ) from None
    done = purge(workspace, hashes, who or person(), why or "")
    click.echo("\n".join(describe(workspace, one) for one in done) or "no purge was interrupted; name what to purge")
    if any(one.unreached or one.golden for one in done):
        raise click.exceptions.Exit(1)
