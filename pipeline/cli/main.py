"""``simclr``: everything a person or a scheduler does with a workspace.

Exit codes: 0 done; 1 a stage failed, a gate did not pass, or `doctor` found something; 2 wrong input; 130 interrupted.
"""

import json
import math
import sqlite3
import sys
from dataclasses import asdict
from pathlib import Path

import click
from click.shell_completion import get_completion_class

from deploy.failure import INTERRUPTED, describe, fail
from deploy.plural import counted
from pipeline import workspace as workspaces
from pipeline.cli.explore import explore
from pipeline.cli.options import as_json, pass_workspace, show, workspace_option
from pipeline.cli.plan import plan
from pipeline.cli.purge import purge
from pipeline.cli.quarantine import quarantine
from pipeline.cli.release import release
from pipeline.cli.run import absolute, ingest, run
from pipeline.cli.suggest import suggest
from pipeline.cli.transfer import transfer
from pipeline.cli.tune import tune
from pipeline.cli.weights import weights
from pipeline.errors import FORESEEN, GateError, StageFailedError
from pipeline.recipes.recipe import AUTO, summaries
from pipeline.workspace import Workspace


def run_cli() -> int:
    """Run the command line; foreseen errors become one line on stderr and an exit code."""
    try:
        exit_code: int | None = simclr.main(prog_name="simclr", standalone_mode=False)
    except (StageFailedError, GateError) as error:
        return fail(error, code=1)
    except FORESEEN as error:
        return fail(error)
    except click.exceptions.NoArgsIsHelpError as error:  # a group alone is a question
        click.echo(error.message)
        return 0
    except click.ClickException as error:
        command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "simclr"
        return fail(f"{error.format_message().rstrip('.')}; see `{command} --help`")
    except OSError as error:
        if error.errno is None:
            raise
        return fail(describe(error))
    except sqlite3.OperationalError as error:  # of a full disk, or one that has become read-only: it names no file
        return fail(f"a database of the workspace: {error}; `simclr doctor` looks for the cause")
    except (KeyboardInterrupt, click.Abort):
        return fail(INTERRUPTED, code=130)
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


for command in (ingest, plan, run, explore, suggest, tune, quarantine, release, purge, weights, transfer):
    simclr.add_command(command)


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
    from pipeline.costs.measured import keep
    from pipeline.proposal.choose import choose

    workspaces.require_new(directory)
    if not yes and not sys.stdin.isatty():
        raise click.UsageError("there is no terminal to answer on; add --yes")
    click.echo("looking at the images, then training a few steps to measure this machine ...", err=True)
    chosen = choose(directory.absolute(), absolute(sources), budget)
    click.echo("\n".join(chosen.table))
    if not yes:
        click.confirm("\nMake the workspace with these values?", default=True, abort=True)
    workspace = workspaces.create(directory, chosen.recipe, chosen.text)
    keep(workspace.root, chosen.params, chosen.measured)
    click.echo(f"{workspace.root} is ready: `simclr run` in it; the values and their reasons are in params.yaml")


@simclr.command()
@as_json
@pass_workspace
def status(workspace: Workspace, as_json: bool) -> None:
    """What is ingested, which stages are up to date, and how good the current encoder is."""
    from pipeline.cli.status import look

    found = look(workspace)
    click.echo(found.to_json()) if as_json else show(str(found))


@simclr.command()
@as_json
@pass_workspace
def summary(workspace: Workspace, as_json: bool) -> None:
    """What the last run gave: images, accuracies next to their baselines, gates and durations."""
    from pipeline.cli.summary import collect, table

    found = collect(workspace)
    click.echo(json.dumps(asdict(found), indent=2) if as_json else table(found))


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
    workspaces.point_dagster(workspace)
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


def _require_finite(_: click.Context, __: click.Parameter, value: float | None) -> float | None:
    """Not a number compares as neither too small nor too large: nothing would be checked, or without an end."""
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value} is not a finite number; give one of 0 or more, such as 7")
    return value


@simclr.command()
@click.option(
    "--seconds",
    type=click.FloatRange(min=0),
    callback=_require_finite,
    help="Stop after this many seconds; the next run continues from there.",
)
@click.option(
    "--older-than-days",
    default=7.0,
    show_default=True,
    type=click.FloatRange(min=0),
    callback=_require_finite,
    help="Skip files that were checked within this many days.",
)
@click.option("--remote", is_flag=True, help="Also read the copies of released versions in the DVC remote.")
@pass_workspace
def fsck(workspace: Workspace, seconds: float | None, older_than_days: float, remote: bool) -> None:
    """Read every versioned byte again and compare its hash; restore what is damaged where that is possible.

    \b
    Example, for every night: simclr fsck --seconds 3600
    """
    from pipeline.maintenance.fsck import check

    workspaces.require_writable(workspace)
    report = check(workspace, seconds=seconds, older_than_days=older_than_days, remote=remote)
    click.echo(report)
    if report.lost:
        raise click.exceptions.Exit(1)


@simclr.command("test-alert")
@pass_workspace
def send_test_alert(workspace: Workspace) -> None:
    """Send a test alert to every address in the environment, and say which could not be reached."""
    from pipeline.alerts import list_configured, send

    addresses = list_configured()
    if not addresses:
        raise click.UsageError("no address in the environment; set SIMCLR_ALERT_WEBHOOK, _SLACK or _EMAIL")
    problems = send(workspace, "trial", "Test alert", f"Alerts of {workspace.root.name} arrive here.")
    click.echo("\n".join(problems) or f"sent to {', '.join(addresses)}")
    if problems:
        raise click.exceptions.Exit(1)


@simclr.command("confirm-source")
@click.argument("name")
@pass_workspace
def confirm_source(workspace: Workspace, name: str) -> None:
    """Say that a source rightly holds the files that it has now, after the watchdog reported that some are gone.

    NAME is one of `retraining.sources`. From then on the watchdog compares with that number, and its heartbeat goes
    out again.

    \b
    Example: simclr confirm-source inbox
    """
    from pipeline.retraining.confirmed import confirm

    workspaces.require_writable(workspace)
    files = confirm(workspace, name)
    click.echo(f"{name}: {counted(files, 'file')} from now on; the watchdog looks again within minutes")


@simclr.command(hidden=True, deprecated="It is now called `simclr test-alert`.")
@click.pass_context
def alert(context: click.Context) -> None:
    """Send a test alert."""
    context.forward(send_test_alert)


@simclr.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a script that lets this shell complete the commands, options and paths of simclr.

    \b
    Examples: simclr completion bash >> ~/.bashrc
              simclr completion zsh >> ~/.zshrc
              simclr completion fish > ~/.config/fish/completions/simclr.fish
    """
    script = get_completion_class(shell)
    assert script is not None, shell
    click.echo(script(simclr, {}, "simclr", "_SIMCLR_COMPLETE").source())


@simclr.command()
@click.option("--repair", is_flag=True, help="Fix what needs no decision.")
@as_json
@workspace_option
@click.pass_context
def doctor(context: click.Context, repair: bool, as_json: bool) -> None:
    """Check this machine and the workspace, and name the command that fixes what is wrong."""
    from pipeline.maintenance.doctor import examine

    findings = examine(context.find_root().obj, repair=repair)
    if as_json:
        click.echo(json.dumps([asdict(one) for one in findings], indent=2))
    else:
        show("\n".join(map(str, findings)))
    if not all(finding.healthy for finding in findings):
        raise click.exceptions.Exit(1)
