"""Writes the serving registry: the folder from which servers take what they serve (read side: ``deploy.registry``).

    registry/v0.0.2/                     a released bundle
    registry/v0.0.2.sig                  its signature, if SIMCLR_SIGNING_KEY_FILE names a key
    registry/CURRENT                     the version that serves
    registry/releases/v0.0.2.json .md    what it is, for programs and for people
    registry/rejected/<candidate>.json   a candidate that a gate or a person refused, and why
    registry/waiting/, decided/          candidates on which a person decides (``pipeline.waiting``)

It mirrors the tags (``pipeline.release.versions``) and can be rebuilt from them and the DVC remote at any time.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from deploy.artifact import MANIFEST, publish, verify, write_atomically
from deploy.errors import ArtifactError, DeployError, RegistryError
from deploy.lock import held
from deploy.registry import CURRENT, VERSION, version
from deploy.trust.signature import is_signed, sign, signature_of
from pipeline.environment import SIGNING_KEY_FILE
from pipeline.errors import BusyError, ReleaseError
from pipeline.params import read
from pipeline.waiting import DECIDED, WAITING
from pipeline.workspace import Workspace, expand_home


@dataclass(frozen=True)
class Rejection:
    """A candidate that a gate refused; ``candidate`` is the beginning of the identity of models/pretrained."""

    candidate: str
    gate: str
    reason: str
    run_id: str
    recorded: str
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Registry:
    """The registry in the folder ``root``."""

    root: Path

    @contextmanager
    def locked(self, purpose: str) -> Iterator[None]:
        """Let no other process release or switch during the block; a training may run.

        Raises:
            BusyError: another process holds the registry.
        """

        def busy(holder: str) -> BusyError:
            return BusyError(f"{self.root}: busy with the {holder}; wait until it ends and try again")

        with held(self.root / ".lock", f"{purpose} of process {os.getpid()}", busy):
            yield

    def versions(self) -> list[str]:
        """The versions whose bundles are kept, the lowest first."""
        found = [path.name for path in self.root.glob("v*") if VERSION.fullmatch(path.name) and path.is_dir()]
        return sorted(found, key=lambda name: tuple(map(int, name[1:].split("."))))

    def current(self) -> str | None:
        """The version that serves; None if nothing is served or ``CURRENT`` cannot be read."""
        try:
            return version(self.root)
        except RegistryError:
            return None

    def holds(self, name: str, bundle: str) -> bool:
        """Whether the bundle of this version is there, as it was published.

        Raises:
            ReleaseError: another bundle has the name of this version.
        """
        try:
            found = verify(self.root / name)
        except ArtifactError:
            return False
        if found != bundle:
            raise ReleaseError(
                f"{self.root / name}: holds bundle {found[:12]}, but {name} is {bundle[:12]}; was export.name "
                "changed, or does another workspace use this registry? set release.registry to another folder"
            )
        return True

    def publish_bundle(self, name: str, source: Path, bundle: str) -> None:
        """Copy a bundle into the registry, complete or not at all.

        Raises:
            ReleaseError: ``source`` holds another bundle than the id says.
            ArtifactError: ``source`` is damaged.
        """
        found = verify(source)
        if found != bundle:
            raise ReleaseError(f"{source}: is bundle {found[:12]}, but {name} is {bundle[:12]}")
        with publish(self.root / name, replace=True) as work:
            shutil.copytree(source, work, dirs_exist_ok=True, ignore=_except_own_manifest(source))
            for path in (work, *work.rglob("*")):
                path.chmod(0o755 if path.is_dir() else 0o644)  # what comes from DVC's cache cannot be written

    def sign(self, name: str, bundle: str) -> None:
        """Sign a bundle that is there, if the environment names a key. A valid signature by any key stays.

        Raises:
            ReleaseError: the bundle is not the one of this id any more, or the key cannot sign.
        """
        if not (key := os.environ.get(SIGNING_KEY_FILE)):
            return
        directory = self.root / name
        manifest = (directory / MANIFEST).read_bytes()
        if hashlib.sha256(manifest).hexdigest() != bundle:
            raise ReleaseError(f"{directory}: was changed meanwhile, and is not signed; release or promote it again")
        try:
            if not is_signed(directory, manifest):
                write_atomically(signature_of(directory), sign(manifest, expand_home(key)))
        except DeployError as error:
            raise ReleaseError(
                f"{SIGNING_KEY_FILE}: {error}; {name} is not signed, and servers keep what they have"
            ) from None

    def unsigned(self, name: str) -> tuple[str, ...]:
        """A warning if this version is not signed and another is: servers with ``--trust`` do not take it."""
        signed = [other for other in self.versions() if signature_of(self.root / other).exists()]
        if not signed or name in signed:
            return ()
        advice = f"set {SIGNING_KEY_FILE} and promote {name} again"
        return (f"warning: {name} is not signed, and {signed[-1]} is; {advice}",)

    def switch(self, name: str) -> None:
        """Let servers take this version from now on; its bundle is there."""
        write_atomically(self.root / CURRENT, f"{name}\n")

    def prune(self, keep: int) -> None:
        """Remove the bundles of the lowest versions until ``keep`` are left in addition to the served one."""
        serving = self.current()
        others = [name for name in self.versions() if name != serving]
        for name in others[: max(0, len(others) - keep)]:
            self._take_away(name)
        self._remove_abandoned()

    def remove(self, name: str) -> None:
        """Remove the bundle of a version that does not serve; its record stays."""
        if (self.root / name).exists():
            self._take_away(name)
        self._remove_abandoned()

    def _take_away(self, name: str) -> None:
        (self.root / name).rename(self.root / f".{name}.partial-pruned")  # never half a bundle
        signature_of(self.root / name).unlink(missing_ok=True)

    def _remove_abandoned(self) -> None:
        for folder in (
            self.root,
            *(self.root / name for name in ("releases", WAITING, DECIDED)),
        ):  # what killed releases left: a bundle, a file
            for abandoned in folder.glob(".*.partial-*"):
                shutil.rmtree(abandoned, ignore_errors=True) if abandoned.is_dir() else abandoned.unlink()

    def has_record(self, name: str) -> bool:
        """Whether the registry has a record of this version."""
        return (self.root / "releases" / f"{name}.md").exists()

    def record(self, name: str, facts: str, card: str) -> None:
        """Write the record of a version, for programs and for people."""
        releases = self.root / "releases"
        write_atomically(releases / f"{name}.json", facts)
        write_atomically(releases / f"{name}.md", card)

    def model_card(self, name: str) -> str:
        """The model card in the bundle of a version; empty if it has none."""
        path = self.root / name / "MODEL_CARD.md"
        return path.read_text(encoding="utf-8") if path.exists() else ""

    def reject(self, candidate: str, gate: str, reason: str, run_id: str, metrics: Mapping[str, float]) -> Rejection:
        """Record that a gate refused a candidate; several gates of one run make one record."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        numbers = dict(metrics)
        before = self.rejection(candidate)
        if before and before.run_id == run_id and gate not in before.gate.split(", "):
            gate, reason, numbers = f"{before.gate}, {gate}", f"{before.reason}; {reason}", before.metrics | numbers
        refused = Rejection(candidate, gate, reason, run_id, now, numbers)
        content = json.dumps(asdict(refused), indent=2, ensure_ascii=False) + "\n"
        write_atomically(self.root / "rejected" / f"{candidate}.json", content)
        return refused

    def rejection(self, candidate: str) -> Rejection | None:
        """The record of a candidate that was refused, if it was."""
        return next((found for found in self.rejections() if found.candidate == candidate), None)

    def rejections(self) -> list[Rejection]:
        """Every candidate that was refused, the latest last.

        Raises:
            ReleaseError: a record cannot be read.
        """
        found = []
        for path in (self.root / "rejected").glob("*.json"):
            try:
                found.append(Rejection(**json.loads(path.read_text(encoding="utf-8"))))
            except (OSError, ValueError, TypeError) as error:
                raise ReleaseError(f"{path}: not the record of a rejected candidate ({error}); remove it") from None
        return sorted(found, key=lambda rejection: (rejection.recorded, rejection.candidate))


def open_registry(workspace: Workspace) -> Registry:
    """The registry of a workspace: ``release.registry`` in params.yaml."""
    return Registry(workspace.root / read(workspace).release.registry)


def _except_own_manifest(source: Path) -> Any:
    """``publish`` writes the manifest again, from the same files, and so the same."""

    def ignore(directory: str, _: list[str]) -> list[str]:
        return [MANIFEST] if Path(directory) == source else []

    return ignore
