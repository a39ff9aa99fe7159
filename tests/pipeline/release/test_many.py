"""After years there are hundreds of releases: what lists them, or looks for garbage, asks Git once, not for each."""

import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.pipeline.replayed import replay
from pipeline import git as git_module
from pipeline.dvc import versions
from pipeline.maintenance.fsck import check
from pipeline.maintenance.storage import collect
from pipeline.params import override
from pipeline.release.release import list_versions, rollback
from pipeline.workspace import Workspace
from simclr_core import reports

MANY = 20


@pytest.fixture
def released_often(released: Workspace) -> Workspace:
    replay(released, MANY, runs=3)
    return released


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The processes of Git, the commits that DVC reads, and the reports whose form is worked out."""
    found: list[str] = []

    def counted(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            found.append(name)
            return original(*arguments, **named)

        return call

    monkeypatch.setattr(git_module.subprocess, "run", counted("git", subprocess.run))
    monkeypatch.setattr(versions, "_outs", counted("commit", versions._outs))
    monkeypatch.setattr(reports, "TypeAdapter", counted("form", reports.TypeAdapter))
    reports._adapter.cache_clear()
    return found


def count(asked: list[str], action: Callable[[], object]) -> dict[str, int]:
    asked.clear()
    action()
    return {name: asked.count(name) for name in ("git", "commit", "form")}


@pytest.mark.seconds
def test_many_releases_are_listed_with_the_processes_of_a_few(released: Workspace, asked: list[str]) -> None:
    few = count(asked, lambda: list_versions(released))
    assert few["form"] > 3
    replay(released, MANY, runs=0)
    listed = list_versions(released)
    assert len(listed.versions) == 2 + MANY
    assert listed.current == listed.serving == "v0.0.2", "as before"
    again = count(asked, lambda: list_versions(released))
    assert again == few | {"form": 0}


@pytest.mark.seconds
def test_each_release_is_read_once_by_all_collections(released_often: Workspace, asked: list[str]) -> None:
    first = count(asked, lambda: collect(released_often))
    assert first["commit"] > 2 + MANY
    again = count(asked, lambda: collect(released_often))
    assert again["commit"] == 1, "the workspace"
    replay(released_often, 2 * MANY, runs=0)
    more = count(asked, lambda: collect(released_often))
    assert more["commit"] == 1 + 2 * MANY
    assert count(asked, lambda: collect(released_often)) == again


@pytest.mark.seconds
def test_runs_beyond_those_that_are_kept_lose_their_data_and_releases_keep_theirs(released_often: Workspace) -> None:
    override(released_often, {"storage.keep_runs": "1"})
    collected = collect(released_often)
    assert len(collected.retired) >= 2
    assert collected.files > 0
    assert not check(released_often).damages
    assert rollback(released_often).version == "v0.0.1"
