"""What `simclr gc` removes from real repositories, what it must never remove, and what it refuses."""

import fcntl
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.repo import Repo

from deploy.artifact import identity
from pipeline import waiting
from pipeline.config import StorageConfig
from pipeline.dvc import cache
from pipeline.dvc import versions as dvc_versions
from pipeline.dvc.client import Outcome, add, exclusive, execute, repro
from pipeline.errors import BusyError, DvcError, ReleaseError, WorkspaceError
from pipeline.maintenance.disk import usage
from pipeline.maintenance.records import tidy
from pipeline.maintenance.storage import collect, require_space
from pipeline.params import override, read
from pipeline.runs import output
from pipeline.waiting import Candidate, Decision
from pipeline.workspace import Workspace
from simclr_core.data.shards import read_card
from simclr_core.pretraining.unfinished import run_folders, run_key
from tests.conftest import TINY_PARAMS

RUNS = StorageConfig().keep_runs


def git(workspace: Workspace, *arguments: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@localhost", "-c", "commit.gpgsign=false")
    command = ["git", *identity, *arguments]
    return subprocess.run(command, cwd=workspace.root, check=True, capture_output=True, text=True).stdout.strip()


def write_version(workspace: Workspace, content: str, branch: str | None = None) -> str:
    """A model with two private files, committed, on a branch if given; returns the commit."""
    model = workspace.root / "models" / "thing"
    shutil.rmtree(model, ignore_errors=True)
    model.mkdir(parents=True)
    for name in ("encoder", "head"):
        (model / name).write_text(f"{name} {content}")
    (model / "labels").write_text("the same in every version")
    with Repo(str(workspace.root)) as repo:
        repo.add(str(model))
    git(workspace, "add", "--all")
    if branch is None:
        git(workspace, "commit", "--quiet", "--message", content)
        return git(workspace, "rev-parse", "HEAD")
    tree = git(workspace, "write-tree")
    commit = git(workspace, "commit-tree", tree, "-p", "HEAD", "-m", content)
    git(workspace, "update-ref", f"refs/heads/{branch}", commit)
    return commit


def kept(workspace: Workspace) -> set[str]:
    """Versions whose files all are in the cache, with the bytes that their names say."""
    with cache.opened(workspace.root) as objects:
        whole = set()
        for name in objects.objects():
            children = objects.children(name) if name.endswith(".dir") else None
            if children and all(objects.path(md5).exists() for md5 in children.values()):
                whole.add(objects.path(children["encoder"]).read_text().removeprefix("encoder "))
        return whole


@pytest.fixture(scope="module")
def made(empty_workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Released 1 and 2, a branch of a person, unreleased runs, a forgotten commit, and one not committed."""
    workspace = Workspace(tmp_path_factory.mktemp("versions") / "workspace")
    shutil.copytree(empty_workspace, workspace.root)
    (workspace.root / "dvc.yaml").write_text("stages: {}")
    for name in ("released 1", "released 2"):
        commit = write_version(workspace, name)
        git(workspace, "tag", "--annotate", f"simclr-encoder@v0.0.{name[-1]}", commit, "--message", name)
    write_version(workspace, "idea", branch="idea")
    tagged = write_version(workspace, "released run", branch="runs/aaaa")
    git(workspace, "tag", "simclr-encoder@v0.0.3", tagged)
    for number in range(RUNS + 2):
        os.environ["GIT_COMMITTER_DATE"] = f"@{2_000_000_000 + number} +0000"
        write_version(workspace, f"run {number}", branch=f"runs/{number}")
    del os.environ["GIT_COMMITTER_DATE"]
    write_version(workspace, "forgotten")
    write_version(workspace, "head")
    (workspace.root / "models" / "thing" / "encoder").unlink()
    (workspace.root / "models" / "thing" / "encoder").write_text("encoder not committed")
    add(workspace.root, workspace.root / "models" / "thing")
    return workspace.root


@pytest.fixture
def versions(made: Path, tmp_path: Path) -> Workspace:
    shutil.copytree(made, tmp_path / "my workspace", symlinks=True)
    return Workspace(tmp_path / "my workspace")


@pytest.mark.slow
def test_every_named_version_survives(versions: Workspace) -> None:
    runs = [f"run {number}" for number in range(RUNS + 2)]
    named = {"released 1", "released 2", "released run", "idea", "head", "not committed"}
    assert kept(versions) == {*named, *runs, "forgotten"}
    announced = collect(versions, dry_run=True)
    assert kept(versions) == {*named, *runs, "forgotten"}
    assert announced.files == 3  # two files and a listing of the forgotten one; the third file is everyone's
    assert announced.retired == ("1", "0")
    assert str(announced).startswith("would free at least ")

    collected = collect(versions)
    assert kept(versions) == {*named, *runs[2:]}
    assert collected.files == 9
    assert collected.bytes > announced.bytes
    assert git(versions, "for-each-ref", "--format=%(refname)", "refs/simclr") == (
        "refs/simclr/retired/0\nrefs/simclr/retired/1"
    )
    assert collect(versions).files == 0
    shutil.rmtree(versions.root / "models" / "thing")
    git(versions, "checkout", "--quiet", "--force", "simclr-encoder@v0.0.1")
    execute(versions.root, "checkout")
    assert (versions.root / "models" / "thing" / "head").read_text() == "head released 1"


@pytest.mark.seconds
@pytest.mark.parametrize(
    ("until", "verdict", "retired"),
    [
        ("2126", None, ("1",)),
        ("2026", None, ("1", "0")),
        ("2126", "rejected", ("1", "0")),
        ("2026", "approved", ("1",)),
    ],
)
def test_what_a_candidate_that_waits_needs_stays_until_it_is_decided_or_expired(
    versions: Workspace, until: str, verdict: Any, retired: tuple[str, ...]
) -> None:
    registry, now = versions.root / "registry", "2026-11-01T03:20:00+00:00"
    commit, expires = git(versions, "rev-parse", "runs/0"), f"{until}-11-15T03:20:00+00:00"
    decision = Decision(verdict, "Ada", "looked at", now) if verdict else None
    one = Candidate("a" * 64, "b" * 64, commit, None, (), {}, now, expires, decision)
    waiting.keep(registry, one)
    if verdict == "rejected":
        waiting.settle(registry, one)  # one that was approved is being released
    assert collect(versions, dry_run=True).retired == retired


@pytest.mark.seconds
def test_nothing_is_removed_when_the_listing_of_a_version_is_lost(versions: Workspace, tmp_path: Path) -> None:
    push_everything(versions, tmp_path / "store")
    listing = listing_of(versions, "simclr-encoder@v0.0.1")
    listing.unlink()
    before = kept(versions)
    shutil.move(tmp_path / "store", tmp_path / "away")
    with pytest.raises(
        DvcError, match=r"nothing was removed: the listing of models/thing of .*simclr-encoder@v0\.0\.1"
    ):
        collect(versions)
    assert kept(versions) == before
    shutil.rmtree(tmp_path / "store", ignore_errors=True)  # DVC makes the folder of a lost remote again
    shutil.move(tmp_path / "away", tmp_path / "store")
    collect(versions)
    assert "released 1" in kept(versions)


def push_everything(workspace: Workspace, remote: Path) -> None:
    """`dvc push --all-tags` passes over, in silence, what was committed before the remote was."""
    execute(workspace.root, "remote", "add", "--default", "store", str(remote))
    with cache.opened(workspace.root) as objects:
        for md5 in objects.objects():
            objects.send(md5)


def listing_of(workspace: Workspace, tag: str) -> Path:
    md5 = yaml.safe_load(git(workspace, "show", f"{tag}:models/thing.dvc"))["outs"][0]["md5"]
    with cache.opened(workspace.root) as objects:
        return objects.path(md5)


@pytest.mark.slow
def test_the_remote_loses_only_what_no_clone_can_need(versions: Workspace, tmp_path: Path) -> None:
    push_everything(versions, tmp_path / "store")
    count = len([path for path in (tmp_path / "store").rglob("*") if path.is_file()])
    with pytest.raises(ReleaseError, match=r"remote is left unchanged: .* is not committed"):
        collect(versions, cloud=True)
    git(versions, "commit", "--quiet", "--all", "--message", "everything")
    subprocess.run(["git", "clone", "--quiet", "--bare", str(versions.root), str(tmp_path / "origin")], check=True)
    git(versions, "remote", "add", "origin", str(tmp_path / "origin"))
    git(versions, "branch", "--delete", "--force", "idea")
    with pytest.raises(ReleaseError, match=r"refs/heads/idea of origin is missing here \(`git fetch`"):
        collect(versions, cloud=True)
    git(versions, "fetch", "--quiet", "origin", "idea:idea")
    collected = collect(versions, cloud=True)
    assert collected.remote_files > 0
    assert count - collected.remote_files == len([path for path in (tmp_path / "store").rglob("*") if path.is_file()])
    shutil.rmtree(versions.root / ".dvc" / "cache")
    with cache.opened(versions.root) as objects:
        for listing in list(objects.uses()):
            assert objects.fetch(listing)
        for file in objects.uses():
            assert objects.fetch(file)
    assert {"released 1", "released 2", "released run", "idea", "not committed"} <= kept(versions)
    git(versions, "remote", "set-url", "origin", str(tmp_path / "gone"))
    with pytest.raises(ReleaseError, match="ls-remote"):
        collect(versions, cloud=True)


def test_nothing_is_removed_from_a_locked_shared_or_broken_workspace(versions: Workspace, tmp_path: Path) -> None:
    before = kept(versions)
    with exclusive(versions.root, "a run"), pytest.raises(BusyError, match="a run"):
        collect(versions)
    (versions.root / "models" / "bundle.dvc").write_text("outs: 3")
    git(versions, "commit", "--quiet", "--all", "--message", "broken")
    git(versions, "tag", "broken")
    git(versions, "checkout", "--quiet", "simclr-encoder@v0.0.2")
    with pytest.raises(DvcError):
        collect(versions)
    git(versions, "tag", "--delete", "broken")
    assert kept(versions) >= before
    shared = tmp_path / "shared"
    shutil.copytree(versions.root / ".dvc" / "cache", shared)
    execute(versions.root, "cache", "dir", "--local", str(shared))
    with pytest.raises(DvcError, match="other workspaces may need what is in it"):
        collect(versions)


@pytest.mark.seconds
def test_unused_scratch_files_are_removed_and_those_of_a_training_stay(workspace: Workspace) -> None:
    old = time.time() - 100 * 24 * 3600
    files = {
        name: workspace.scratch / name
        for name in ("runs/old/step/a", "runs/held/a", "runs/new/a", "runs/mixed/a", "logs/a.log", "logs/b.log")
    }
    for name, file in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("x" * 1000)
        if "new" not in name and "b.log" not in name:
            os.utime(file, (old, old))
    for folder in ("runs/old/step", "runs/old", "runs/held"):
        os.utime(workspace.scratch / folder, (old, old))
    (workspace.scratch / "runs" / "mixed" / "b").write_text("just written")
    ended = [workspace.scratch / "runs" / name for name in ("ended.lock", "just ended.lock")]
    for lock in ended:
        lock.write_text("process 1 on here")
    os.utime(ended[0], (old, old))
    with (workspace.scratch / "runs" / "held.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert collect(workspace, dry_run=True).files == 4  # two locks among them
        assert all(file.exists() for file in files.values())
        collect(workspace)
    assert {name for name, file in files.items() if not file.exists()} == {"runs/old/step/a", "logs/a.log"}
    assert [lock.name for lock in sorted((workspace.scratch / "runs").glob("*.lock"))] == [
        "held.lock",
        "just ended.lock",
    ]


@pytest.mark.parametrize("suffix", ["", ".published"])
def test_the_training_that_the_next_run_continues_is_never_abandoned(prepared: Path, suffix: str) -> None:
    """A person was away for a month, or the clock was set a year ahead."""
    workspace, old = Workspace(prepared), time.time() - 100 * 24 * 3600
    params = read(workspace)
    key = run_key(
        params.pretrain.model_dump(),
        read_card(prepared / "data" / "prepared").digest,
        identity(prepared / "models" / "initial"),
    )
    folders = [run_folders(prepared) / f"{name}{suffix}" for name in (key, "0123456789abcdef")]
    for folder in folders:
        (folder / "step-4").mkdir(parents=True)
        for path in (folder / "step-4", folder):
            os.utime(path, (old, old))
    assert tidy(workspace, params.storage).files == 2, "the other one, and its lock"
    assert [folder.exists() for folder in folders] == [True, False]


def test_tensorboard_keeps_the_latest_trainings(workspace: Workspace) -> None:
    override(workspace, {"storage.keep_tensorboards": "2"})
    for hours, name in enumerate(("newest", "newer", "older", "oldest")):
        event = workspace.scratch / "tensorboard" / name / "events"
        event.parent.mkdir(parents=True)
        event.write_text("scalars")
        for path in (event, event.parent):
            os.utime(path, (time.time() - hours * 3600,) * 2)
    assert collect(workspace, dry_run=True).files == 2
    collect(workspace)
    assert {folder.name for folder in (workspace.scratch / "tensorboard").iterdir()} == {"newest", "newer"}


@pytest.mark.seconds
def test_a_commit_is_read_once(versions: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    original = dvc_versions._outs

    def counted(repo: Any) -> dict[str, str]:
        read.append("")
        return original(repo)

    monkeypatch.setattr(dvc_versions, "_outs", counted)
    collect(versions)
    assert len(read) > 5
    read.clear()
    collect(versions)
    assert len(read) == 1, "the workspace alone"
    write_version(versions, "one more", branch="more")
    read.clear()
    collect(versions)
    assert len(read) == 2


@pytest.mark.seconds
def test_a_listing_is_read_once_however_many_versions_have_it(
    versions: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    original = cache.Cache.children

    def counted(objects: cache.Cache, md5: str) -> dict[str, str] | None:
        read.append(md5)
        return original(objects, md5)

    monkeypatch.setattr(cache.Cache, "children", counted)
    for number in range(20):
        git(versions, "tag", f"again-{number}", "simclr-encoder@v0.0.1")
    write_version(versions, "released 1", branch="again")
    collect(versions)
    assert len(read) == len(set(read)) > 5


@pytest.mark.seconds
def test_records_of_stages_go_when_their_results_are_gone(graph: Workspace) -> None:
    graph.params.write_text(yaml.safe_dump(TINY_PARAMS))
    for text in ("abc", "abcd"):
        (graph.raw / "one.txt").unlink()
        (graph.raw / "one.txt").write_text(text)
        add(graph.root, graph.raw)
        repro(graph.root, "prepare", print, print)
    folder = graph.root / ".dvc" / "cache" / "runs"
    records = {path for path in folder.rglob("*") if path.is_file()}
    assert len(records) == 2
    announced = collect(graph, dry_run=True)
    assert {path for path in folder.rglob("*") if path.is_file()} == records
    assert collect(graph).files == announced.files
    (kept,) = (path for path in folder.rglob("*") if path.is_file())
    assert kept in records
    assert len(list(folder.iterdir())) == 1, "nor is an empty folder left"
    (graph.root / "dvc.lock").unlink()
    shutil.rmtree(graph.root / "data" / "prepared")
    assert repro(graph.root, "prepare", print, print).outcome is Outcome.RESTORED


def test_run_logs_are_removed_after_a_month_or_when_there_are_too_many(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "RUN_LOGS", 3)
    folder = workspace.scratch / "logs" / "runs"
    folder.mkdir(parents=True)
    for days in (0, 1, 29, 31, 2):
        log = folder / f"{days}.log"
        log.write_text("said")
        os.utime(log, (time.time() - days * 24 * 3600,) * 2)
    assert {log.stem for log in output.list_outdated(folder)} == {"29", "31"}
    assert collect(workspace).files == 2
    assert {log.stem for log in folder.iterdir()} == {"0", "1", "2"}


def test_what_was_set_aside_as_damaged_goes_after_a_quarter(workspace: Workspace) -> None:
    kept, old = (workspace.scratch / "damaged" / name for name in ("1-a", "2-b"))
    store = workspace.scratch / "inbox.sqlite.damaged-1"
    kept.parent.mkdir(parents=True)
    for path, days in ((kept, 89), (old, 91), (store, 91)):
        path.write_bytes(b"damaged")
        os.utime(path, (time.time() - days * 24 * 3600,) * 2)
    assert collect(workspace).files == 2
    assert [path.exists() for path in (kept, old, store)] == [True, False, False]


def test_a_run_does_not_start_on_a_full_disk_and_an_overfull_cache_is_collected(
    versions: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert require_space(versions) is None
    sizes = usage(versions)
    assert sizes.keys() == {"cache", "raw", "registry", "scratch", "history"}
    assert sizes["cache"] > 100
    params = yaml.safe_load(versions.params.read_text())
    params["storage"] = {"min_free_gigabytes": 1e6, "max_cache_gigabytes": 1e-9}
    versions.params.write_text(yaml.safe_dump(params))
    with pytest.raises(WorkspaceError, match=r"GB free, and a run needs 1e\+06 GB .*min_free_gigabytes\); `simclr gc`"):
        require_space(versions)
    assert "forgotten" not in kept(versions)
