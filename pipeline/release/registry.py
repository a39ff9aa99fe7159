"""Writes the serving registry: the folder from which servers take what they serve (read side: ``deploy.registry``).

    registry/v0.0.2/                     a released bundle
    registry/CURRENT                     the version that serves
    registry/releases/v0.0.2.json .md    what it is, for programs and for people
    registry/rejected/<candidate>.json   a candidate that a gate has refused, and why

It mirrors the tags (``pipeline.release.versions``) and can be made again from them and the DVC remote at any time.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from deploy.artifact import MANIFEST, identity, publish, verify, write_atomically
from deploy.errors import ArtifactError, RegistryError
from deploy.registry import CURRENT, VERSION, version
from pipeline.errors import BusyError, ReleaseError
from pipeline.workspace import Workspace
from simclr_core.lock import held


@dataclass(frozen=True)
class Rejection:
    """A candidate that a gate refused; ``candidate`` is the beginning of the identity of models/pretrained."""

    candidate: str
    gate: str
    reason: str
    run_id: str
    recorded: str
    metrics: dict[str, Any] = field(default_factory=dict)


def folder(workspace: Workspace) -> Path:
    """Where the registry of a workspace is: ``release.registry`` in params.yaml."""
    from pipeline.params import read  # brings pydantic and ruamel.yaml, which the code location does without

    return workspace.root / read(workspace).release.registry


@contextmanager
def alone(workspace: Workspace, purpose: str) -> Iterator[None]:
    """Hold the registry, so that nobody else releases or switches; a training may go on.

    Raises:
        BusyError: another process holds it.
    """
    place = folder(workspace)

    def busy(holder: str) -> BusyError:
        return BusyError(f"{place}: busy with the {holder}; wait for its end and try again")

    with held(place / ".lock", f"{purpose} of process {os.getpid()}", busy):
        yield


def versions(workspace: Workspace) -> list[str]:
    """The versions whose bundles are kept, the lowest first."""
    found = [path.name for path in folder(workspace).glob("v*") if VERSION.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda name: tuple(map(int, name[1:].split("."))))


def current(workspace: Workspace) -> str | None:
    """The version that serves; None when there is none, or the registry does not say it properly."""
    try:
        return version(folder(workspace))
    except RegistryError:
        return None


def holds(workspace: Workspace, name: str, bundle: str) -> bool:
    """Whether the bundle of this version is there, as it was published."""
    directory = folder(workspace) / name
    try:
        verify(directory)
    except ArtifactError:
        return False
    if identity(directory) != bundle:
        raise ReleaseError(
            f"{directory}: holds bundle {identity(directory)[:12]}, but {name} is {bundle[:12]}; was export.name "
            "changed, or does another workspace use this registry? set release.registry to another folder"
        )
    return True


def publish_bundle(workspace: Workspace, name: str, source: Path, bundle: str) -> None:
    """Copy a bundle into the registry, complete or not at all.

    Raises:
        ReleaseError: ``source`` holds another bundle than the id says.
        ArtifactError: ``source`` is damaged.
    """
    verify(source)
    if identity(source) != bundle:
        raise ReleaseError(f"{source}: is bundle {identity(source)[:12]}, but {name} is {bundle[:12]}")
    with publish(folder(workspace) / name, replace=True) as work:
        shutil.copytree(source, work, dirs_exist_ok=True, ignore=_except_own_manifest(source))
        for path in (work, *work.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)  # what comes from DVC's cache cannot be written


def switch(workspace: Workspace, name: str) -> None:
    """Let servers take this version from now on; its bundle is there."""
    write_atomically(folder(workspace) / CURRENT, f"{name}\n")


def prune(workspace: Workspace, keep: int) -> None:
    """Remove the bundles of the lowest versions until ``keep`` are left beside the one that serves."""
    serving = current(workspace)
    others = [name for name in versions(workspace) if name != serving]
    for name in others[: max(0, len(others) - keep)]:
        (folder(workspace) / name).rename(folder(workspace) / f".{name}.partial-pruned")  # never half a bundle
    for abandoned in folder(workspace).glob(".v*.partial-*"):
        shutil.rmtree(abandoned, ignore_errors=True)


def recorded(workspace: Workspace, name: str) -> bool:
    """Whether it is kept what this version is."""
    return (folder(workspace) / "releases" / f"{name}.md").exists()


def record(workspace: Workspace, name: str, facts: Mapping[str, Any], card: str) -> None:
    """Keep what a version is, for programs and for people."""
    releases = folder(workspace) / "releases"
    write_atomically(releases / f"{name}.json", json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
    write_atomically(releases / f"{name}.md", card)


def reject(
    workspace: Workspace, candidate: str, gate: str, reason: str, run_id: str, metrics: Mapping[str, Any]
) -> Rejection:
    """Record that a gate refused a candidate; several gates of one run make one record."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    numbers = dict(metrics)
    before = rejection(workspace, candidate)
    if before and before.run_id == run_id and gate not in before.gate.split(", "):
        gate, reason, numbers = f"{before.gate}, {gate}", f"{before.reason}; {reason}", before.metrics | numbers
    refused = Rejection(candidate, gate, reason, run_id, now, numbers)
    content = json.dumps(asdict(refused), indent=2, ensure_ascii=False) + "\n"
    write_atomically(folder(workspace) / "rejected" / f"{candidate}.json", content)
    return refused


def rejection(workspace: Workspace, candidate: str) -> Rejection | None:
    return next((one for one in rejections(workspace) if one.candidate == candidate), None)


def rejections(workspace: Workspace) -> list[Rejection]:
    """Every candidate that was refused, the latest last.

    Raises:
        ReleaseError: a record cannot be read.
    """
    found = []
    for path in (folder(workspace) / "rejected").glob("*.json"):
        try:
            found.append(Rejection(**json.loads(path.read_text(encoding="utf-8"))))
        except (OSError, ValueError, TypeError) as error:
            raise ReleaseError(f"{path}: not the record of a rejected candidate ({error}); remove it") from None
    return sorted(found, key=lambda one: (one.recorded, one.candidate))


def _except_own_manifest(source: Path) -> Any:
    """``publish`` writes it anew, from the same files, and so the same."""

    def ignore(directory: str, _: list[str]) -> list[str]:
        return [MANIFEST] if Path(directory) == source else []

    return ignore
