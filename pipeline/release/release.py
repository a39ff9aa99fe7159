"""Releases the candidate in models/bundle, and switches between released versions.

    simclr release list | promote VERSION | rollback [VERSION] | diff VERSION VERSION

A release is a sequence of steps, each of which does nothing when it has been done: killed between any two and run
again, it continues. Data go first, then the proof that others can get them, then the tags, then the servers:

1. push to the DVC remote     2. commit on the branch runs/<bundle>     3. verify from a fresh clone
4. tag the version            5. tag it as the one that serves          6. push branch and tags to the origin
7. bundle into the registry, and its signature if there is a key     8. CURRENT

The tags are the truth, and the registry follows them.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from deploy.artifact import identity, verify
from deploy.errors import ArtifactError
from deploy.failpoint import failpoint
from deploy.moved import keep_callable
from pipeline import alerts
from pipeline.dvc import client, remote
from pipeline.errors import ReleaseError
from pipeline.git import Git
from pipeline.release.candidate import CLONE, register
from pipeline.release.champion import BUNDLE, PRETRAINED
from pipeline.release.facts import Difference, Facts, Listing, card, difference, facts
from pipeline.release.registry import Registry
from pipeline.release.releases import Releases, locked_releases, open_releases
from pipeline.release.versions import STAGE, History, Version
from pipeline.workspace import Workspace
from simclr_core.evaluation_reports import CompareReport
from simclr_core.reports import known

keep_callable(__name__)

RENAMED_GATES = {"probe_beats_random_init": "beats_baselines"}  # as records of earlier versions have them
PUSHED = "refs/simclr/pushed"  # the latest switch that the origin is known to have


@dataclass(frozen=True)
class Released:
    """What serves now, what served before, and what else a person should know."""

    version: str
    commit: str
    bundle: str
    before: str | None
    changed: bool
    registry: Path
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        name, instead = (
            f"{self.version} (bundle {self.bundle[:12]})",
            f" instead of {self.before}" if self.before else "",
        )
        changed = f"{name} is served now{instead}, from {self.registry}"
        same = f"{name} is served from {self.registry} as before; nothing has changed"
        return "; ".join([changed if self.changed else same, *self.notes])


NONE: Mapping[str, str] = MappingProxyType({})


def release(workspace: Workspace, passed: Collection[str] = (), gates: Mapping[str, str] = NONE) -> Released:
    """Release the candidate in models/bundle, or complete a release that was interrupted.

    A candidate that was released before is not released again: after a rollback, what was rolled back to stays.

    Args:
        passed: names of the gates that it has just passed, whatever they have recorded before.
        gates: what each gate says of it, in a sentence, to be recorded in the commit and in the registry.

    Raises:
        ReleaseError: a gate has refused it, or the workspace has changed since it was made, or Git fails.
        DvcError: its data cannot be sent to the remote, or do not come back from there as they are.
        BusyError: another process holds the workspace or the registry.
        ArtifactError: models/bundle is missing or damaged.
    """
    with locked_releases(workspace, "release") as releases, client.exclusive(workspace.root, "release"):
        bundle = verify(workspace.root / BUNDLE)
        history = releases.history
        notes: tuple[str, ...] = ()
        if history.of_bundle(bundle) is None:
            pretrained = identity(workspace.root / PRETRAINED)
            gates = {**gates, **_refuse_rejected(releases.registry, pretrained, passed)}
            history, notes = register(releases, bundle, pretrained, gates)
            compare = known(workspace.root, CompareReport)
            notes += (compare.unjudged,) if compare and compare.unjudged else ()
        before = history.current
        version = history.of_bundle(bundle)
        assert version is not None
        if version.name not in history.served:
            history = history.assign(releases.git, version)
        elif version != before:
            notes += (
                f"the candidate is {version.name}, which served before and is not released again; "
                f"`simclr release promote {version.name}` lets it serve",
            )
        failpoint("release.assigned")
        _push_tags(releases.git, history)
        failpoint("release.pushed_tags")
        _publish(releases, history, history.serving)
        return _serve(releases, history, before, notes)


def promote(workspace: Workspace, version: str) -> Released:
    """Let a released version serve, without asking the gates again.

    Raises:
        ReleaseError: there is no such version, or Git fails.
        DvcError: its bundle is in neither the registry, the cache nor the remote.
        BusyError: another process releases or switches. A training may be running.
    """
    return _switch(workspace, version, "promotion")


def rollback(workspace: Workspace, version: str | None = None) -> Released:
    """Let the version before the present one serve, or the one that is named, until something new is released.

    Without a name, one that was killed before it served is completed.

    Raises:
        ReleaseError: nothing served before; else as in ``promote``.
    """
    return _switch(workspace, version, "rollback")


def withdraw(workspace: Workspace, version: str, why: str) -> str:
    """Take a version back for good: no one can let it serve any more, and the registry has its bundle no more.

    Killed anywhere, the same command completes it.

    Returns:
        What was done, and what is left to do, for a person.

    Raises:
        ReleaseError: there is no such version, it serves, or Git fails.
        BusyError: another process releases or switches.
    """
    with locked_releases(workspace, "withdrawal") as releases:
        history, registry = releases.history, releases.registry
        if version not in history.withdrawn:
            found = history.find(version)
            if version in (registry.current(), history.current and history.current.name):
                raise ReleaseError(
                    f"{version}: serves; let another version serve first, with `simclr run`, "
                    "`simclr release rollback` or `simclr release promote VERSION`"
                )
            history.withdraw(releases.git, found, why)
            failpoint("release.withdrawn")
        registry.remove(version)
        failpoint("release.removed")
        if releases.git.has_origin():
            releases.git.push(history.references)
    return (
        f"{version} is withdrawn, and gone from {registry.root}; its commit and data stay in Git and DVC. If it shows "
        "a purged image, repeat `simclr purge`; a program that has loaded it keeps it until it ends"
    )


def list_versions(workspace: Workspace) -> Listing:
    """Every version with its numbers, the one that serves, and the rejected candidates."""
    releases = open_releases(workspace)
    history = releases.history
    current = history.current
    return Listing(
        tuple(facts(releases.git, history, history.versions)),
        current.name if current else None,
        releases.registry.current(),
        tuple(releases.registry.rejections()),
    )


def diff(workspace: Workspace, one: str, other: str) -> Difference:
    """What changed between two versions: images, parameters, accuracies, code.

    Raises:
        ReleaseError: there is no such version.
    """
    releases = open_releases(workspace)
    history = releases.history
    before, after = facts(releases.git, history, [history.find(name) for name in (one, other)])
    return difference(releases.git, before, after)


def describe(workspace: Workspace, version: str) -> Facts:
    """Everything that is known of a version.

    Raises:
        ReleaseError: there is no such version.
    """
    releases = open_releases(workspace)
    return facts(releases.git, releases.history, [releases.history.find(version)])[0]


def _refuse_rejected(registry: Registry, pretrained: str, passed: Collection[str]) -> dict[str, str]:
    """A release alone must not get around a gate. If the gates have passed since, what they said before is returned."""
    refused = registry.rejection(pretrained[:12])
    if refused and not {RENAMED_GATES.get(gate, gate) for gate in refused.gate.split(", ")} <= set(passed):
        raise ReleaseError(
            f"candidate {refused.candidate} was rejected by {refused.gate}: {refused.reason}; "
            "run its gates again with `simclr run`, which releases it if they pass"
        )
    return {f"{refused.gate}, before": f"refused, overridden since: {refused.reason}"} if refused else {}


def _switch(workspace: Workspace, name: str | None, purpose: str) -> Released:
    with locked_releases(workspace, purpose) as releases:
        history = releases.history
        version = history.find(name) if name else _interrupted(releases, history) or history.previous()
        before = history.current
        _publish(releases, history, version)  # first: a tag must not promise a version whose bundle is lost
        if before != version:
            history = history.assign(releases.git, version)
        failpoint("release.assigned")
        done = _serve(releases, history, before, ())
        try:  # last: servers do not wait for the origin
            _push_tags(releases.git, history)
        except ReleaseError as error:
            note = f"the origin does not have it yet ({error}); the next release pushes it"
            return replace(done, notes=(note,))
        return done


def _interrupted(releases: Releases, history: History) -> Version | None:
    """The earlier version that was switched to by its tag and not by CURRENT: a rollback that was killed, and that the
    same command completes. To go back from there would skip a version that has not served again yet."""
    *before, latest = history.served or ("",)
    return history.find(latest) if latest in before and releases.registry.current() == before[-1] else None


def _publish(releases: Releases, history: History, version: Version) -> None:
    """Step 7: put a version's bundle and its record into the registry, unless they are there."""
    registry = releases.registry
    if not version.bundle:
        raise ReleaseError(
            f"{version.name}: tagged by hand on {version.commit[:10]}, which no release made; it has no bundle"
        )
    if not registry.holds(version.name, version.bundle):
        present = releases.root / BUNDLE
        if _is_bundle(present, version.bundle):
            registry.publish_bundle(version.name, present, version.bundle)
        else:
            clone = releases.workspace.scratch / CLONE
            with remote.clone(releases.git, version.commit, clone, (BUNDLE,)) as tree:
                registry.publish_bundle(version.name, tree / BUNDLE, version.bundle)
    registry.sign(version.name, version.bundle)
    failpoint("release.signed")
    if not registry.has_record(version.name):
        (about,) = facts(releases.git, history, [version])
        registry.record(version.name, about.to_json(), card(about, registry.model_card(version.name)))
    failpoint("release.published")


def _serve(releases: Releases, history: History, before: Version | None, notes: tuple[str, ...]) -> Released:
    """Step 8: let the registry's CURRENT say what the tags say; the bundle is there."""
    version, registry = history.serving, releases.registry
    changed = registry.current() != version.name
    if changed:
        registry.switch(version.name)
    failpoint("release.switched")
    notes += registry.unsigned(version.name)
    registry.prune(releases.params.storage.keep_releases)
    replaced = before.name if before and before != version else history.before(version.name)
    done = Released(version.name, version.commit, version.bundle, replaced, changed, registry.root, notes)
    if changed:
        alerts.send(releases.workspace, "champion_changed", f"{done.version} serves", str(done))
    return done


def _is_bundle(directory: Path, bundle: str) -> bool:
    try:
        return verify(directory) == bundle
    except ArtifactError:
        return False


def _push_tags(git: Git, history: History) -> None:
    """Tell the origin, if there is one, everything that it does not know; also what an earlier attempt could not."""
    newest = git.reference(f"refs/tags/{history.artifact}#{STAGE}#{history.switches}")
    if newest and git.has_origin() and git.reference(PUSHED) != newest:
        git.push(history.references)
        git.set_reference(PUSHED, newest)
