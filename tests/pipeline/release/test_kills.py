"""Killed with SIGKILL at any step and run again, a release completes, and nothing promises what is not there."""

import os
import shutil
import signal
import subprocess

import pytest

from deploy import failpoint
from deploy.artifact import identity, verify
from deploy.failpoint import VARIABLE
from pipeline.release import champion
from pipeline.release.registry import open_registry
from pipeline.release.release import promote, release, rollback
from pipeline.release.releases import open_releases
from pipeline.workspace import Workspace
from tests.pipeline.release.conftest import ARTIFACT, compute, git, origin, store, tags
from tests.processes import program
from tests.repetitions import repeated, some

UNREGISTERED = ("release.pushed", "release.committed", "release.verified", "release.registered")
REGISTERED = (
    "release.assigned",
    "release.pushed_tags",
    "artifact.rename",
    "artifact.renamed",
    "release.signed",
    *(f"artifact.replace:kill@{number}" for number in (1, 2, 3)),  # both records and CURRENT
    "release.published",
    "release.switched",
)
PROGRAM = """
import pathlib, sys
from pipeline.release import champion
from pipeline.release import release
from pipeline.workspace import Workspace
action = {"pin": champion.pin, "release": release.release, "rollback": release.rollback}[sys.argv[1]]
action(Workspace(pathlib.Path(sys.argv[2])))
"""


def killed(workspace: Workspace, step: str, action: str) -> None:
    """Do something in its own process, which is killed at a failpoint."""
    command = program.command(PROGRAM, action, workspace.root)
    environment = os.environ | {VARIABLE: step if ":" in step else f"{step}:kill"}
    done = subprocess.run(command, cwd=program.ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, (step, done.stdout, done.stderr)


def check(workspace: Workspace) -> None:
    """What must hold at any moment, also between two steps."""
    names = [name for name in tags(workspace) if "@" in name]
    assert sorted(names) == [f"{ARTIFACT}@v0.0.{number + 1}" for number in range(len(names))]
    switches = [int(name.rpartition("#")[2]) for name in tags(workspace) if "#prod#" in name]
    assert sorted(switches) == list(range(1, len(switches) + 1))
    for name in tags(workspace):
        assert_available(workspace, name)
    serving = open_registry(workspace).current()
    if serving:
        verify(workspace.root / "registry" / serving)
        assert f"{ARTIFACT}@{serving}" in names


def assert_available(workspace: Workspace, tag: str) -> None:
    """The remote has every object of the commit, as the listings of its folders name them."""
    remote = store(workspace) / "files" / "md5"
    lock = git(workspace.root, "show", f"{tag}^{{commit}}:dvc.lock")
    for path in ("models/bundle", "models/pretrained"):
        entry = lock[lock.index(f"path: {path}\n") :]
        digest = entry[entry.index("md5: ") + 5 :].split()[0]
        listing = remote / digest[:2] / digest[2:]
        objects = [part.split('"')[1] for part in listing.read_text().split('"md5": ')[1:]]
        assert objects
        assert all((remote / one[:2] / one[2:]).is_file() for one in objects), (tag, path)


def check_complete(workspace: Workspace, version: str, bundle: str) -> None:
    check(workspace)
    current = open_releases(workspace).history.current
    assert current is not None
    assert (current.name, current.bundle, open_registry(workspace).current()) == (version, bundle, version)
    assert identity(workspace.root / "registry" / version) == bundle
    assert set(git(origin(workspace), "tag").splitlines()) == set(tags(workspace))
    leftovers = [path.name for path in (workspace.root / "registry").rglob(".*") if ".partial-" in path.name]
    assert leftovers == []
    assert sorted(path.name for path in workspace.scratch.iterdir() if path.name in ("release", "champion")) == []


@repeated
@pytest.mark.slow
@pytest.mark.timeout(900)  # 45 s of a processor, which a shared machine may stretch
def test_a_release_survives_kills(computed: Workspace) -> None:
    """Killed at a step and run once more, by night at each of them; then killed at every step of one release."""
    bundle = identity(computed.root / "models" / "bundle")
    for steps, forgotten in ((UNREGISTERED, EVERYTHING), (REGISTERED, SWITCHES)):
        for step in some(steps, 2):
            forget(computed, forgotten)
            killed(computed, step, "release")
            check(computed)
            release(computed)
            check_complete(computed, "v0.0.1", bundle)
    forget(computed, EVERYTHING)
    for step in (*UNREGISTERED, *REGISTERED):
        killed(computed, step, "release")
        check(computed)
    release(computed)
    check_complete(computed, "v0.0.1", bundle)
    assert tags(computed) == [f"{ARTIFACT}@v0.0.1", f"{ARTIFACT}#prod#1"]


SWITCHES = (f"refs/tags/{ARTIFACT}#", "refs/simclr/")
EVERYTHING = (*SWITCHES, "refs/tags/", "refs/heads/runs/")


def forget(workspace: Workspace, references: tuple[str, ...]) -> None:
    """As if these had never been, nor the registry; what is in the DVC remote stays there."""
    for repository in (workspace.root, origin(workspace)):
        for reference in git(repository, "for-each-ref", "--format=%(refname)").splitlines():
            if reference.startswith(references):
                git(repository, "update-ref", "-d", reference)
    shutil.rmtree(workspace.root / "registry", ignore_errors=True)


@repeated
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_release_survives_a_full_disk(computed: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each step the disk is full once; what is there stays whole, and the same command continues."""
    bundle = identity(computed.root / "models" / "bundle")
    for step in some((*UNREGISTERED, *REGISTERED), 4):
        place, _, turn = step.partition(":kill")
        failpoint._reached.clear()
        monkeypatch.setenv(VARIABLE, f"{place}:enospc{turn}")
        with pytest.raises(OSError, match=rf"No space left on device .failpoint.: '{place}'"):
            release(computed)
        check(computed)
    monkeypatch.delenv(VARIABLE)
    release(computed)
    check_complete(computed, "v0.0.1", bundle)
    assert tags(computed) == [f"{ARTIFACT}@v0.0.1", f"{ARTIFACT}#prod#1"]


@pytest.mark.slow
def test_a_rollback_survives_kills(released: Workspace) -> None:
    first = open_releases(released).history.find("v0.0.1")
    for step in ("release.published", "release.assigned", "release.switched"):
        killed(released, step, "rollback")
        check(released)
        release(released)  # what the next run does, with nothing new
        check(released)
        rollback(released, "v0.0.1")
        check_complete(released, "v0.0.1", first.bundle)
        promote(released, "v0.0.2")


@pytest.mark.slow
def test_pinning_the_champion_survives_kills(released: Workspace) -> None:
    (released.raw / "number").unlink()
    (released.raw / "number").write_text("3")
    for step in ("artifact.rename", "artifact.renamed", "champion.written"):
        killed(released, step, "pin")
    compute(released, 3)
    pinned = champion.pin(released)
    assert pinned.version == "v0.0.2"
    verify(released.root / "models" / "champion")
    assert release(released).version == "v0.0.3"


@pytest.mark.seconds
def test_a_step_that_is_not_reached_is_noticed(released: Workspace) -> None:
    """The tests above would see a failpoint that is gone."""
    with pytest.raises(AssertionError, match="nowhere"):
        killed(released, "nowhere", "release")
