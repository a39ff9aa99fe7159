"""Makes a version of the candidate in models/bundle: its data go to the remote, its code and numbers into a commit.

Nothing is tagged before a fresh clone has fetched and verified all of it.
"""

import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deploy.artifact import verify
from deploy.errors import ArtifactError
from deploy.failpoint import failpoint
from deploy.failure import killed_by
from pipeline.dvc import client, remote
from pipeline.errors import ReleaseError
from pipeline.git import Git
from pipeline.release.champion import BUNDLE, PRETRAINED
from pipeline.release.facts import branch
from pipeline.release.releases import Releases
from pipeline.release.versions import History, read_history
from pipeline.workspace import Workspace
from simclr_core import reports
from simclr_core.reports import ExportReport

CLONE = "release"  # in the scratch folder; one at a time, as the caller holds the registry


@dataclass(frozen=True)
class Made:
    """A candidate as a run has made it: identities of models/bundle and models/pretrained, and what each gate says."""

    bundle: str
    pretrained: str
    gates: Mapping[str, str]


def prepare(releases: Releases, made: Made) -> tuple[History, str, tuple[str, ...]]:
    """Push, commit, verify: all that a version needs but its tag. The caller holds the workspace and the registry.

    Returns:
        The history, which has a version of the bundle if it was released from another clone; the commit; and what a
        person should know.

    Raises:
        ReleaseError: the workspace has changed since the candidate was made, a fresh clone gives something else, or Git
            fails.
        DvcError: the data cannot be sent to the remote, or do not come back from there as they are.
    """
    git, bundle = releases.git, made.bundle
    _require_current(releases.root)
    files, notes = _push_data(releases)
    failpoint("release.pushed")
    history = fetch_history(releases)
    if known := history.of_bundle(bundle):
        return history, known.commit, notes
    if withdrawn := [name for name, taken in history.withdrawn.items() if taken == bundle]:
        raise ReleaseError(
            f"bundle {bundle[:12]} was withdrawn as {withdrawn[0]}, and is not released again; train another encoder"
        )
    commit = git.commit(files, _message(releases.workspace, bundle, made.gates), branch(bundle))
    failpoint("release.committed")
    verify_clone(releases, commit, bundle, made.pretrained)
    with _origin(git) as reachable:
        if reachable:  # before any tag, so that an origin that takes nothing from us is found out in time
            git.push([f"+refs/heads/{branch(bundle)}"])
    failpoint("release.verified")
    return history, commit, notes


def fetch_history(releases: Releases) -> History:
    """What the tags say, those of the origin too, so that no name is given twice."""
    git, history = releases.git, releases.history
    with _origin(git) as reachable:
        if not reachable:
            return history
        git.fetch(history.references)
        return read_history(git, history.artifact)


def _require_current(root: Path) -> None:
    """Nothing has changed since the candidate was made, and what will be committed holds no secret."""
    stale = client.changed_stages(root)
    if stale:
        raise ReleaseError(f"{', '.join(sorted(stale))}: changed since the candidate was made; run `simclr run` first")
    secrets = remote.committed_secrets(root)
    if secrets:
        raise ReleaseError(
            f".dvc/config: holds {', '.join(secrets)}, and is committed; move it with `dvc remote modify --local`, "
            "remove it there, and consider it known to everyone with access to the repository"
        )


@contextmanager
def _origin(git: Git) -> Iterator[bool]:
    """Whether there is an origin; an error of it, in the block, says what can be done."""
    try:
        yield git.has_origin()
    except ReleaseError as error:
        raise ReleaseError(
            f"Git cannot use the remote `origin` ({error}); nothing was tagged. Give this account the right to "
            "push there, or keep the releases on this machine: `git remote rename origin upstream`"
        ) from None


def _push_data(releases: Releases) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Send the data to the remote, if there is one.

    Returns:
        The files that a commit of this state must have, and what a person should know.
    """
    root = releases.root
    if remote.find_remote(root):
        remote.push(root)
        return remote.list_committed(root), ()
    advice = "`dvc remote add --default NAME URL` gives it one"
    if releases.params.release.require_remote:
        raise ReleaseError(f"release.require_remote is set and the workspace has no DVC remote; {advice}")
    note = f"warning: the workspace has no DVC remote, so its data exist on this machine alone; {advice}"
    return remote.list_committed(root), (note,)


def _message(workspace: Workspace, bundle: str, gates: Mapping[str, str]) -> str:
    """Of the commit; ``release.facts`` reads the gates from it. Automation on the origin is asked to leave it alone:
    what it would do has been done."""
    source = reports.read(workspace.root, ExportReport).source
    said = "".join(f"Gate {name}: {' '.join(sentence.split())}\n" for name, sentence in gates.items())
    exported = f"The encoder was exported from {source}."
    return f"Results of run {bundle[:12]}\n\n{exported}\n\n{said}\nBundle: {bundle}\n\n[skip ci]\n"


def verify_clone(releases: Releases, commit: str, bundle: str, pretrained: str) -> None:
    """Fetch this commit as another machine would, with nothing of this one but its repository.

    Raises:
        ReleaseError: it gives something else.
        DvcError: the remote does not have the data.
    """
    git, folder = releases.git, releases.workspace.scratch / CLONE
    with remote.clone(git, commit, folder, (BUNDLE, PRETRAINED), fresh=True) as tree:
        for path, expected in ((BUNDLE, bundle), (PRETRAINED, pretrained)):
            try:
                found = verify(tree / path)
            except ArtifactError as error:
                raise ReleaseError(f"a fresh clone of {commit[:10]} gives a damaged {path}: {error}") from None
            if found != expected:
                raise ReleaseError(f"a fresh clone of {commit[:10]} gives another {path} than the workspace has")
        command = [sys.executable, "-P", "-m", "deploy.cli", "verify", str(tree / BUNDLE)]
        replay = subprocess.run(command, capture_output=True, text=True, check=False)
        if killed := killed_by(replay.returncode):
            raise ReleaseError(f"the bundle of {commit[:10]} could not be verified: the process {killed}")
        if replay.returncode != 0:
            raise ReleaseError(f"the bundle of {commit[:10]} does not verify: {' '.join(replay.stderr.split())}")
