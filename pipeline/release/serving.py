"""The steps that follow a version's tag, each of which does nothing when it has been done: it serves when they end.

The caller has decided which version serves; here the registry follows the tags.
"""

from dataclasses import dataclass
from pathlib import Path

from deploy.artifact import verify
from deploy.errors import ArtifactError
from deploy.failpoint import failpoint
from pipeline import alerts
from pipeline.dvc import remote
from pipeline.errors import ReleaseError
from pipeline.git import Git
from pipeline.release.candidate import CLONE
from pipeline.release.champion import BUNDLE
from pipeline.release.facts import card, facts
from pipeline.release.releases import Releases
from pipeline.release.versions import STAGE, History, Version

PUSHED = "refs/simclr/pushed"  # the latest switch that the origin is known to have


@dataclass(frozen=True)
class Released:
    """What serves now, what served before, who has approved it if a person was asked, and what else to know."""

    version: str
    commit: str
    bundle: str
    before: str | None
    changed: bool
    registry: Path
    notes: tuple[str, ...] = ()
    approved: str | None = None

    def __str__(self) -> str:
        name, instead = (
            f"{self.version} (bundle {self.bundle[:12]})",
            f" instead of {self.before}" if self.before else "",
        )
        changed = f"{name} is served now{instead}, from {self.registry}"
        same = f"{name} is served from {self.registry} as before; nothing has changed"
        return "; ".join([changed if self.changed else same, *self.notes])


def complete(releases: Releases, history: History, version: Version, notes: tuple[str, ...]) -> Released:
    """Let a registered version serve, unless it has served before: then what serves stays. Steps 5 to 8 of a release.

    Raises:
        ReleaseError: Git fails.
        DvcError: the bundle of what serves is in neither the registry, the cache nor the remote.
    """
    before = history.current
    if version.name not in history.served:
        history = history.assign(releases.git, version)
    failpoint("release.assigned")
    push_tags(releases.git, history)
    failpoint("release.pushed_tags")
    publish(releases, history, history.serving)
    return serve(releases, history, before, notes)


def publish(releases: Releases, history: History, version: Version) -> None:
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


def serve(releases: Releases, history: History, before: Version | None, notes: tuple[str, ...]) -> Released:
    """Step 8: let the registry's CURRENT say what the tags say; the bundle is there."""
    version, registry = history.serving, releases.registry
    changed = registry.current() != version.name
    if changed:
        registry.switch(version.name)
    failpoint("release.switched")
    notes += registry.unsigned(version.name)
    registry.prune(releases.params.storage.keep_releases)
    replaced = before.name if before and before != version else history.before(version.name)
    done = Released(
        version.name, version.commit, version.bundle, replaced, changed, registry.root, notes, version.approved
    )
    if changed:
        alerts.send(releases.workspace, "champion_changed", f"{done.version} serves", str(done))
    return done


def push_tags(git: Git, history: History) -> None:
    """Tell the origin, if there is one, everything that it does not know; also what an earlier attempt could not."""
    newest = git.reference(f"refs/tags/{history.artifact}#{STAGE}#{history.switches}")
    if newest and git.has_origin() and git.reference(PUSHED) != newest:
        git.push(history.references)
        git.set_reference(PUSHED, newest)


def _is_bundle(directory: Path, bundle: str) -> bool:
    try:
        return verify(directory) == bundle
    except ArtifactError:
        return False
