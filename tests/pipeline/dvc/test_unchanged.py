"""A run asks once what is up to date, and again after anything has changed."""

import shutil
from pathlib import Path

import pytest

from deploy.lock import held
from pipeline.dvc import unchanged
from pipeline.dvc.client import LOCK, repro
from pipeline.dvc.project import Project, find_unchanged, load
from pipeline.dvc.unchanged import Unchanged
from pipeline.errors import BusyError
from pipeline.workspace import Workspace

STAGES = ("prepare", "pretrain")


@pytest.fixture
def root(graph: Workspace) -> Path:
    for stage in STAGES:
        repro(graph.root, stage, print, print)
    return graph.root


@pytest.fixture
def project(root: Path) -> Project:
    return load(root)


def ask(known: Unchanged, project: Project, run_id: str = "one") -> list[str]:
    return [stage.name for stage in project.stages if stage.name in STAGES and known.has(stage, run_id)]


@pytest.mark.seconds
def test_what_has_not_changed_is_asked_once(root: Path, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []

    def find(root: Path) -> frozenset[str]:
        asked.append(root)
        return find_unchanged(root)

    monkeypatch.setattr(unchanged, "find_unchanged", find)
    known = Unchanged(root)
    assert ask(known, project) == list(STAGES)
    assert asked == [root]  # once for both
    known.forget()
    assert ask(known, project) == list(STAGES)
    assert asked == [root, root]


@pytest.mark.seconds
def test_a_copied_workspace_is_as_unchanged_as_it_was(root: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(root, tmp_path / "copy", symlinks=True))
    assert find_unchanged(copy) == find_unchanged(root) >= set(STAGES)


@pytest.mark.seconds
def test_a_result_that_was_changed_is_noticed_in_the_next_run(root: Path, project: Project) -> None:
    known = Unchanged(root)
    assert ask(known, project) == list(STAGES)
    (root / "models" / "pretrained" / "model.txt").write_text("another")
    assert ask(known, project, "two") == ["prepare"]


@pytest.mark.seconds
def test_a_result_that_was_deleted_in_the_middle_of_a_run_counts(root: Path, project: Project) -> None:
    known = Unchanged(root)
    assert known.has(*project.select("prepare"), "one")
    shutil.rmtree(root / "models")
    assert ask(known, project) == ["prepare"]


@pytest.mark.seconds
@pytest.mark.parametrize(
    ("file", "old", "new", "left"),
    [
        ("params.yaml", '"epochs": 2', '"epochs": 3', ["prepare"]),
        ("dvc.yaml", "python stage.py prepare", "python stage.py  prepare", ["pretrain"]),
        ("stage.py", "this is", "that is", list(STAGES)),  # no stage depends on it
    ],
)
def test_a_change_in_the_middle_of_a_run_counts(
    root: Path, project: Project, file: str, old: str, new: str, left: list[str]
) -> None:
    root = project.root
    known = Unchanged(root)
    assert ask(known, project) == list(STAGES)
    content = (root / file).read_text()
    assert old in content
    (root / file).write_text(content.replace(old, new, 1))
    assert ask(known, project) == left


@pytest.mark.seconds
def test_nothing_is_unchanged_that_dvc_cannot_tell(root: Path, project: Project) -> None:
    (root / "dvc.yaml").write_text("stages: 3")
    assert ask(Unchanged(root), project) == []


@pytest.mark.seconds
def test_a_workspace_that_another_process_holds_is_left_alone(root: Path, project: Project) -> None:
    with held(root / LOCK, "another run", BusyError), pytest.raises(BusyError, match="another run"):
        ask(Unchanged(root), project)
