"""Releases the candidate in models/bundle, and switches between released versions.

    simclr release list | approve CANDIDATE | promote VERSION | rollback [VERSION] | diff VERSION VERSION

A release is a sequence of steps, each of which does nothing when it has been done: killed between any two and run
again, it continues. Data go first, then the proof that others can get them, then the tags, then the servers:

1. push to the DVC remote     2. commit on the branch runs/<bundle>     3. verify from a fresh clone
4. tag the version            5. tag it as the one that serves          6. push branch and tags to the origin
7. bundle into the registry, and its signature if there is a key     8. CURRENT

Where a person has to approve the candidate (``approval``), it waits after step 3; the approval does the other steps.
The tags are the truth, and the registry follows them.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from types import MappingProxyType

from deploy.artifact import identity, verify
from deploy.failpoint import failpoint
from deploy.moved import keep_callable
from pipeline import waiting
from pipeline.dvc import client
from pipeline.errors import ReleaseError
from pipeline.release import approval
from pipeline.release.approval import Held
from pipeline.release.candidate import Made, prepare
from pipeline.release.champion import BUNDLE, PRETRAINED
from pipeline.release.facts import Difference, Facts, Listing, difference, facts
from pipeline.release.registry import Registry
from pipeline.release.releases import Releases, locked_releases, open_releases
from pipeline.release.serving import Released, complete, publish, push_tags, serve
from pipeline.release.versions import History, Version
from pipeline.workspace import Workspace
from simclr_core.evaluation_reports import CompareReport
from simclr_core.reports import known

keep_callable(__name__)

RENAMED_GATES = {"probe_beats_random_init": "beats_baselines"}  # as records of earlier versions have them


NONE: Mapping[str, str] = MappingProxyType({})


def release(workspace: Workspace, passed: Collection[str] = (), gates: Mapping[str, str] = NONE) -> Released:
    """The same as ``offer``, where the caller expects a release.

    Raises:
        ReleaseError: also if a person has to approve it first, or has rejected it.
    """
    done = offer(workspace, passed, gates)
    if isinstance(done, Held):
        raise ReleaseError(str(done))
    return done


def offer(workspace: Workspace, passed: Collection[str] = (), gates: Mapping[str, str] = NONE) -> Released | Held:
    """Release the candidate in models/bundle, or ask a person, or complete a release that was interrupted.

    A candidate that was released before is not released again: after a rollback, what was rolled back to stays.

    Args:
        passed: names of the gates that it has just passed, whatever they have recorded before.
        gates: what each gate says of it, in a sentence, to be recorded in the commit and in the registry.

    Returns:
        What serves; or the candidate that a person has to decide on, or has rejected.

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
            made = Made(bundle, identity(workspace.root / PRETRAINED), gates)
            if held := approval.find_held(releases, made):
                return held
            made = replace(made, gates={**gates, **_refuse_rejected(releases.registry, made.pretrained, passed)})
            history, commit, notes = prepare(releases, made)
            if history.of_bundle(bundle) is None:
                if reasons := approval.reasons_to_ask(releases, made.gates):
                    return approval.ask(releases, made, commit, reasons)
                history = history.register(releases.git, commit, bundle)
            failpoint("release.registered")
            compare = known(workspace.root, CompareReport)
            notes += (compare.unjudged,) if compare and compare.unjudged else ()
        version = history.of_bundle(bundle)
        assert version is not None
        if version.name in history.served and version != history.current:
            notes += (
                f"the candidate is {version.name}, which served before and is not released again; "
                f"`simclr release promote {version.name}` lets it serve",
            )
        done = complete(releases, history, version, notes)
        approval.settle(releases, bundle)
        return done


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
    """Every version with its numbers, the one that serves, and the candidates that wait or were rejected."""
    releases = open_releases(workspace)
    history = releases.history
    current = history.current
    return Listing(
        tuple(facts(releases.git, history, history.versions)),
        current.name if current else None,
        releases.registry.current(),
        tuple(releases.registry.rejections()),
        waiting.look(releases.registry.root, current.name if current else None),
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
        publish(releases, history, version)  # first: a tag must not promise a version whose bundle is lost
        if before != version:
            history = history.assign(releases.git, version)
        failpoint("release.assigned")
        done = serve(releases, history, before, ())
        try:  # last: servers do not wait for the origin
            push_tags(releases.git, history)
        except ReleaseError as error:
            note = f"the origin does not have it yet ({error}); the next release pushes it"
            return replace(done, notes=(note,))
        return done


def _interrupted(releases: Releases, history: History) -> Version | None:
    """The earlier version that was switched to by its tag and not by CURRENT: a rollback that was killed, and that the
    same command completes. To go back from there would skip a version that has not served again yet."""
    *before, latest = history.served or ("",)
    return history.find(latest) if latest in before and releases.registry.current() == before[-1] else None
