"""Workspaces from before the explorer: nothing changes for them until a person asks for it."""

import re
from difflib import ndiff
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from pipeline.cli.main import simclr
from pipeline.dvc.project import load
from pipeline.errors import WorkspaceError
from pipeline.explore.graph import add_stage, has_stage
from pipeline.explore.shown import Shown
from pipeline.workspace import Workspace, template


@pytest.fixture
def older(workspace: Workspace) -> Workspace:
    graph = workspace.root / "dvc.yaml"
    text = graph.read_text(encoding="utf-8")
    graph.write_text(re.sub(r"\n  explore:\n.*?\n\n(?=artifacts)", "\n", text, flags=re.DOTALL), encoding="utf-8")
    assert not has_stage(workspace)
    return workspace


@pytest.mark.seconds
def test_the_stage_is_added_and_the_others_stay(older: Workspace) -> None:
    graph = older.root / "dvc.yaml"
    before, lines = load(older.root).stages, graph.read_text(encoding="utf-8").splitlines()
    with pytest.raises(WorkspaceError, match="simclr explore --add-stage"):
        Shown(older)
    done = CliRunner().invoke(simclr, ["--workspace", str(older.root), "explore", "--add-stage"])
    assert "has the stage explore now" in done.output
    after = load(older.root).stages
    assert after[:-1] == before
    assert after[-1].name == "explore"
    template = yaml.safe_load((Path(__file__).parents[3] / "dvc.yaml").read_text(encoding="utf-8"))
    assert yaml.safe_load(graph.read_text(encoding="utf-8")) == template
    added = [line[2:] for line in ndiff(lines, graph.read_text(encoding="utf-8").splitlines()) if line[0] in "+-"]
    assert added[0].strip() in ("", "explore:")
    assert len(added) == len(graph.read_text(encoding="utf-8").splitlines()) - len(lines), "no line is changed"
    assert add_stage(older) == "dvc.yaml has the stage explore already"


def test_a_graph_that_lacks_what_the_stage_reads_is_left_alone(older: Workspace) -> None:
    graph = older.root / "dvc.yaml"
    text = graph.read_text(encoding="utf-8").replace("reports/predictions.parquet", "reports/other.parquet")
    graph.write_text(text, encoding="utf-8")
    with pytest.raises(WorkspaceError, match=r"no stage writes reports/predictions\.parquet"):
        add_stage(older)
    assert graph.read_text(encoding="utf-8") == text


@pytest.mark.parametrize(
    "text",
    [
        "stages:\n    a:\n        cmd: x\n        deps: [{deps}]\n",
        "vars: [1]\nstages:\n# a comment\n\n  a:\n    cmd: x\n    deps: [{deps}]\n\n# more\nartifacts: {{}}\n",
        "stages:\n  a:\n    cmd: x\n    deps: [{deps}]",
    ],
)
def test_the_stage_is_indented_as_the_others(older: Workspace, text: str) -> None:
    deps = ", ".join(yaml.safe_load(template("dvc.yaml").read_text(encoding="utf-8"))["stages"]["explore"]["deps"])
    graph = older.root / "dvc.yaml"
    graph.write_text(text.format(deps=deps), encoding="utf-8")
    add_stage(older)
    found = yaml.safe_load(graph.read_text(encoding="utf-8"))
    assert [*found["stages"]] == ["a", "explore"]
    assert set(found) == set(yaml.safe_load(text.format(deps=deps)))


def test_a_graph_on_one_line_is_left_to_a_person(older: Workspace) -> None:
    deps = ", ".join(yaml.safe_load(template("dvc.yaml").read_text(encoding="utf-8"))["stages"]["explore"]["deps"])
    graph = older.root / "dvc.yaml"
    graph.write_text(f"{{stages: {{a: {{cmd: x, deps: [{deps}]}}}}}}\n", encoding="utf-8")
    with pytest.raises(WorkspaceError, match="by hand"):
        add_stage(older)
    assert "explore" not in graph.read_text(encoding="utf-8")
