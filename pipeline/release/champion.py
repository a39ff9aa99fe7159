"""The champion: the released encoder that the next candidate has to beat, as an explicit input of the graph.

models/champion is a copy of what is released (``simclr_core.champion`` says what is in it). It moves only at the
beginning of a run that has something to compute: then it is pinned, so that what a finished run has been compared with
stays what it was. A candidate that waits for a person while another version has begun to serve is compared again.
"""

import json
import shutil
from dataclasses import asdict
from pathlib import Path, PurePosixPath

from deploy.artifact import identity, publish, verify
from deploy.errors import ArtifactError
from deploy.failpoint import failpoint
from pipeline import waiting
from pipeline.dvc import client, remote
from pipeline.dvc.project import CHAMPION
from pipeline.errors import DvcError, ReleaseError
from pipeline.release.facts import reports
from pipeline.release.releases import Releases, open_releases
from pipeline.release.versions import Version
from pipeline.workspace import Workspace
from simclr_core.champion import Champion
from simclr_core.reports import known

BUNDLE, PRETRAINED = "models/bundle", "models/pretrained"


def pin(workspace: Workspace) -> Champion:
    """Bring models/champion up to date with what is released, if a run has something to compute, and track it.

    Raises:
        ReleaseError: there is no Git repository.
        DvcError: the released data can be got neither from the cache nor from the remote.
        BusyError: another process holds the workspace.
    """
    with client.exclusive(workspace.root, "champion"):
        target = workspace.root / CHAMPION
        pinned = _read(target) or _restore(workspace.root, target)
        releases = open_releases(workspace)
        now = releases.history.current
        moved = pinned is not None and (now.name if now else None) != pinned.version
        if pinned is None or (moved and (_waits(releases, now) or client.changed_stages(workspace.root))):
            pinned = _write(releases, target, now)
        failpoint("champion.written")
        client.add(workspace.root, target)
    return pinned


def pin_first(workspace: Workspace) -> None:
    """In a workspace that never ran, pin what is released, which is nothing as a rule: then `dvc repro` can run."""
    target = workspace.root / CHAMPION
    if not target.exists() and not target.with_name(f"{target.name}.dvc").exists():
        pin(workspace)


def _waits(releases: Releases, now: Version | None) -> bool:
    """Whether a person was asked about the candidate of the workspace, compared with what does not serve any more."""
    try:
        bundle = identity(releases.root / BUNDLE)
    except ArtifactError:
        return False
    return waiting.is_outdated(releases.registry.root, bundle, now.name if now else None)


def _read(target: Path) -> Champion | None:
    """None where there is nothing, or nothing that can be trusted."""
    try:
        verify(target)
    except (ArtifactError, OSError):
        return None
    return known(target.parents[1], Champion)


def _restore(root: Path, target: Path) -> Champion | None:
    """What was pinned, when only the folder is gone, as in a fresh clone."""
    if target.exists() or not target.with_name(f"{target.name}.dvc").exists():
        return None
    for command in ("checkout", "pull"):
        try:
            client.execute(root, command, f"{CHAMPION}.dvc")
        except DvcError:
            continue
        return _read(target)
    return None


def _write(releases: Releases, target: Path, now: Version | None) -> Champion:
    if now is None:
        pinned = Champion(None)
        with publish(target, replace=True) as work:
            _write_card(work, pinned)
        return pinned
    (about,) = reports(releases.git, [now.commit])
    # What it was itself compared with, and how it was exported, is of no use to its successor.
    kept = {name: about[name] for name in about if name not in ("compare", "export", "summary")}
    clone = releases.workspace.scratch / "champion"
    with remote.clone(releases.git, now.commit, clone, (BUNDLE, PRETRAINED)) as tree:
        verify(tree / PRETRAINED)
        bundle = verify(tree / BUNDLE)
        if now.bundle and bundle != now.bundle:
            raise ReleaseError(f"{now.name}: its commit says bundle {now.bundle[:12]}, its data are {bundle[:12]}")
        pinned = Champion(now.name, now.commit, bundle, kept)
        with publish(target, replace=True) as work:
            _write_card(work, pinned)
            for path in (BUNDLE, PRETRAINED):
                copy = shutil.copytree(tree / path, work / PurePosixPath(path).name)
                for file in copy.rglob("*"):
                    file.chmod(0o755 if file.is_dir() else 0o644)  # what comes from DVC's cache cannot be written
    return pinned


def _write_card(work: Path, champion: Champion) -> None:
    text = json.dumps(asdict(champion), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    (work / "champion.json").write_text(text, encoding="utf-8")
