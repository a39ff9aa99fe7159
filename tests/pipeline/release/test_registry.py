"""The write side of the registry."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest

from deploy.artifact import identity, publish, verify
from deploy.errors import CorruptArtifactError
from pipeline.errors import ReleaseError
from pipeline.params import override
from pipeline.release.registry import open_registry
from pipeline.workspace import Workspace


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Any artifact will do: the registry does not look inside. Its files are read-only, as in DVC's cache."""
    with publish(tmp_path / "bundle") as work:
        (work / "golden").mkdir()
        (work / "golden" / "vectors.npy").write_text("vectors")
        (work / "bundle.json").write_text("{}")
    for path in (tmp_path / "bundle").rglob("*.*"):
        path.chmod(0o444)
    return tmp_path / "bundle"


def test_publish_switch_and_prune(workspace: Workspace, bundle: Path) -> None:
    registry = open_registry(workspace)
    assert (registry.versions(), registry.current()) == ([], None)
    for number in (1, 2, 9, 10):
        registry.publish_bundle(f"v0.0.{number}", bundle, identity(bundle))
    registry.switch("v0.0.2")
    folder = workspace.root / "registry"
    assert identity(folder / "v0.0.10") == identity(bundle)
    assert (folder / "v0.0.10" / "bundle.json").stat().st_mode & 0o777 == 0o644
    assert registry.holds("v0.0.1", identity(bundle))
    (folder / ".v0.0.7.partial-xyz").mkdir()
    registry.prune(keep=2)
    assert registry.versions() == ["v0.0.2", "v0.0.9", "v0.0.10"]
    registry.prune(keep=1)
    assert registry.versions() == ["v0.0.2", "v0.0.10"]
    assert registry.current() == "v0.0.2"
    assert not list(folder.glob(".v*"))
    assert not registry.holds("v0.0.1", identity(bundle))


def test_only_the_intact_bundle_that_was_requested_is_published(workspace: Workspace, bundle: Path) -> None:
    registry = open_registry(workspace)
    with pytest.raises(ReleaseError, match="is bundle"):
        registry.publish_bundle("v0.0.1", bundle, "0" * 64)
    registry.publish_bundle("v0.0.1", bundle, identity(bundle))
    with pytest.raises(ReleaseError, match=r"export\.name.*release\.registry"):
        registry.holds("v0.0.1", "0" * 64)
    (bundle / "bundle.json").unlink()
    with pytest.raises(CorruptArtifactError):
        registry.publish_bundle("v0.0.2", bundle, identity(bundle))
    assert registry.versions() == ["v0.0.1"]


def test_a_damaged_bundle_is_replaced(workspace: Workspace, bundle: Path) -> None:
    registry = open_registry(workspace)
    registry.publish_bundle("v0.0.1", bundle, identity(bundle))
    damaged = workspace.root / "registry" / "v0.0.1" / "bundle.json"
    damaged.write_text("[]")
    assert not registry.holds("v0.0.1", identity(bundle))
    registry.publish_bundle("v0.0.1", bundle, identity(bundle))
    verify(damaged.parent)


def test_the_folder_is_a_parameter(workspace: Workspace, tmp_path: Path) -> None:
    override(workspace, {"release.registry": f"'{tmp_path / 'served'}'"})
    open_registry(workspace).switch("v0.0.1")
    assert (tmp_path / "served" / "CURRENT").read_text() == "v0.0.1\n"


def test_a_rejection_that_an_earlier_version_has_recorded_is_read(workspace: Workspace) -> None:
    text = """{
  "candidate": "aaaaaaaaaaaa",
  "gate": "size_budget",
  "reason": "9 MB, over the limit",
  "run_id": "run 1",
  "recorded": "2026-01-02T03:04:05+00:00",
  "metrics": {
    "megabytes": 9,
    "ratio": 1.5
  }
}
"""
    folder = workspace.root / "registry" / "rejected"
    folder.mkdir(parents=True)
    (folder / "aaaaaaaaaaaa.json").write_text(text)
    (found,) = open_registry(workspace).rejections()
    assert json.dumps(asdict(found), indent=2, ensure_ascii=False) + "\n" == text


def test_rejections(workspace: Workspace) -> None:
    registry = open_registry(workspace)
    assert registry.rejections() == []
    registry.reject("aaaaaaaaaaaa", "representation", "lost 5 points", "run 1", {"knn": -5.0})
    registry.reject("aaaaaaaaaaaa", "representation", "lost 5 points", "run 1", {"knn": -5.0})
    registry.reject("aaaaaaaaaaaa", "size_budget", "too big", "run 1", {"megabytes": 9})
    registry.reject("bbbbbbbbbbbb", "not_collapsed", "constant", "run 2", {})
    found = {one.candidate: one for one in registry.rejections()}
    one = found["aaaaaaaaaaaa"]
    assert (one.gate, one.reason) == ("representation, size_budget", "lost 5 points; too big")
    assert one.metrics == {"knn": -5.0, "megabytes": 9}
    written = json.loads((workspace.root / "registry" / "rejected" / "aaaaaaaaaaaa.json").read_text())
    assert written.keys() == {"candidate", "gate", "reason", "run_id", "recorded", "metrics"}
    registry.reject("aaaaaaaaaaaa", "representation", "lost 1 point", "run 3", {})  # a later run's word counts
    latest = registry.rejection("aaaaaaaaaaaa")
    assert latest is not None
    assert (latest.gate, latest.reason, latest.metrics) == ("representation", "lost 1 point", {})
    (workspace.root / "registry" / "rejected" / "cccccccccccc.json").write_text("{}")
    with pytest.raises(ReleaseError, match=r"cccccccccccc\.json"):
        registry.rejections()
    shutil.rmtree(workspace.root / "registry")
