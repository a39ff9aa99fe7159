"""What many commands have: the workspace that a command works on, and its answer for a program, or for a person."""

import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import click

from pipeline import workspace as workspaces
from pipeline.workspace import Workspace

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
Command = TypeVar("Command", bound=Callable[..., Any])

NO_COLOR = "NO_COLOR"  # https://no-color.org
COLORS = {
    "ok": "green",
    "warn": "yellow",
    "FAIL": "red",
    "next": "cyan",
    "rejected": "yellow",
    "waiting": "yellow",
    "not sent": "yellow",
}
"""Of lines that begin with these words."""

as_json = click.option("--json", "as_json", is_flag=True, help="For a program: as JSON.")


def workspace_option(command: Command) -> Command:
    """Decorator: ``simclr --workspace DIR status`` may also be ``simclr status --workspace DIR``."""
    option = click.option(
        "--workspace",
        type=click.Path(path_type=Path),
        expose_value=False,
        is_eager=True,
        callback=_keep,
        help="Default: the nearest workspace at or above this folder.",
    )
    return option(command)


def pass_workspace(command: Callable[Concatenate[Workspace, Parameters], Result]) -> Callable[Parameters, Result]:
    """Decorator: call ``command`` with the workspace as its first argument: the one that is named, or the nearest."""

    @wraps(command)
    def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        return command(workspaces.find(click.get_current_context().find_root().obj), *args, **kwargs)

    return workspace_option(call)


def show(text: str) -> None:
    """Print lines for a person, in color on a terminal: where to look first."""
    if not text:
        return
    color = False if os.environ.get(NO_COLOR) else None
    click.echo("\n".join(map(_painted, text.splitlines())), color=color)


def _painted(line: str) -> str:
    for words, color in COLORS.items():
        if line.startswith(f"{words} "):
            return click.style(words, fg=color, bold=True) + line[len(words) :]
    return line


def _keep(context: click.Context, _: click.Parameter, given: Path | None) -> None:
    root = context.find_root()
    if given is not None and root.obj is not None and root.obj != given:
        raise click.UsageError(f"--workspace is given twice, as {root.obj} and {given}; give it once")
    root.obj = root.obj if given is None else given
