"""The champion moves at the beginning of a run that computes something, and at no other time."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from deploy.artifact import identity, verify
from pipeline.dvc import client
from pipeline.errors import BusyError, DvcError
from pipeline.release import champion
from pipeline.release.release import release, rollback
from pipeline.release.releases import open_releases
from pipeline.workspace import Workspace
from tests.pipeline.release.conftest import dvc, store

pytestmark = pytest.mark.slow  # each of them clones, pushes and pulls


def tracked(workspace: Workspace) -> str:
    return str(yaml.safe_load((workspace.root / "models" / "champion.dvc").read_text())["outs"][0]["md5"])


def raw(workspace: Workspace, number: int) -> None:
    (workspace.raw / "number").unlink()
    (workspace.raw / "number").write_text(str(number), encoding="utf-8")
    client.add(workspace.root, workspace.raw)


def test_before_the_first_release_the_champion_is_empty(computed: Workspace) -> None:
    target = computed.root / "models" / "champion"
    assert json.loads((target / "champion.json").read_text()) == {
        "bundle": None, "commit": None, "reports": {}, "version": None,
    }  # fmt: skip
    verify(target)
    assert not (target / "bundle").exists()
    assert open_releases(computed).history.current is None


def test_the_champion_is_a_copy_of_the_release_and_then_stays(third: Workspace) -> None:
    target = third.root / "models" / "champion"
    verify(target)
    card = json.loads((target / "champion.json").read_text())
    released = open_releases(third).history.current
    assert released is not None
    assert (card["version"], card["commit"], card["bundle"]) == (released.name, released.commit, released.bundle)
    assert card["reports"].keys() == {"pretrain", "validation", "linear_eval"}
    assert card["reports"]["validation"].keys() == {"images"}, "not every expectation"
    assert card["reports"]["validation"]["images"]["accepted"] == 200
    assert identity(target / "bundle") == released.bundle
    assert json.loads((target / "pretrained" / "model.json").read_text()) == {"number": 2}

    before = tracked(third)
    assert release(third).version == "v0.0.3"
    assert champion.pin(third).version == "v0.0.2"  # the run is finished: nothing to compute
    assert tracked(third) == before
    assert dvc(third.root, "status").strip() == "Data and pipelines are up to date."
    raw(third, 4)
    assert champion.pin(third).version == "v0.0.3"
    assert champion.pin(third).version == "v0.0.3"


def test_after_a_rollback_the_champion_is_the_served_version(released: Workspace) -> None:
    rollback(released)
    raw(released, 3)
    assert champion.pin(released).version == "v0.0.1"


def test_a_missing_or_damaged_champion_is_copied_again(released: Workspace) -> None:
    target = released.root / "models" / "champion"
    before = tracked(released)
    shutil.rmtree(target)
    assert champion.pin(released).version == "v0.0.1"  # what was pinned, not what is released
    assert tracked(released) == before
    (target / "champion.json").unlink()
    assert champion.pin(released).version == "v0.0.2"
    verify(target)
    assert tracked(released) != before


def test_without_the_released_files_nothing_is_pinned(released: Workspace) -> None:
    raw(released, 3)
    before = tracked(released)
    shutil.rmtree(store(released))
    shutil.rmtree(released.root / ".dvc" / "cache")
    with pytest.raises(DvcError, match="models/bundle, models/pretrained"):
        champion.pin(released)
    assert tracked(released) == before


def test_pinning_fails_at_once_while_a_stage_holds_the_workspace(released: Workspace) -> None:
    with client.exclusive(released.root, "stage pretrain"), pytest.raises(BusyError):
        champion.pin(released)


def test_the_same_champion_has_the_same_hash_on_every_machine(released: Workspace, tmp_path: Path) -> None:
    other = Workspace(Path(shutil.copytree(released.root.parent, tmp_path / "other", symlinks=True)) / "workspace")
    before = tracked(released)
    for workspace in (released, other):
        raw(workspace, 4)
        assert champion.pin(workspace).version == "v0.0.2"
    assert tracked(released) != before
    assert tracked(released) == tracked(other)
