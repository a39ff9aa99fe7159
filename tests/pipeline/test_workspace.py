"""A workspace is made whole or not at all, and found from anywhere inside it."""

import shutil
import subprocess
from pathlib import Path

import pytest
from dotenv import dotenv_values

from pipeline import workspace as workspaces
from pipeline.environment import WORKSPACE
from pipeline.errors import WorkspaceError
from pipeline.workspace import Workspace


def test_a_new_workspace_is_a_clean_git_and_dvc_project(workspace: Workspace) -> None:
    for name in (*workspaces.TEMPLATE, "inbox/unlabeled", "inbox/labeled", "inbox/test", ".dvc/config"):
        assert (workspace.root / name).exists(), name
    log = subprocess.run(
        ["git", "log", "--format=%an %s"], cwd=workspace.root, capture_output=True, text=True, check=True
    )
    assert log.stdout == "simclr New workspace (cpu-small)\n"


def test_it_is_found_from_below_by_name_and_by_variable(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace.inbox / "unlabeled")
    assert workspaces.find() == workspace
    monkeypatch.chdir("/")
    assert workspaces.find(workspace.root) == workspace
    monkeypatch.setenv(WORKSPACE, str(workspace.root))
    assert workspaces.find() == workspace


def test_outside_a_workspace_the_error_names_the_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(WORKSPACE, raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WorkspaceError, match=r"not inside a workspace; .*simclr init"):
        workspaces.find()
    with pytest.raises(WorkspaceError, match=r"not a workspace, it has no dvc\.yaml"):
        workspaces.find(tmp_path)


def test_a_folder_with_files_and_an_unknown_recipe_are_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(WorkspaceError, match="exists and is not an empty folder"):
        workspaces.create(tmp_path)
    with pytest.raises(WorkspaceError, match="recipe 'huge' does not exist; choose one of: auto, cpu-small"):
        workspaces.create(tmp_path / "new", recipe="huge")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_failed_step_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "no-git-here"))
    with pytest.raises(WorkspaceError, match=r"git: command not found; .*install Git"):
        workspaces.create(tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_dagsters_own_commands_use_the_records_of_the_workspace(tmp_path: Path) -> None:
    workspace = workspaces.create(tmp_path / "it's mine")
    file = workspace.root / ".env"
    assert dotenv_values(file) == {"DAGSTER_HOME": str(workspace.root)}
    assert not subprocess.run(["git", "status", "--porcelain"], cwd=workspace.root, capture_output=True).stdout
    file.write_text(f"TOKEN=1\n{file.read_text()}")
    moved = Workspace(workspace.root.rename(tmp_path / "moved"))
    workspaces.point_dagster(moved)
    assert dotenv_values(moved.root / ".env") == {"TOKEN": "1", "DAGSTER_HOME": str(moved.root)}
    copied = Workspace(Path(shutil.copytree(moved.root, tmp_path / "copied")))
    workspaces.point_dagster(copied)
    assert dotenv_values(copied.root / ".env") == {"TOKEN": "1", "DAGSTER_HOME": str(copied.root)}


def test_a_workspace_that_does_not_ignore_the_file_gets_none(workspace: Workspace) -> None:
    (workspace.root / ".gitignore").write_text("/inbox/\n")
    (workspace.root / ".env").unlink(missing_ok=True)
    workspaces.point_dagster(workspace)
    assert not (workspace.root / ".env").exists()
