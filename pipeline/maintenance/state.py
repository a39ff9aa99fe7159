"""The state of every run in two places: a commit on a branch of ours, and its data in the DVC remote.

    runs/<8 characters of the run's id>        one commit on HEAD: dvc.lock, *.dvc, params.yaml, overrides.csv, reports

So a night's images and a rejected candidate are not on this disk alone, and `git switch --detach runs/3f2a90c1`, then
`dvc checkout`, is the workspace as that run left it. HEAD, the index and the working tree stay as they are.

A remote or an origin that is down stops no training: ``.simclr/unkept.json`` says so to `status` and `doctor`, and the
next run sends what is missing, that of earlier runs included.
"""

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from deploy.artifact import write_atomically
from deploy.failpoint import failpoint
from pipeline.dvc import client, purged, remote
from pipeline.errors import BusyError, PipelineError
from pipeline.git import Git
from pipeline.maintenance.storage import BRANCHES
from pipeline.params import read
from pipeline.workspace import Workspace

UNKEPT = "unkept.json"  # in the workspace's scratch folder


@dataclass(frozen=True)
class Unkept:
    """What could not be sent: in which run for the last time, why, and since when."""

    run: str
    problem: str
    since: str

    def __str__(self) -> str:
        return f"the state of runs since {self.since} is on this disk alone: {self.problem}"


def keep(workspace: Workspace, run: str) -> Unkept | None:
    """Commit the present state to the branch of this run, and send its data to the remote, if there is one.

    A run asks a remote that was away once, at its beginning or later, and not after each stage again.

    Returns:
        What went wrong, None when all is in its place. Nothing is raised for what a training need not stop for.
    """
    before = unkept(workspace)
    if before and before.run == run:
        return before
    problem = ""
    try:
        with client.exclusive(workspace.root, "keep"):
            commit = _commit(workspace, run)
            failpoint("state.committed")
            _send(workspace, commit, all_runs=before is not None)
            failpoint("state.sent")
    except BusyError:  # such as an fsck that repairs a file: the next stage, or the next run, keeps this state
        return None
    except PipelineError as error:
        problem = str(error)
    if not problem:
        (workspace.scratch / UNKEPT).unlink(missing_ok=True)
        return None
    now = datetime.now(UTC).isoformat(timespec="minutes")
    after = Unkept(run, problem, before.since if before else now)
    write_atomically(workspace.scratch / UNKEPT, json.dumps(asdict(after), indent=2) + "\n")
    return after


def unkept(workspace: Workspace) -> Unkept | None:
    """What the last attempt could not send; None when all of it is where it belongs."""
    with suppress(OSError, ValueError, TypeError):
        return Unkept(**json.loads((workspace.scratch / UNKEPT).read_text(encoding="utf-8")))
    return None


def _commit(workspace: Workspace, run: str) -> str:
    """The reference that holds the state: a branch of an earlier run, where nothing has changed since."""
    root, release = workspace.root, read(workspace).release
    git = Git(root, release.author, release.email)
    git.require()
    files = remote.list_committed(root)
    if remote.committed_secrets(root):
        files = tuple(file for file in files if file != ".dvc/config")  # a release says what to do about it
    tree, head = git.write_tree(files), git.resolve("HEAD")
    known = git.run("for-each-ref", "--format=%(tree) %(parent) %(refname)", BRANCHES).splitlines()
    for line in known:
        if line.startswith(f"{tree} {head or ''} "):
            return line.rpartition(" ")[2]
    name = f"runs/{run[:8]}"
    git.commit(files, f"State of run {run[:8]}\n\nRun: {run}\n\n[skip ci]\n", name)
    return f"refs/heads/{name}"


def _send(workspace: Workspace, reference: str, all_runs: bool) -> None:
    root, release = workspace.root, read(workspace).release
    git = Git(root, release.author, release.email)
    if remote.find_remote(root):
        remote.send(root, _run_branches(git) if all_runs else (), purged.objects(root))
    if git.has_origin():
        git.push([f"+{name}" for name in (_run_branches(git) if all_runs else [reference])])


def _run_branches(git: Git) -> list[str]:
    return git.run("for-each-ref", "--format=%(refname)", BRANCHES).splitlines()
