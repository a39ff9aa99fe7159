"""`simclr run` again: at once when there is nothing to do, and all of it whenever anything is different."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from deploy.artifact import identity, publish
from pipeline import waiting
from pipeline import workspace as workspaces
from pipeline.cli.main import simclr
from pipeline.dvc.purged import Purge, write_journal
from pipeline.git import config_files
from pipeline.ingest.ingest import ingest
from pipeline.maintenance.state import UNKEPT
from pipeline.proposal.propose import VALIDATE
from pipeline.recipes.recipe import AUTO, is_auto, params_of
from pipeline.retraining import completed
from pipeline.run import RunOutcome, run
from pipeline.waiting import Candidate
from pipeline.workspace import Workspace
from tests.conftest import draw, encode
from tests.pipeline.conftest import put
from tests.pipeline.costs.examples import MEASURED
from tests.pipeline.proposal.folders import fill, photograph

pytestmark = pytest.mark.slow
GRAPH = {
    "stages": {
        "prepare": {"cmd": "ls data/raw > prepared", "deps": ["data/raw"], "outs": ["prepared"]},
        "finetune": {"cmd": "cp prepared finetuned", "deps": ["prepared"], "outs": ["finetuned"]},
    }
}
SOURCES = ["inbox"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, empty_workspace: Path) -> Workspace:
    """After a run of all stages, with one labeled image of two."""
    root = tmp_path_factory.mktemp("whole") / "workspace"
    shutil.copytree(empty_workspace, root, symlinks=True)
    workspace = Workspace(root.resolve())
    put(workspace, "unlabeled/one.png", encode(draw(0, 1)))
    put(workspace, "labeled/cross/two.png", encode(draw(1, 2)))
    put(workspace, "labels.csv", b"path,label\nlabeled/cross/two.png,cross\n")
    (root / "dvc.yaml").write_text(yaml.safe_dump(GRAPH), encoding="utf-8")
    (root / "registry" / "v0.0.3").mkdir(parents=True)
    (root / "registry" / "v0.0.3" / "MANIFEST.sha256").write_text("")
    (root / "registry" / "CURRENT").write_text("v0.0.3\n")
    completed.note(workspace, SOURCES, run(workspace).run_id)
    return workspace


def begin_and_note(workspace: Workspace) -> None:
    completed.begin(workspace, "one")
    completed.note(workspace, SOURCES, "one")


def test_nothing_is_started_and_no_run_is_recorded_when_there_is_nothing_to_do(whole: Workspace) -> None:
    before = sorted((whole.root / "history").rglob("*"))
    code = "import sys; from pipeline.cli.main import run_cli; code = run_cli(); print('dagster' in sys.modules, code)"
    command = [sys.executable, "-P", "-W", "ignore", "-c", code, "--workspace", str(whole.root), "run"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "nothing to do: no image is new, and every stage is as the last run left it",
        "False 0",
    ]
    assert sorted((whole.root / "history").rglob("*")) == before


def _remove_result(workspace: Workspace) -> None:
    (workspace.root / "finetuned").unlink()


def _edit_result(workspace: Workspace) -> None:
    (workspace.root / "prepared").unlink()
    (workspace.root / "prepared").write_text("something else")


def _edit_params(workspace: Workspace) -> None:
    workspace.params.write_text(workspace.params.read_text() + "\n# looked at\n")


def _edit_graph(workspace: Workspace) -> None:
    stage = GRAPH["stages"]["finetune"] | {"cmd": "cp prepared finetuned; true"}
    (workspace.root / "dvc.yaml").write_text(yaml.safe_dump({"stages": GRAPH["stages"] | {"finetune": stage}}))


def _add_image(workspace: Workspace) -> None:
    put(workspace, "unlabeled/three.png", encode(draw(2, 3)))


def _remove_label(workspace: Workspace) -> None:
    (workspace.inbox / "labeled/cross/two.png").unlink()


def _label(workspace: Workspace) -> None:
    put(workspace, "labels.csv", b"path,label\nunlabeled/one.png,circle\n")


def _decide(workspace: Workspace) -> None:
    with workspace.overrides.open("a") as file:
        file.write(f"{'0' * 64},deny,blurred,someone,2026-11-01,\n")


def _switch(workspace: Workspace) -> None:
    (workspace.root / "registry" / "CURRENT").write_text("v0.0.1\n")


def _outdate_candidate(workspace: Workspace) -> None:
    """It waits for a person, and was compared with what no longer serves."""
    with publish(workspace.root / "models" / "bundle") as work:
        (work / "bundle.json").write_text("{}")
    bundle, asked = identity(workspace.root / "models" / "bundle"), "2026-11-30T03:20:00+00:00"
    one = Candidate(bundle, "b" * 64, "c" * 40, "v0.0.3", (), {}, asked, asked)
    waiting.keep(workspace.root / "registry", one)
    assert completed.has_nothing_to_do(workspace, SOURCES)  # of what serves
    waiting.keep(workspace.root / "registry", replace(one, champion="v0.0.2"))


def _lose_served_bundle(workspace: Workspace) -> None:
    shutil.rmtree(workspace.root / "registry" / "v0.0.3")


def _begin_purge(workspace: Workspace) -> None:
    """Killed before anything but the journal was written; the next run has to complete it."""
    write_journal(workspace.root, Purge(("0" * 64,), "someone", "2026-11-01T00:00:00+00:00", "withdrawn"))


def _add_origin(workspace: Workspace) -> None:
    subprocess.run(["git", "remote", "add", "origin", "/nowhere"], cwd=workspace.root, check=True)


def _remove_table(workspace: Workspace) -> None:
    (workspace.inbox / "labels.csv").unlink()


def _remove_page(workspace: Workspace) -> None:
    (workspace.reports / "run.html").unlink()


def _lose_remote(workspace: Workspace) -> None:
    unkept = {"run": "one", "problem": "the remote is away", "since": "2026-11-01T00:00+00:00"}
    (workspace.scratch / UNKEPT).write_text(json.dumps(unkept))


def _forget(workspace: Workspace) -> None:
    (workspace.scratch / completed.NOTE).unlink()


def _damage(workspace: Workspace) -> None:
    (workspace.scratch / completed.NOTE).write_text("{")


def _another_day(workspace: Workspace) -> None:
    note = workspace.scratch / completed.NOTE
    note.write_text(json.dumps(json.loads(note.read_text()) | {"day": "2026-11-01"}))


CHANGES = (
    _remove_result,
    _edit_result,
    _edit_params,
    _edit_graph,
    _add_image,
    _remove_label,
    _label,
    _decide,
    _switch,
    _outdate_candidate,
    _lose_served_bundle,
    _begin_purge,
    _add_origin,
    _remove_table,
    _remove_page,
    _lose_remote,
    _forget,
    _damage,
    _another_day,
)


@pytest.fixture
def copy(whole: Workspace, tmp_path: Path) -> Workspace:
    made = Workspace(Path(shutil.copytree(whole.root, tmp_path / "workspace", symlinks=True)).resolve())
    ingest(made, SOURCES)  # the copies are other files
    begin_and_note(made)
    return made


@pytest.mark.parametrize("change", CHANGES, ids=[change.__name__.strip("_") for change in CHANGES])
def test_each_change_is_something_to_do(copy: Workspace, change: Callable[[Workspace], None]) -> None:
    assert completed.has_nothing_to_do(copy, SOURCES)
    change(copy)
    assert not completed.has_nothing_to_do(copy, SOURCES)


@pytest.mark.parametrize("variable", ["GIT_CONFIG_GLOBAL", "DVC_GLOBAL_CONFIG_DIR", "DVC_SYSTEM_CONFIG_DIR"])
def test_configuration_outside_of_the_workspace_is_looked_at(
    copy: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """It may name another remote, which does not have the results."""
    file = tmp_path / "config"
    monkeypatch.setenv(variable, str(file if variable.startswith("GIT") else tmp_path))
    begin_and_note(copy)
    assert completed.has_nothing_to_do(copy, SOURCES)
    file.write_text("")
    assert not completed.has_nothing_to_do(copy, SOURCES)


def test_the_settings_of_a_linked_worktree_are_those_of_its_repository(tmp_path: Path) -> None:
    def git(folder: Path, *arguments: str) -> str:
        identity = ["-c", "user.name=someone", "-c", "user.email=someone@localhost"]
        return subprocess.run(
            ["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True
        ).stdout

    whole, linked = tmp_path / "whole", tmp_path / "linked"
    whole.mkdir()
    git(whole, "init", "--quiet")
    git(whole, "commit", "--quiet", "--allow-empty", "--message", "one")
    git(whole, "worktree", "add", "--quiet", str(linked))
    for folder in (whole, linked):
        common = git(folder, "rev-parse", "--path-format=absolute", "--git-common-dir").strip()
        assert config_files(folder)[0].samefile(Path(common) / "config")


def test_a_registry_outside_of_the_workspace_is_looked_at(copy: Workspace, tmp_path: Path) -> None:
    params = yaml.safe_load(copy.params.read_text())
    params["release"] = params.get("release", {}) | {"registry": str(tmp_path / "shared")}
    copy.params.write_text(yaml.safe_dump(params))
    (tmp_path / "shared").mkdir()
    begin_and_note(copy)
    assert completed.has_nothing_to_do(copy, SOURCES)
    (tmp_path / "shared" / "CURRENT").write_text("v0.0.2\n")
    assert not completed.has_nothing_to_do(copy, SOURCES)


def test_a_run_during_which_a_gate_was_changed_is_not_noted(copy: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its gates may have been judged already, and no stage reads what they read of params.yaml."""
    (copy.scratch / completed.NOTE).unlink()

    def run_while(change: Callable[[Workspace], None]) -> None:
        def judge(*_: object, **__: object) -> RunOutcome:
            completed.begin(copy, "one")
            change(copy)
            return RunOutcome("one", {})

        monkeypatch.setattr("pipeline.run.run", judge)
        assert CliRunner().invoke(simclr, ["--workspace", str(copy.root), "run"]).exit_code == 0

    def begin_another(workspace: Workspace) -> None:
        """In the UI, say."""
        completed.begin(workspace, "another")

    def change_nothing(_: Workspace) -> None: ...

    for change in (_edit_params, begin_another):
        run_while(change)
        assert not (copy.scratch / completed.NOTE).exists()
    run_while(change_nothing)
    assert completed.has_nothing_to_do(copy, SOURCES)


def test_a_first_run_that_chooses_the_parameters_is_noted(
    tmp_path: Path, empty_workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It writes its choice into params.yaml, and makes overrides.csv if it is missing."""
    workspace = Workspace(Path(shutil.copytree(empty_workspace, tmp_path / "workspace", symlinks=True)).resolve())
    fill(workspace.inbox, "unlabeled/{}.jpg", VALIDATE.min_images, lambda: photograph(120, 90))
    text = params_of(AUTO, workspaces.template("params.yaml").read_text(encoding="utf-8"))
    workspace.params.write_text(text, encoding="utf-8")
    workspace.overrides.unlink()
    (workspace.root / "dvc.yaml").write_text(yaml.safe_dump(GRAPH), encoding="utf-8")
    monkeypatch.setattr("pipeline.proposal.choose.measure", lambda *_: MEASURED)
    for again in (False, True):
        done = CliRunner().invoke(simclr, ["--workspace", str(workspace.root), "run"])
        assert done.exit_code == 0, done.output
        assert ("nothing to do" in done.output) == again
    assert not is_auto(workspace.params.read_text(encoding="utf-8"))


def test_other_sources_are_something_to_do(whole: Workspace, tmp_path: Path) -> None:
    assert completed.has_nothing_to_do(whole, SOURCES)
    assert not completed.has_nothing_to_do(whole, [*SOURCES, str(tmp_path)])
