"""``simclr ingest`` and ``simclr run``: take in new images, and bring every stage up to date."""

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from pipeline import workspace as workspaces
from pipeline.cli.options import pass_workspace, show
from pipeline.workspace import Workspace

RESTART = click.option(
    "--restart/--continue",
    default=None,
    help="If a run was interrupted: begin again with the new images, or finish it first. "
    "Default: ask on a terminal, else finish it.",
)


@click.command()
@click.argument("sources", nargs=-1, metavar="[SRC]...")
@click.option("--undo", metavar="BATCH", help="Take a batch back, such as 0003; its files are left out from then on.")
@click.option("--redo", metavar="BATCH", help="Take the files of an undone batch again, where SRC still has them.")
@RESTART
@pass_workspace
def ingest(
    workspace: Workspace, sources: tuple[str, ...], undo: str | None, redo: str | None, restart: bool | None
) -> None:
    """Add the new files of folders, globs or fsspec URLs to the raw images; default: retraining.sources, the inbox.

    A relative SRC is taken from the folder you are in. Nothing of yours is moved or changed.

    \b
    Examples: simclr ingest
              simclr ingest ~/photos '~/scans/*.png' s3://bucket/camera-7
              simclr ingest --undo 0003
    """
    from pipeline import params
    from pipeline.ingest import undo as taking_back
    from pipeline.ingest.ingest import ingest as ingest_sources
    from pipeline.ingest.unfinished import find_interrupted
    from pipeline.preflight.images import ingested
    from pipeline.preflight.minimums import warnings
    from pipeline.release.champion import pin_first

    if undo is not None:  # also empty, as of a variable that a script has not set
        if sources or redo is not None:
            raise click.UsageError("--undo takes a batch back, and nothing is ingested; leave --redo and sources out")
        click.echo("\n".join(taking_back.undo(workspace, undo)))
        return
    if redo is not None:
        redo = taking_back.redo(workspace, redo)
    for line in params.complete(workspace):
        click.echo(line)
    found = absolute(sources) or params.read(workspace).retraining.sources
    unfinished = None if wants_restart(workspace, found, restart) else find_interrupted(workspace)
    result = ingest_sources(workspace, found, lambda line: click.echo(line, err=True), unfinished)
    click.echo("\n".join([*result.understood, str(result)]))
    if redo is not None and result.batch is None:
        click.echo(
            f"warning: no file of batch {redo} is in {', '.join(found)}; name where they are: `simclr ingest FOLDER`"
        )
    pin_first(workspace)
    for warning in warnings(workspace, ingested(workspace)):
        click.echo(f"warning: {warning}")


@click.command()
@click.option("--select", "stages", multiple=True, metavar="STAGE", help="Only this stage; repeatable.")
@click.option("--set", "values", multiple=True, metavar="KEY=VALUE", help="Change params.yaml first.")
@RESTART
@pass_workspace
def run(workspace: Workspace, stages: tuple[str, ...], values: tuple[str, ...], restart: bool | None) -> None:
    """Ingest the inbox and bring every stage up to date, through Dagster; unchanged stages are skipped.

    When nothing has changed since the last run of the same day, nothing is started and no run is recorded.

    \b
    Examples: simclr run
              simclr run --set pretrain.epochs=100 --set pretrain.temperature=0.2
              simclr run --select linear_eval --select finetune@0.01
    """
    from pipeline import params, waiting
    from pipeline.preflight import requirements
    from pipeline.release.registry import open_registry
    from pipeline.retraining import completed

    workspaces.require_writable(workspace)
    workspaces.point_dagster(workspace)
    if stages:
        from pipeline.run import select

        select(workspace, stages)  # a name that is refused is, before anything is written
    for line in params.complete(workspace):
        click.echo(line)
    requirements.apply(workspace, parse_assignments(values))
    sources = params.read(workspace).retraining.sources
    if not stages and completed.has_nothing_to_do(workspace, sources):
        click.echo("nothing to do: no image is new, and every stage is as the last run left it")
        registry = open_registry(workspace)
        show("\n".join(waiting.look(registry.root, registry.current()).lines()))
        return
    from pipeline.run import RAW_STAGE
    from pipeline.run import run as run_graph

    ingests = not stages or RAW_STAGE in stages
    done = run_graph(workspace, stages or None, restart=ingests and wants_restart(workspace, sources, restart))
    if not stages:
        completed.note(workspace, params.read(workspace).retraining.sources, done.run_id)


def wants_restart(workspace: Workspace, sources: Sequence[str], given: bool | None) -> bool:
    """Whether new images are ingested although a run was interrupted; asked on a terminal, else False."""
    from pipeline.ingest.unfinished import find_interrupted
    from pipeline.retraining.inbox import survey

    if given is not None or not sys.stdin.isatty():
        return bool(given)
    unfinished = find_interrupted(workspace)
    found = survey(workspace, sources) if unfinished else None
    if not unfinished or not found or not (found.new_files or found.unsettled or found.relabeled):
        return False
    click.echo(
        f"A run was interrupted {unfinished.progress}, and new images have arrived.\n"
        "continue: finish it first; the new images come with the next run\n"
        "restart:  take the new images now; the run begins again"
    )
    answer: str = click.prompt("Which", type=click.Choice(["continue", "restart"]), default="continue")
    return answer == "restart"


def parse_assignments(values: Sequence[str]) -> dict[str, str]:
    """``["a.b=c"]`` → ``{"a.b": "c"}``."""
    assignments = {}
    for value in values:
        key, separator, text = value.partition("=")
        if not separator or not key:
            raise click.BadParameter(f"--set {value!r}: must be KEY=VALUE, such as pretrain.epochs=100")
        assignments[key.strip()] = text
    return assignments


def absolute(sources: Sequence[str]) -> list[str]:
    """The sources by names that hold in every folder; a relative one is taken from the present folder."""
    from pipeline.ingest import sources as listing  # brings fsspec

    return [source if "://" in source else listing.absolute(Path.cwd(), source) for source in sources]
