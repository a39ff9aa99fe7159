"""Which versions there are, and which of them serves: what Git's tags say, in the notation of GTO.

    simclr-encoder@v0.0.2     this commit is version 0.0.2
    simclr-encoder#prod#3     the third switch: from here on, this commit serves

So `gto show`, `gto history` and `dvc artifacts get --stage prod` read them too. They are written with Git rather than
GTO, which dates a tag with the whole second of the clock and orders by that: after two switches within a second, or
with a clock that was set back, it would name the wrong version. Here a tag is never older than the one before.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from deploy.registry import VERSION
from pipeline.errors import ReleaseError
from pipeline.git import Git
from simclr_core.values import ARTIFACT_NAME

STAGE = "prod"
TAG = re.compile(rf"(?:@(?P<version>{VERSION.pattern})|#(?P<stage>{STAGE}))(?P<undone>!?)(?:#(?P<count>\d+))?")
BUNDLE = re.compile(r"^Bundle: ([0-9a-f]{64})$", re.MULTILINE)  # in the message of a released commit
APPROVED = re.compile(r"^Approved (.+)$", re.MULTILINE)  # in the message of a version's tag


@dataclass(frozen=True)
class Version:
    """A registered version; ``bundle`` is the id of its bundle, empty if a person tagged another commit by hand.

    ``approved`` says by whom, when and why, if a person was asked.
    """

    name: str
    commit: str
    bundle: str
    registered: datetime
    approved: str | None = None


@dataclass(frozen=True)
class History:
    """Every version in ascending order, and the switches between them in theirs, oldest first."""

    artifact: str
    versions: tuple[Version, ...]
    served: tuple[str, ...]
    switches: int
    taken: tuple[str, ...]  # names of all versions, also of the withdrawn ones
    newest: datetime  # tag
    withdrawn: Mapping[str, str] = field(default_factory=dict)  # name → bundle

    @property
    def current(self) -> Version | None:
        return self.find(self.served[-1]) if self.served else None

    @property
    def serving(self) -> Version:
        """The current version, where one is sure to be."""
        assert self.current is not None
        return self.current

    @property
    def next(self) -> str:
        """One patch above the highest; the first is v0.0.1."""
        if not self.taken:
            return "v0.0.1"
        major, minor, patch = max(map(_order, self.taken))
        return f"v{major}.{minor}.{patch + 1}"

    @property
    def references(self) -> list[str]:
        """All of its tags, for Git."""
        return [f"refs/tags/{self.artifact}{mark}*" for mark in "@#"]

    def find(self, name: str) -> Version:
        """The version of this name.

        Raises:
            ReleaseError: there is none.
        """
        for version in self.versions:
            if version.name == name:
                return version
        if not self.versions:
            raise ReleaseError(
                f"{name}: there is no version of {self.artifact}, nothing has been released yet; `simclr run` releases "
                "the first encoder that passes its gates"
            )
        known = ", ".join(version.name for version in self.versions)
        raise ReleaseError(f"{name}: no such version of {self.artifact}; choose from: {known}")

    def of_bundle(self, bundle: str) -> Version | None:
        return next((version for version in reversed(self.versions) if version.bundle == bundle), None)

    def before(self, name: str | None) -> str | None:
        """What served before ``name`` did for the first time, or serves now when it never has."""
        first = self.served.index(name) if name in self.served else len(self.served)
        return self.served[first - 1] if first else None

    def previous(self) -> Version:
        """What a rollback leads to: the version that the current one replaced.

        A version that was rolled back before is skipped: switching to an earlier one forgets what came after it.

        Raises:
            ReleaseError: there is none.
        """
        standing: list[str] = []
        for name in self.served:
            standing = standing[: standing.index(name)] if name in standing else standing
            standing.append(name)
        if not standing:
            raise ReleaseError(f"no version of {self.artifact} has been released, so there is nothing to roll back")
        if len(standing) == 1:
            known = ", ".join(version.name for version in self.versions)
            raise ReleaseError(f"{standing[0]}: nothing served before it; name the version to serve, one of: {known}")
        return self.find(standing[-2])

    def register(self, git: Git, commit: str, bundle: str, approved: str | None = None) -> "History":
        """Tag the commit, whose message names the bundle, as the next version."""
        version = Version(self.next, commit, bundle, self._now(), approved)
        message = f"Registering artifact {self.artifact} version {version.name}"
        message += f"\n\nApproved {approved}" if approved else ""
        git.tag(f"{self.artifact}@{version.name}", commit, message, version.registered)
        return replace(
            self,
            versions=(*self.versions, version),
            taken=(*self.taken, version.name),
            newest=version.registered,
        )

    def assign(self, git: Git, version: Version) -> "History":
        """Tag this version as the one that serves from now on."""
        name, made = f"{self.artifact}#{STAGE}#{self.switches + 1}", self._now()
        message = f"Assigning stage {STAGE} to artifact {self.artifact} version {version.name}"
        git.tag(name, version.commit, message, made)
        return replace(self, served=(*self.served, version.name), switches=self.switches + 1, newest=made)

    def withdraw(self, git: Git, version: Version, why: str) -> "History":
        """Tag this version as withdrawn; its name is not given again."""
        made = self._now()
        message = f"Deregistering artifact {self.artifact} version {version.name}\n\n{why}"
        git.tag(f"{self.artifact}@{version.name}!", version.commit, message, made)
        kept = tuple(one for one in self.versions if one != version)
        served = tuple(name for name in self.served if name != version.name)
        return replace(
            self, versions=kept, served=served, newest=made, withdrawn={**self.withdrawn, version.name: version.bundle}
        )

    def _now(self) -> datetime:
        """Later than every tag so far, whatever the clock says."""
        return max(datetime.now(UTC).replace(microsecond=0), self.newest + timedelta(seconds=1))


def read_history(git: Git, artifact: str) -> History:
    """What the tags of this repository say.

    Raises:
        ReleaseError: the artifact cannot be the name of a tag.
    """
    if not ARTIFACT_NAME.fullmatch(artifact):
        raise ReleaseError(f"export.name {artifact!r}: names the tags of releases; use letters, digits, - and _ only")
    tags = git.tags([f"{artifact}@", f"{artifact}#"])
    ours = [(tag, match) for tag in tags if (match := TAG.fullmatch(tag.name.removeprefix(artifact)))]
    withdrawn = {match["version"] for _, match in ours if match["version"] and match["undone"]}
    versions = [
        Version(match["version"], tag.commit, _bundle(tag.commit_message), tag.made, _approved(tag.message))
        for tag, match in ours
        if match["version"] and match["version"] not in withdrawn
    ]
    names = {version.commit: version.name for version in versions}
    served: list[str] = []
    for tag, match in sorted(ours, key=lambda pair: int(pair[1]["count"] or 0)):
        name = names.get(tag.commit)
        if match["stage"] and name:
            served = [other for other in served if other != name] if match["undone"] else [*served, name]
    return History(
        artifact,
        tuple(sorted(versions, key=lambda version: _order(version.name))),
        tuple(served),
        max((int(match["count"] or 0) for _, match in ours), default=0),
        tuple(match["version"] for _, match in ours if match["version"]),
        max((tag.made for tag, _ in ours), default=datetime.fromtimestamp(0, UTC)),
        {
            match["version"]: _bundle(tag.commit_message)
            for tag, match in ours
            if match["version"] in withdrawn and match["undone"]
        },
    )


def _order(name: str) -> tuple[int, int, int]:
    major, minor, patch = name.removeprefix("v").split(".")
    return int(major), int(minor), int(patch)


def _bundle(message: str) -> str:
    found = BUNDLE.search(message)
    return found[1] if found else ""


def _approved(message: str) -> str | None:
    found = APPROVED.search(message)
    return found[1] if found else None
