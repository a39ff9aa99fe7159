"""``simclr``: everything a person or a scheduler does with a workspace.

Exit codes: 0 done; 1 a stage failed, a gate did not pass, or `doctor` found something; 2 wrong input; 130 interrupted.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from deploy.failure import describe, fail
from pipeline import workspace as workspaces
from pipeline.cli.pass_workspace import pass_workspace
from pipeline.cli.purge import purge
from pipeline.cli.quarantine import quarantine
from pipeline.cli.release import release
from pipeline.cli.weights import weights
from pipeline.errors import FORESEEN, GateError, StageFailedError
from pipeline.recipes.recipe import AUTO, summaries
from pipeline.workspace import Workspace

RESTART = click.option(
    "--restart/--continue",
    default=None,
    help="If a run was interrupted: begin again with the new images, or finish it first. "
    "Default: ask on a terminal, else finish it.",
)


def run_cli() -> int:
    """Run the command line; foreseen errors become one line on stderr and an exit code."""
    try:
        exit_code: int | None = simclr.main(prog_name="simclr", standalone_mode=False)
    except (StageFailedError, GateError) as error:
        return fail(error, code=1)
    except FORESEEN as error:
        return fail(error)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "simclr"
        return fail(f"{error.format_message().rstrip('.')}; see `{command} --help`")
    except OSError as error:
        if error.errno is None:
            raise
        return fail(describe(error))
    except (KeyboardInterrupt, click.Abort):
        return fail("interrupted; run the same command again to continue", code=130)
    return exit_code or 0


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="simclr-pipeline")
@click.option(
    "--workspace", type=click.Path(path_type=Path), help="Default: the nearest workspace at or above this folder."
)
@click.pass_context
def simclr(context: click.Context, workspace: Path | None) -> None:
    """Turn a folder of raw images into an encoder in production.

    \b
    simclr init my-images --from ~/photos   make a workspace with parameters that fit
    cd my-images && simclr run              validate, train, evaluate, export
    simclr ui                               look at it in Dagster
    simclr-deploy embed models/bundle photo.jpg

    Exit codes: 0 done; 1 a stage failed or a gate did not pass; 2 wrong input; 130 interrupted.
    """
    context.obj = workspace


simclr.add_command(quarantine)
simclr.add_command(release)
simclr.add_command(purge)
simclr.add_command(weights)


def _recipes() -> str:
    lines = summaries(workspaces.template("params.yaml").read_text(encoding="utf-8"))
    width = max(map(len, lines))
    return "\b\nRecipes:\n" + "\n".join(f"  {name:<{width}}  {line}" for name, line in lines.items())


@simclr.command(epilog=_recipes())
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--from", "sources", multiple=True, metavar="SRC", help="Images to look at and train on; repeatable.")
@click.option("--budget", metavar="TIME", help="Of the first run: 10m, 2h, overnight. Default: 20m, with a GPU 2h.")
@click.option("--recipe", metavar="NAME", help=f"Take these values; nothing is looked at. Default: {AUTO}.")
@click.option("--yes", is_flag=True, help="Accept what is proposed without a question.")
def init(directory: Path, sources: tuple[str, ...], budget: str | None, recipe: str | None, yes: bool) -> None:
    """Make a workspace in a new or empty folder, with parameters that fit your images and this machine.

    With --from, the images are looked at now, and what is proposed is shown with its reasons. Otherwise that happens at
    the first run.

    \b
    Examples: simclr init my-images --from ~/photos
              simclr init my-images --from ~/photos --budget overnight --yes
              simclr init my-photographs --recipe imagenet-r50
    """
    if recipe and (sources or budget):
        raise click.UsageError("--recipe takes the values of a recipe, --from and --budget choose them; leave one out")
    if budget and not sources:
        raise click.UsageError("--budget needs images to choose for; name them with --from")
    if not sources:
        workspace = workspaces.create(directory, recipe or AUTO)
        click.echo(f"{workspace.root} is ready: put images into inbox/unlabeled, then `simclr run` in it")
        return
    from pipeline.proposal.choose import choose

    workspaces.require_new(directory)
    click.echo("looking at the images, then training a few steps to measure this machine ...", err=True)
    chosen = choose(directory.absolute(), _absolute(sources), budget)
    click.echo("\n".join(chosen.table))
    if not yes:
        click.confirm("\nMake the workspace with these values?", default=True, abort=True)
    workspace = workspaces.create(directory, chosen.recipe, chosen.params)
    click.echo(f"{workspace.root} is ready: `simclr run` in it; the values and their reasons are in params.yaml")


def _absolute(sources: Sequence[str]) -> list[str]:
    from pipeline.ingest.sources import absolute  # brings fsspec

    return [source if "://" in source else absolute(Path.cwd(), source) for source in sources]


@simclr.command()
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
    from pipeline import params, preflight
    from pipeline.ingest import undo as taking_back
    from pipeline.ingest.ingest import ingest as ingest_sources
    from pipeline.ingest.unfinished import find_interrupted
    from pipeline.release.champion import pin_first

    if undo:
        if sources or redo:
            raise click.UsageError("--undo takes a batch back, and nothing is ingested; leave --redo and sources out")
        click.echo("\n".join(taking_back.undo(workspace, undo)))
        return
    if redo:
        taking_back.redo(workspace, redo)
    found = _absolute(sources) or params.read(workspace).retraining.sources
    unfinished = None if wants_restart(workspace, found, restart) else find_interrupted(workspace)
    result = ingest_sources(workspace, found, lambda line: click.echo(line, err=True), unfinished)
    click.echo("\n".join([*result.understood, str(result)]))
    if redo and result.batch is None:
        click.echo(
            f"warning: no file of batch {redo} is in {', '.join(found)}; name where they are: `simclr ingest FOLDER`"
        )
    pin_first(workspace)
    for warning in preflight.warnings(workspace, preflight.ingested(workspace)):
        click.echo(f"warning: {warning}")


@simclr.command()
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
    from pipeline import params, preflight
    from pipeline.retraining import completed

    workspaces.require_writable(workspace)
    preflight.apply(workspace, parse_assignments(values))
    sources = params.read(workspace).retraining.sources
    if not stages and completed.has_nothing_to_do(workspace, sources):
        click.echo("nothing to do: no image is new, and every stage is as the last run left it")
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
    if not unfinished or not found or not (found.new_files or found.unsettled or found.relabelled):
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


@simclr.command()
@pass_workspace
def status(workspace: Workspace) -> None:
    """What is ingested, which stages are up to date, and how good the current encoder is."""
    from pipeline.cli.status import describe_workspace

    click.echo(describe_workspace(workspace))


@simclr.command()
@click.argument("directory", type=click.Path(path_type=Path), default=Path("demo"))
def demo(directory: Path) -> None:
    """Run everything on a bundled sample of Fashion-MNIST with some damaged files among it; takes some minutes.

    \b
    Example: simclr demo demo
    """
    from pipeline.cli.demo import run_demo

    click.echo(run_demo(directory))


@simclr.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Any other address needs SIMCLR_UI_PASSWORD.")
@click.option("--port", default=3000, show_default=True)
@pass_workspace
def ui(workspace: Workspace, host: str, port: int) -> None:
    """Serve the Dagster UI of the workspace, with its schedule and sensor, until Ctrl-C.

    The processes behind it are watched over and started again one by one. A training continues when they end, and
    the next `simclr ui` finds it.
    """
    from pipeline.ui.services import serve

    workspaces.require_writable(workspace)
    serve(workspace, host, port)


@simclr.command()
@click.option("--cloud", is_flag=True, help="Also from the DVC remote, permanently.")
@click.option("--dry-run", is_flag=True, help="Only print what would be removed.")
@pass_workspace
def gc(workspace: Workspace, cloud: bool, dry_run: bool) -> None:
    """Free the disk of what neither the workspace nor any released version needs.

    \b
    Example: simclr gc --dry-run
    """
    from pipeline.maintenance.storage import collect

    click.echo(collect(workspace, cloud=cloud, dry_run=dry_run))


@simclr.command()
@click.option(
    "--seconds", type=click.FloatRange(min=0), help="Stop after this many seconds; the next run continues from there."
)
@click.option(
    "--older-than-days", default=7.0, show_default=True, help="Skip files that were checked within this many days."
)
@click.option("--remote", is_flag=True, help="Also read the copies of released versions in the DVC remote.")
@pass_workspace
def fsck(workspace: Workspace, seconds: float | None, older_than_days: float, remote: bool) -> None:
    """Read every versioned byte again and compare its hash; restore what is damaged where that is possible.

    \b
    Example, for every night: simclr fsck --seconds 3600
    """
    from pipeline.maintenance.fsck import check

    report = check(workspace, seconds=seconds, older_than_days=older_than_days, remote=remote)
    click.echo(report)
    if report.lost:
        raise click.exceptions.Exit(1)


@simclr.command("test-alert")
@pass_workspace
def send_test_alert(workspace: Workspace) -> None:
    """Send a test alert to every address in the environment, and say which could not be reached."""
    from pipeline.alerts import configured, send

    addresses = configured()
    if not addresses:
        raise click.UsageError("no address in the environment; set SIMCLR_ALERT_WEBHOOK, _SLACK or _EMAIL")
    problems = send(workspace, "trial", "Test alert", f"Alerts of {workspace.root.name} arrive here.")
    click.echo("\n".join(problems) or f"sent to {', '.join(addresses)}")
    if problems:
        raise click.exceptions.Exit(1)


@simclr.command(hidden=True, deprecated="It is now called `simclr test-alert`.")
@click.pass_context
def alert(context: click.Context) -> None:
    """Send a test alert."""
    context.forward(send_test_alert)


@simclr.command()
@click.option("--repair", is_flag=True, help="Fix what needs no decision.")
@click.pass_context
def doctor(context: click.Context, repair: bool) -> None:
    """Check this machine and the workspace, and name the command that fixes what is wrong."""
    from pipeline.maintenance.doctor import examine

    named = context.find_root().obj
    findings = examine(named, repair=repair)
    for finding in findings:
        click.echo(str(finding))
    if not all(finding.healthy for finding in findings):
        raise click.exceptions.Exit(1)
