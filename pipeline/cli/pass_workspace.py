"""The workspace that a command works on: the one that ``simclr --workspace`` names, or the nearest one."""

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

import click

from pipeline import workspace as workspaces
from pipeline.workspace import Workspace

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def pass_workspace(command: Callable[Concatenate[Workspace, Parameters], Result]) -> Callable[Parameters, Result]:
    """Decorator: call ``command`` with the workspace as its first argument."""

    @wraps(command)
    def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        return command(workspaces.find(click.get_current_context().find_root().obj), *args, **kwargs)

    return call
