"""Switching between released versions: in seconds, at any time, and it stays."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest

import deploy
from deploy.cli.main import main as deploy_main
from deploy.failpoint import VARIABLE
from pipeline import alerts
from pipeline.cli.main import run_cli
from pipeline.dvc import client
from pipeline.errors import BusyError, DvcError, ReleaseError
from pipeline.params import override
from pipeline.release.registry import open_registry
from pipeline.release.release import diff, list_versions, promote, release, rollback, withdraw
from pipeline.workspace import Workspace
from tests.pipeline.release.conftest import ARTIFACT, compute, git, origin, store, tags
from tests.processes.busy import stretched


@pytest.mark.slow
def test_rollback_within_five_seconds_while_a_training_continues(
    released: Workspace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[tuple[str, str]] = []
    monkeypatch.setattr(alerts, "send", lambda _, event, title, text: reported.append((event, title)))
    began = time.monotonic()
    with client.exclusive(released.root, "stage pretrain"):
        done = rollback(released)
    seconds = time.monotonic() - began
    assert (done.version, done.before, done.changed) == ("v0.0.1", "v0.0.2", True)
    assert seconds < stretched(5)
    assert reported == [("champion_changed", "v0.0.1 serves")]
    assert deploy_main(["info", str(released.root / "registry")]) == 0
    info = json.loads(capsys.readouterr().out)
    assert (info["version"], info["name"], info["id"]) == ("v0.0.1", "encoder 1", done.bundle)
    assert tags(released)[-1] == f"{ARTIFACT}#prod#3"
    assert tags(released)[-1] in git(origin(released), "tag").splitlines()

    # The candidate of v0.0.2 still is in models/bundle: a run that computes nothing does not bring it back.
    assert release(released).version == "v0.0.1"
    assert open_registry(released).current() == "v0.0.1"
    with pytest.raises(ReleaseError, match=r"v0\.0\.1: nothing served before it.*v0\.0\.1, v0\.0\.2"):
        rollback(released)
    # What comes next is numbered after the version that was rolled back, and replaces the one that serves.
    compute(released, 3)
    done = release(released)
    assert (done.version, done.before) == ("v0.0.3", "v0.0.1")
    assert rollback(released).version == "v0.0.1"


@pytest.mark.slow
def test_a_bundle_missing_in_the_registry_comes_from_the_cache_or_the_remote(third: Workspace) -> None:
    released = third
    override(released, {"storage.keep_releases": "1"})
    release(released)
    assert open_registry(released).versions() == ["v0.0.2", "v0.0.3"]
    assert promote(released, "v0.0.1").changed
    assert open_registry(released).versions() == ["v0.0.1", "v0.0.3"]
    shutil.rmtree(released.root / ".dvc" / "cache")
    assert promote(released, "v0.0.2").changed
    assert deploy.load(released.root / "registry").info["name"] == "encoder 2"


@pytest.mark.seconds
def test_a_version_whose_bundle_is_lost_is_not_tagged(released: Workspace) -> None:
    shutil.rmtree(released.root / "registry" / "v0.0.1")
    shutil.rmtree(released.root / ".dvc" / "cache")
    shutil.rmtree(store(released))
    before = tags(released)
    with pytest.raises(DvcError, match="does not return models/bundle"):
        rollback(released)
    assert tags(released) == before
    assert open_registry(released).current() == "v0.0.2"


@pytest.mark.seconds
def test_a_rollback_that_was_killed_is_completed_and_does_not_go_back_one_more(
    third: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    release(third)
    with monkeypatch.context() as patch:
        patch.setenv(VARIABLE, "release.assigned:raise")
        with pytest.raises(RuntimeError):
            rollback(third)
    assert open_registry(third).current() == "v0.0.3"
    assert rollback(third).version == "v0.0.2"
    assert rollback(third).version == "v0.0.1"


def test_an_interrupted_rollback_is_not_simply_to_be_repeated(
    released: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.release.release.push_tags", interrupt)
    monkeypatch.setattr(sys, "argv", ["simclr", "--workspace", str(released.root), "release", "rollback"])
    assert run_cli() == 130
    said = capsys.readouterr().err
    assert said.startswith("error: interrupted; `simclr release list` says which version serves")
    assert open_registry(released).current() == "v0.0.1"


def test_rollback_does_not_wait_for_the_origin(released: Workspace) -> None:
    shutil.move(origin(released), origin(released).with_name("away"))
    assert "the origin does not have it yet" in str(rollback(released))
    assert open_registry(released).current() == "v0.0.1"
    shutil.move(origin(released).with_name("away"), origin(released))
    release(released)
    assert tags(released)[-1] in git(origin(released), "tag").splitlines()


def test_promote(released: Workspace) -> None:
    with pytest.raises(ReleaseError, match=r"v9\.9\.9: no such version of simclr-encoder; choose from: v0\.0\.1, v0"):
        promote(released, "v9.9.9")
    before = tags(released)
    assert not promote(released, "v0.0.2").changed
    assert tags(released) == before
    (released.root / "registry" / "CURRENT").write_text("rubbish")
    shutil.rmtree(released.root / "registry" / "v0.0.2")
    assert promote(released, "v0.0.2").changed  # fixes what is broken
    assert deploy.load(released.root / "registry").info["version"] == "v0.0.2"
    assert tags(released) == before


@pytest.mark.seconds
def test_a_withdrawn_version_is_gone_and_comes_back_in_no_way(
    released: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = open_registry(released)
    with pytest.raises(ReleaseError, match=r"v0\.0\.2: serves; let another version serve first, with `simclr run`"):
        withdraw(released, "v0.0.2", "consent withdrawn")
    with pytest.raises(ReleaseError, match=r"v9\.9\.9: no such version"):
        withdraw(released, "v9.9.9", "consent withdrawn")
    monkeypatch.setenv(VARIABLE, "release.withdrawn:raise")
    with pytest.raises(Exception, match=r"release\.withdrawn"):
        withdraw(released, "v0.0.1", "consent withdrawn")
    monkeypatch.delenv(VARIABLE)
    assert registry.versions() == ["v0.0.1", "v0.0.2"]
    assert "v0.0.1 is withdrawn" in withdraw(released, "v0.0.1", "consent withdrawn")  # it completes what was begun
    assert (registry.versions(), registry.current()) == (["v0.0.2"], "v0.0.2")
    assert f"{ARTIFACT}@v0.0.1!" in git(origin(released), "tag").splitlines()
    with pytest.raises(ReleaseError, match=r"v0\.0\.1: no such version"):
        promote(released, "v0.0.1")
    with pytest.raises(ReleaseError, match="nothing served before it"):
        rollback(released)


@pytest.mark.seconds
def test_a_withdrawn_encoder_is_not_released_under_another_name(released: Workspace) -> None:
    rollback(released)
    withdraw(released, "v0.0.2", "consent withdrawn")  # its bundle is still the candidate of the workspace
    with pytest.raises(ReleaseError, match=r"was withdrawn as v0\.0\.2, and is not released again; train another"):
        release(released)


def test_nothing_to_roll_back_to(computed: Workspace) -> None:
    with pytest.raises(ReleaseError, match="nothing to roll back"):
        rollback(computed)
    with pytest.raises(
        ReleaseError, match=r"there is no version of .*, nothing has been released yet; `simclr run` releases"
    ):
        promote(computed, "v0.0.1")
    assert "nothing has been released yet" in str(list_versions(computed))


@pytest.mark.seconds
def test_only_one_switch_runs_at_a_time(released: Workspace) -> None:
    with open_registry(released).locked("release"):
        for action in (release, rollback):
            with pytest.raises(BusyError, match=f"busy with the release of process {os.getpid()}"):
                action(released)
    with client.exclusive(released.root, "stage pretrain"), pytest.raises(BusyError, match="stage pretrain"):
        release(released)
    code = (
        "import sys, pathlib, pipeline.release.registry as r, pipeline.workspace as w\n"
        "with r.open_registry(w.Workspace(pathlib.Path(sys.argv[1]))).locked('release'): print(flush=True); input()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(released.root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    with pytest.raises(BusyError, match=str(holder.pid)):
        rollback(released)
    holder.kill()
    holder.communicate()
    assert rollback(released).changed


@pytest.mark.seconds
def test_listing_and_diff_are_readable_tables(third: Workspace) -> None:
    released = third
    open_registry(released).reject("abcabcabcabc", "representation", "kNN lost 5 points", "run 7", {})
    text = str(list_versions(released))
    newest, oldest = (line for line in text.splitlines() if line.lstrip("* ").startswith("v0.0."))
    assert newest.startswith("*  v0.0.2")
    assert "72.00" in newest
    assert "71.00" in oldest
    assert "rejected abcabcabcabc" in text
    assert "kNN lost 5 points" in text

    release(released)
    text = str(diff(released, "v0.0.1", "v0.0.3"))
    rows = {line.split("  ")[0]: line.split()[-2:] for line in text.splitlines()}
    assert rows["images"] == ["100", "300"]
    assert rows["knn_top1"] == ["71.00", "73.00"]
    assert rows["pretrain.epochs"] == ["2", "3"]
    assert text.endswith("code: the same")
    with pytest.raises(ReleaseError, match="no such version"):
        diff(released, "v0.0.1", "v1.0.0")
