"""Releases the candidate in models/bundle, and switches between released versions.

    simclr release list | promote VERSION | rollback [VERSION] | diff VERSION VERSION

A release is a sequence of steps, each of which does nothing when it has been done: killed between any two and run
again, it goes on. Data go first, then the proof that others can get them, then the tags, then the servers:

1. push to the DVC remote     2. commit on the branch runs/<bundle>     3. verify from a fresh clone
4. tag the version            5. tag it as the one that serves          6. push branch and tags to the origin
7. bundle into the registry   8. CURRENT

The tags are the truth, and the registry follows them.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from deploy.artifact import identity, verify
from deploy.errors import ArtifactError
from deploy.failpoint import failpoint
from pipeline.dvc import client, remote
from pipeline.errors import ReleaseError
from pipeline.git import Git
from pipeline.release import candidate, champion, registry, versions
from pipeline.release.champion import BUNDLE, PRETRAINED
from pipeline.release.facts import Difference, Facts, Listing, card, difference, facts
from pipeline.release.versions import History, Version
from pipeline.workspace import Workspace

PUSHED = "refs/simclr/pushed"  # the latest switch that the origin is known to have


@dataclass(frozen=True)
class Released:
    """What serves now, what served before, and what a person should know beside that."""

    version: str
    commit: str
    bundle: str
    before: str | None
    changed: bool
    registry: Path
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        was = f", was {self.before}" if self.before else ""
        state = f"serves now{was}" if self.changed else "serves already; nothing to do"
        return "; ".join([f"{self.version} (bundle {self.bundle[:12]}) {state}, from {self.registry}", *self.notes])


def release(workspace: Workspace, passed: Collection[str] = ()) -> Released:
    """Release the candidate in models/bundle, or complete a release that was interrupted.

    A candidate that was released before is not released again: after a rollback, what was rolled back to stays.

    Args:
        passed: names of the gates that it has just passed, whatever they have recorded before.

    Raises:
        ReleaseError: a gate has refused it, or the workspace has changed since it was made, or Git fails.
        DvcError: its data cannot be sent to the remote, or do not come back from there as they are.
        BusyError: another process holds the workspace or the registry.
        ArtifactError: models/bundle is missing or damaged.
    """
    root = workspace.root
    with registry.alone(workspace, "release"), client.exclusive(root, "release"):
        git = champion.repository(workspace)
        verify(root / BUNDLE)
        bundle = identity(root / BUNDLE)
        history = champion.history(workspace, git)
        notes: list[str] = []
        if history.of_bundle(bundle) is None:
            _refuse_rejected(workspace, passed)
            notes += candidate.register(workspace, git, bundle)
            history = champion.history(workspace, git)
        version = history.of_bundle(bundle)
        assert version is not None
        before = history.current
        if version.name not in history.served:
            versions.assign(git, history, version)
            history = champion.history(workspace, git)
        failpoint("release.assigned")
        _push_tags(git, history)
        failpoint("release.pushed_tags")
        return _mirror(workspace, git, history, before.name if before else None, tuple(notes))


def promote(workspace: Workspace, version: str) -> Released:
    """Let a released version serve, whatever the gates have said since.

    Raises:
        ReleaseError: there is no such version, or Git fails.
        DvcError: its bundle is in neither the registry, the cache nor the remote.
        BusyError: another process releases or switches. A training may be going on.
    """
    return _switch(workspace, version, "promotion")


def rollback(workspace: Workspace, version: str | None = None) -> Released:
    """Let the version before the present one serve, or the one that is named, until something new is released.

    Raises:
        ReleaseError: nothing served before; else as in ``promote``.
    """
    return _switch(workspace, version, "rollback")


def listing(workspace: Workspace) -> Listing:
    """Every version with its numbers, the one that serves, and the rejected candidates."""
    git = champion.repository(workspace)
    history = champion.history(workspace, git)
    current = history.current
    return Listing(
        tuple(facts(git, history, version) for version in history.versions),
        current.name if current else None,
        registry.current(workspace),
        tuple(registry.rejections(workspace)),
    )


def diff(workspace: Workspace, one: str, other: str) -> Difference:
    """What changed between two versions: images, parameters, accuracies, code.

    Raises:
        ReleaseError: there is no such version.
    """
    git = champion.repository(workspace)
    history = champion.history(workspace, git)
    return difference(git, facts(git, history, history.find(one)), facts(git, history, history.find(other)))


def describe(workspace: Workspace, version: str) -> Facts:
    """Everything that is told of a version.

    Raises:
        ReleaseError: there is no such version.
    """
    git = champion.repository(workspace)
    history = champion.history(workspace, git)
    return facts(git, history, history.find(version))


def _refuse_rejected(workspace: Workspace, passed: Collection[str]) -> None:
    """So that nobody goes around a gate by releasing alone."""
    refused = registry.rejection(workspace, identity(workspace.root / PRETRAINED)[:12])
    if refused and not set(refused.gate.split(", ")) <= set(passed):
        raise ReleaseError(
            f"candidate {refused.candidate} was rejected by {refused.gate}: {refused.reason}; "
            "run its gates again with `simclr run`, which releases it if they pass"
        )


def _switch(workspace: Workspace, name: str | None, purpose: str) -> Released:
    with registry.alone(workspace, purpose):
        git = champion.repository(workspace)
        history = champion.history(workspace, git)
        version = history.find(name) if name else history.previous()
        before = history.current
        _publish(workspace, git, history, version)  # first: what cannot be got must not be promised by a tag
        failpoint("release.published")
        if before != version:
            versions.assign(git, history, version)
            history = champion.history(workspace, git)
        failpoint("release.assigned")
        done = _mirror(workspace, git, history, before.name if before else None, ())
        try:  # last: servers do not wait for the origin
            _push_tags(git, history)
        except ReleaseError as error:
            note = f"the origin does not know yet ({error}); the next release tells it"
            return replace(done, notes=(note,))
        return done


def _mirror(workspace: Workspace, git: Git, history: History, before: str | None, notes: tuple[str, ...]) -> Released:
    """Steps 7 and 8: let the registry say what the tags say."""
    from pipeline.params import read

    version = history.current
    assert version is not None
    _publish(workspace, git, history, version)
    failpoint("release.published")
    changed = registry.current(workspace) != version.name
    if changed:
        registry.switch(workspace, version.name)
    failpoint("release.switched")
    registry.prune(workspace, read(workspace).storage.keep_releases)
    done = Released(
        version.name,
        version.commit,
        version.bundle,
        before if before != version.name else history.before(version.name),
        changed,
        registry.folder(workspace),
        notes,
    )
    if changed:
        _announce(workspace, done)
    return done


def _publish(workspace: Workspace, git: Git, history: History, version: Version) -> None:
    """Put a version's bundle and its record into the registry, unless they are there."""
    if not version.bundle:
        raise ReleaseError(
            f"{version.name}: tagged by hand on {version.commit[:10]}, which no release has made; it names no bundle"
        )
    if not registry.holds(workspace, version.name, version.bundle):
        present = workspace.root / BUNDLE
        if _is(present, version.bundle):
            registry.publish_bundle(workspace, version.name, present, version.bundle)
        else:
            with remote.clone(git, version.commit, workspace.scratch / candidate.CLONE, (BUNDLE,)) as tree:
                registry.publish_bundle(workspace, version.name, tree / BUNDLE, version.bundle)
    if registry.recorded(workspace, version.name):
        return
    about = facts(git, history, version)
    model_card = registry.folder(workspace) / version.name / "MODEL_CARD.md"
    text = model_card.read_text(encoding="utf-8") if model_card.exists() else ""
    registry.record(workspace, version.name, dict(about), card(about, text))


def _is(directory: Path, bundle: str) -> bool:
    try:
        verify(directory)
    except ArtifactError:
        return False
    return identity(directory) == bundle


def _push_tags(git: Git, history: History) -> None:
    """Tell the origin, if there is one, everything that it does not know; also what an earlier attempt could not."""
    newest = git.reference(f"refs/tags/{history.artifact}#{versions.STAGE}#{history.switches}")
    if newest and git.has_origin() and git.reference(PUSHED) != newest:
        git.push(history.references)
        git.set_reference(PUSHED, newest)


def _announce(workspace: Workspace, done: Released) -> None:
    from pipeline.alerts import send

    send(workspace, "champion_changed", f"{done.version} serves", str(done))
