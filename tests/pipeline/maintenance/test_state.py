"""The state of every run: committed to a branch of ours and sent to the remote, whatever the remote does."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from deploy.artifact import verify
from deploy.failpoint import VARIABLE
from pipeline.dvc import client
from pipeline.maintenance.doctor import examine
from pipeline.maintenance.state import keep, unkept
from pipeline.maintenance.storage import collect
from pipeline.params import override
from pipeline.release.release import release
from pipeline.workspace import Workspace
from tests.pipeline.release.conftest import (
    _computed,
    _quiet,
    compute,
    computed,
    dvc,
    git,
    origin,
    store,
)
from tests.processes import program

__all__ = ["_computed", "_quiet", "computed"]


def restored(workspace: Workspace, branch: str, folder: Path) -> Workspace:
    """Another machine: a clone of the origin at this branch, with what the remote has."""
    git(folder.parent, "clone", "--quiet", "--branch", branch, str(origin(workspace)), str(folder))
    dvc(folder, "remote", "modify", "--local", "store", "url", str(store(workspace)))
    dvc(folder, "pull")
    return Workspace(folder)


def branches(root: Path) -> list[str]:
    return git(root, "for-each-ref", "--format=%(refname:strip=2)", "refs/heads/runs").splitlines()


@pytest.mark.seconds
def test_a_run_is_restored_from_origin_and_remote_alone(computed: Workspace, tmp_path: Path) -> None:
    before = (git(computed.root, "rev-parse", "HEAD"), git(computed.root, "status", "--porcelain"))
    assert keep(computed, "11111111-a") is None
    assert (git(computed.root, "rev-parse", "HEAD"), git(computed.root, "status", "--porcelain")) == before
    clone = restored(computed, "runs/11111111", tmp_path / "clone")
    assert verify(clone.root / "models" / "bundle") == verify(computed.root / "models" / "bundle")
    assert (clone.raw / "number").read_text() == "1"
    for name in ("dvc.lock", "data/raw.dvc", "params.yaml", "overrides.csv"):
        expected = (computed.root / name).read_bytes() if (computed.root / name).exists() else None
        assert expected is None or (clone.root / name).read_bytes() == expected

    assert keep(computed, "22222222-b") is None
    assert branches(computed.root) == ["runs/11111111"], "nothing has changed since"


@pytest.mark.seconds
def test_a_run_has_one_commit_however_often_it_is_kept(computed: Workspace) -> None:
    keep(computed, "11111111-a")
    override(computed, {"pretrain.epochs": "3"})
    keep(computed, "11111111-a")
    assert git(computed.root, "rev-list", "--count", "HEAD..runs/11111111") == "1"
    assert "epochs: 3" in git(computed.root, "show", "runs/11111111:params.yaml")


@pytest.mark.seconds
def test_a_remote_that_is_away_stops_nothing_and_gets_everything_later(computed: Workspace, tmp_path: Path) -> None:
    away = tmp_path / "away"
    shutil.rmtree(store(computed), ignore_errors=True)
    store(computed).write_text("no folder")
    missing = keep(computed, "11111111-a")
    assert missing is not None
    assert missing.problem
    assert branches(computed.root) == ["runs/11111111"], "the commit needs no remote"
    assert [found.detail for found in examine(computed.root) if found.name == "state of runs"] == [str(missing)]
    store(computed).rename(away)
    assert keep(computed, "11111111-a") == missing, "a run asks once"

    compute(computed, 2)  # the results of the first run are in its branch alone
    assert keep(computed, "22222222-b") is None
    assert unkept(computed) is None
    assert (restored(computed, "runs/11111111", tmp_path / "one").raw / "number").read_text() == "1"
    assert (restored(computed, "runs/22222222", tmp_path / "two").raw / "number").read_text() == "2"


@pytest.mark.seconds
def test_a_busy_workspace_is_kept_by_the_next_stage(computed: Workspace) -> None:
    with client.exclusive(computed.root, "fsck"):
        assert keep(computed, "11111111-a") is None
    assert unkept(computed) is None
    assert branches(computed.root) == []
    keep(computed, "11111111-a")
    assert branches(computed.root) == ["runs/11111111"]


@pytest.mark.seconds
def test_an_origin_that_is_away_is_said_and_gets_it_later(computed: Workspace, tmp_path: Path) -> None:
    origin(computed).rename(tmp_path / "away.git")
    missing = keep(computed, "11111111-a")
    assert missing is not None
    assert "git push" in missing.problem
    (tmp_path / "away.git").rename(origin(computed))
    assert keep(computed, "22222222-b") is None
    assert branches(origin(computed)) == ["runs/11111111"]


@pytest.mark.seconds
def test_a_secret_in_the_configuration_is_not_committed(computed: Workspace) -> None:
    dvc(computed.root, "remote", "add", "other", "s3://bucket/other")
    dvc(computed.root, "remote", "modify", "other", "secret_access_key", "hunter2")
    assert keep(computed, "11111111-a") is None
    assert "hunter2" not in git(computed.root, "show", "runs/11111111:.dvc/config")


@pytest.mark.seconds
@pytest.mark.parametrize("place", ["state.committed", "state.sent"])
def test_killed_anywhere_the_next_run_completes_it(computed: Workspace, place: str) -> None:
    code = (
        "import sys, pathlib; from pipeline.maintenance.state import keep; from pipeline.workspace import Workspace;"
        "keep(Workspace(pathlib.Path(sys.argv[1])), '11111111-a')"
    )
    environment = {**os.environ, VARIABLE: f"{place}:kill"}
    command = program.command(code, computed.root)
    done = subprocess.run(command, cwd=program.ROOT, env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert keep(computed, "22222222-b") is None
    assert branches(origin(computed)) == ["runs/11111111"]


@pytest.mark.seconds
def test_gc_retires_old_runs_here_and_on_the_origin(computed: Workspace) -> None:
    override(computed, {"storage.keep_runs": "1"})
    keep(computed, "11111111-a")
    compute(computed, 2)
    keep(computed, "22222222-b")
    compute(computed, 3)
    keep(computed, "33333333-c")
    release(computed)
    collected = collect(computed)
    assert set(collected.retired) == {"11111111", "33333333"}, "the third was released, and needs no other branch"
    kept = [name for name in branches(computed.root) if len(name) == len("runs/22222222")]
    assert (
        kept == [name for name in branches(origin(computed)) if len(name) == len("runs/22222222")] == ["runs/22222222"]
    )
    assert client.changed_stages(computed.root) == {}


@pytest.mark.seconds
def test_the_newest_runs_are_kept_also_after_the_clock_was_a_year_ahead(
    computed: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    override(computed, {"storage.keep_runs": "1"})
    monkeypatch.setenv("GIT_COMMITTER_DATE", "@4000000000 +0000")
    ahead = git(computed.root, "-c", "user.name=u", "-c", "user.email=u@e", "commit-tree", "HEAD^{tree}", "-m", "ahead")
    monkeypatch.delenv("GIT_COMMITTER_DATE")
    git(computed.root, "update-ref", "refs/heads/runs/00000000", ahead)
    keep(computed, "22222222-b")
    override(computed, {"pretrain.epochs": "7"})
    keep(computed, "11111111-a")
    assert collect(computed, dry_run=True).retired == ("22222222", "00000000")
