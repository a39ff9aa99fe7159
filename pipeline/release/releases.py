"""What every command on releases works with, opened once: parameters, Git repository and registry of a workspace."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.git import Git
from pipeline.params import Params, read
from pipeline.release.registry import Registry, open_registry
from pipeline.release.versions import History, read_history
from pipeline.workspace import Workspace


@dataclass(frozen=True)
class Releases:
    """The releases of a workspace; ``git`` commits and tags in the name of the bot."""

    workspace: Workspace
    params: Params
    git: Git
    registry: Registry
    history: History

    @property
    def root(self) -> Path:
        return self.workspace.root


def open_releases(workspace: Workspace) -> Releases:
    """Read the parameters and the tags, and make sure that Git works.

    Raises:
        ReleaseError: the workspace is not a Git repository, Git is not installed, or ``export.name`` cannot be a tag.
        ParamsError: params.yaml has a fault.
    """
    params = read(workspace)
    git = Git(workspace.root, params.release.author, params.release.email)
    git.require()
    history = read_history(git, params.export.name)
    return Releases(workspace, params, git, Registry(workspace.root / params.release.registry), history)


@contextmanager
def locked_releases(workspace: Workspace, purpose: str) -> Iterator[Releases]:
    """The same, while no other process releases or switches.

    Raises:
        BusyError: another process does.
    """
    with open_registry(workspace).locked(purpose):
        yield open_releases(workspace)
