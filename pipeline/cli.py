"""``simclr``: everything a person or a scheduler does with a workspace.

Exit codes: 0 done; 1 a stage failed, a gate did not pass, or `doctor` found something; 2 wrong input; 130 interrupted.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from deploy.errors import DeployError
from pipeline import workspace as workspaces
from pipeline.errors import GateError, PipelineError, StageFailedError
from pipeline.stage import describe, fail
from pipeline.workspace import Workspace
from simclr_core.errors import SimclrError


def run_cli() -> int:
    """Run the command line; foreseen errors become one line on stderr and an exit code."""
    try:
        exit_code: int | None = simclr.main(prog_name="simclr", standalone_mode=False)
    except (StageFailedError, GateError) as error:
        return fail(str(error), code=1)
    except (PipelineError, SimclrError, DeployError) as error:
        return fail(str(error))
    except click.ClickException as error:
        return fail(f"{error.format_message()}; see `simclr --help`")
    except OSError as error:
        if error.errno is None:
            raise
        return fail(describe(error))
    except (KeyboardInterrupt, click.Abort):
        return fail("interrupted; run the same command again and it goes on where it was", code=130)
    return exit_code or 0


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="simclr-pipeline")
@click.option("--workspace", type=click.Path(path_type=Path), help="The workspace; default: the nearest above here.")
@click.pass_context
def simclr(context: click.Context, workspace: Path | None) -> None:
    """Turn a folder of raw images into an encoder in production.

    \b
    simclr init my-images                 make a workspace
    cp -r ~/photos my-images/inbox/unlabeled/
    cd my-images && simclr run            validate, train, evaluate, export
    simclr ui                             look at it in Dagster
    simclr-deploy embed models/bundle photo.jpg

    Exit codes: 0 done; 1 a stage failed or a gate did not pass; 2 wrong input; 130 interrupted.
    """
    context.obj = workspace


def _find(context: click.Context) -> Workspace:
    return workspaces.find(context.find_root().obj)


@simclr.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--recipe", default="cpu-small", show_default=True, help="Which params.yaml to begin with.")
def init(directory: Path, recipe: str) -> None:
    """Make a workspace in a new or empty folder.

    \b
    Example: simclr init my-images
    """
    workspace = workspaces.create(directory, recipe)
    click.echo(f"{workspace.root} is ready: put images into inbox/unlabeled, then `simclr run` in it")


@simclr.command()
@click.argument("sources", nargs=-1, metavar="[SRC]...")
@click.pass_context
def ingest(context: click.Context, sources: tuple[str, ...]) -> None:
    """Add the new files of folders, globs or fsspec URLs to the raw images; default: the workspace's inbox.

    A relative SRC is taken from the folder you are in. Nothing of yours is moved or changed.

    \b
    Examples: simclr ingest
              simclr ingest ~/photos '~/scans/*.png' s3://bucket/camera-7
    """
    from pipeline.ingest import ingest as ingest_sources

    absolute = [source if "://" in source else str(Path(source).expanduser().absolute()) for source in sources]
    click.echo(ingest_sources(_find(context), absolute or ("inbox",)))


@simclr.command()
@click.option("--select", "stages", multiple=True, metavar="STAGE", help="Only this stage; may be given again.")
@click.option("--set", "values", multiple=True, metavar="KEY=VALUE", help="Change params.yaml first.")
@click.pass_context
def run(context: click.Context, stages: tuple[str, ...], values: tuple[str, ...]) -> None:
    """Ingest the inbox and bring every stage up to date, through Dagster; unchanged stages are skipped.

    \b
    Examples: simclr run
              simclr run --set pretrain.epochs=100 --set pretrain.temperature=0.2
              simclr run --select linear_eval --select finetune@0.01
    """
    from pipeline import params
    from pipeline.run import run as run_graph

    workspace = _find(context)
    workspaces.require_writable(workspace)
    params.override(workspace, parse_assignments(values))
    params.read(workspace)
    run_graph(workspace, stages or None)


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
@click.pass_context
def status(context: click.Context) -> None:
    """What is ingested, which stages are up to date, and how good the current encoder is."""
    from pipeline.status import describe_workspace

    click.echo(describe_workspace(_find(context)))


@simclr.command()
@click.argument("directory", type=click.Path(path_type=Path), default=Path("demo"))
def demo(directory: Path) -> None:
    """Run everything on a bundled sample of Fashion-MNIST with some damaged files among it; takes some minutes.

    \b
    Example: simclr demo demo
    """
    from pipeline.demo import run_demo

    click.echo(run_demo(directory))


@simclr.command()
@click.option("--port", default=3000, show_default=True, help="On 127.0.0.1.")
@click.pass_context
def ui(context: click.Context, port: int) -> None:
    """Open the Dagster UI of the workspace on this machine; stop it with Ctrl-C."""
    from dagster import DagsterInstance

    from pipeline.run import reap

    workspace = _find(context)
    workspaces.require_writable(workspace)
    with DagsterInstance.from_config(str(workspace.root)) as instance:
        reap(instance)
    os.environ |= {"DAGSTER_HOME": str(workspace.root), workspaces.VARIABLE: str(workspace.root)}
    dagster = workspaces.executable("dagster")
    os.chdir(workspace.root)
    arguments = ["dev", "--module-name", "pipeline.definitions", "--host", "127.0.0.1", "--port", str(port)]
    sys.stdout.flush()
    os.execv(dagster, [dagster, *arguments])  # noqa: S606  # Ctrl-C must reach Dagster itself


@simclr.command()
@click.pass_context
def doctor(context: click.Context) -> None:
    """Check this machine and the workspace, and name the command that mends what is wrong."""
    from pipeline.doctor import examine

    named = context.find_root().obj
    findings = examine(named)
    for finding in findings:
        click.echo(str(finding))
    if not all(finding.healthy for finding in findings):
        raise click.exceptions.Exit(1)
