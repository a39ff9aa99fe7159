"""A plan names what a run will compute and what that costs, before a run and without one."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from pipeline import workspace as workspaces
from pipeline.cli.main import simclr
from pipeline.costs import measured, record
from pipeline.costs.model import REST, Cost
from pipeline.dvc.project import Out, Project, Stage
from pipeline.ingest.found import News
from pipeline.ingest.ingest import ingest
from pipeline.ingest.layout import Place
from pipeline.params import read
from pipeline.plan import plan as plans
from pipeline.plan.plan import NOTHING, Plan, correct, leave, make, with_new
from pipeline.plan.render import document, table
from pipeline.preflight.images import Images
from pipeline.proposal import choose as choosing
from pipeline.proposal.collection import share_of
from pipeline.retraining.inbox import survey
from pipeline.workspace import Workspace
from tests.conftest import draw, encode
from tests.pipeline.conftest import put
from tests.pipeline.costs.examples import MEASURED, read_params
from tests.pipeline.proposal.folders import fill, photograph
from tests.pipeline.proposal.test_propose import photographs


def stage(name: str, *deps: str) -> Stage:
    return Stage(name, "true", None, deps, (), (Out(name),))


READ = [("export", "pretrain"), ("prepare", "data/raw"), ("pretrain", "prepare"), ("drift", "prepare")]
GRAPH = Project(
    Path(),
    (
        stage("export", "pretrain"),
        stage("prepare", "data/raw"),
        stage("pretrain", "prepare"),
        stage("drift", "prepare"),
    ),
    ("data/raw",),
)


@pytest.mark.parametrize(
    ("unchanged", "left"),
    [
        (["prepare", "pretrain", "drift", "export"], ["prepare", "pretrain", "drift", "export"]),
        (["prepare", "drift", "export"], ["prepare", "drift"]),
        (["pretrain", "drift", "export"], []),
        ([], []),
    ],
)
def test_what_reads_a_result_that_is_made_again_is_made_again(unchanged: list[str], left: list[str]) -> None:
    assert leave(GRAPH, frozenset(unchanged)) == frozenset(left)


def test_files_that_wait_are_as_the_others_in_the_sources() -> None:
    before = Images(Counter({"cat": 10}), Counter({"cat": 5}), Counter({"0001": 10}))
    found = replace(
        photographs(0), labels={Place("train", "cat"): 60, Place("train", None): 20, Place("test", "dog"): 20}
    )
    images = with_new(before, found, read_params(), waiting=50, batch="0002")
    assert images.train == Counter({"cat": 40, None: 10})
    assert images.test == Counter({"cat": 5, "dog": 10})
    assert images.batches == Counter({"0001": 10, "0002": 40})
    held_out = with_new(Images(), found, read_params(ingest={"hold_out": 0.5}), waiting=100, batch="0001")
    assert held_out.test == Counter({"cat": 30, "dog": 20})


def test_a_share_of_many_small_numbers_is_that_share_of_their_sum() -> None:
    """Images with several labels: most sets of labels are of one image."""
    each = {f"a|{number}": 1 for number in range(40)}
    assert sum(share_of(each, 0.25).values()) == 10
    assert set(share_of(each, 0.25).values()) == {0, 1}
    assert share_of({"cat": 60, None: 20}, 0.5) == {"cat": 30, None: 10}
    found = replace(photographs(0), labels={Place("train", name): 1 for name in each})
    held_out = with_new(Images(), found, read_params(ingest={"hold_out": 0.25}), waiting=40, batch="0001")
    assert (held_out.train.total(), held_out.test.total()) == (30, 10)


def test_an_expectation_is_corrected_by_how_far_the_last_one_was_off() -> None:
    costs = correct({"a": Cost(10, 1, 2), "b": Cost(10)}, {"a": 1.5, "c": 9.0})
    assert costs == {"a": Cost(15, 1, 2), "b": Cost(10)}


def test_the_table_and_the_document_say_the_same() -> None:
    plan = Plan({"validate": None, "prepare": Cost(12.0, 2e9, 3e6)}, ("no new images",), ("no room",), ("too few",))
    seen = record.Record("run", {"prepare": Cost(10, 1e9, 100)}, {"prepare": Cost(12, 1e9, 50)})
    said = table(plan, seen)
    assert "validate  unchanged, 0 s\nprepare             12 s  2.0 GB  3.0 MB\n" in said
    assert "note: no new images\nnote: no room\nwarning: too few" in said
    assert "1.20" in said
    found = document(plan, seen)
    assert (found["notes"], found["warnings"]) == (["no new images", "no room"], ["too few"])
    assert found["stages"] == {
        "validate": None,
        "prepare": {"seconds": 12.0, "memory_bytes": 2e9, "disk_bytes": 3e6},
    }
    assert found["total"]["seconds"] == 12.0
    assert found["latest_run"]["total"]["actual_over_expected"] == {
        "seconds": 1.2,
        "memory_bytes": 1.0,
        "disk_bytes": 0.5,
    }
    assert document(plan, None)["latest_run"] == {}


def test_a_run_that_has_freed_disk_says_so_and_has_no_ratio() -> None:
    seen = record.Record("run", {"prepare": Cost(10, 1e9, 100)}, {"prepare": Cost(12, 1e9, -2_760_916)})
    said = table(Plan({"prepare": None}), seen)
    assert "2.8 MB less      –" in said
    assert "-" not in said.replace("2.8 MB less", "")
    over = document(Plan({"prepare": None}), seen)["latest_run"]["prepare"]["actual_over_expected"]
    assert over == {"seconds": 1.2, "memory_bytes": 1.0, "disk_bytes": None}


@pytest.fixture
def measurements(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The params.yaml that were measured for."""
    asked: list[str] = []

    def measure(text: str, *_: Any) -> measured.Measured:
        asked.append(text)
        return MEASURED

    monkeypatch.setattr(choosing, "measure", measure)
    monkeypatch.setattr(measured, "measure", measure)
    return asked


@pytest.mark.seconds
def test_before_the_first_run_everything_is_planned_and_measured_once(tmp_path: Path, measurements: list[str]) -> None:
    workspace = workspaces.create(tmp_path / "new", "cpu-small")
    fill(workspace.inbox, "labeled/cat/{}.jpg", 80, lambda: photograph(60, 50))
    plan = make(workspace)
    stages = {
        "validate",
        "prepare",
        "pretrain",
        "linear_eval",
        "finetune@0.01",
        "finetune@0.1",
        "export",
        "compare",
        "explore",
    }
    assert stages | {"raw_images", REST} <= plan.costs.keys()
    assert None not in plan.stages.values()
    assert plan.notes == ("80 new images",)
    assert any("only 80 training images, and pretrain.batch_size needs 256" in one for one in plan.warnings)
    assert make(workspace) == plan
    assert measurements == [workspace.params.read_text(encoding="utf-8")]
    assert not (workspace.raw / "0001").exists(), "nothing is ingested"
    done = CliRunner().invoke(simclr, ["--workspace", str(workspace.root), "plan", "--json"])
    assert json.loads(done.output)["stages"].keys() == plan.stages.keys()


@pytest.mark.seconds
def test_the_plan_of_recipe_auto_is_that_of_what_would_be_chosen(tmp_path: Path, measurements: list[str]) -> None:
    workspace = workspaces.create(tmp_path / "new", "auto")
    fill(workspace.inbox, "unlabeled/{}.jpg", 80, lambda: photograph(120, 90))
    text = workspace.params.read_text(encoding="utf-8")
    plan = make(workspace)
    assert plan.notes == (
        "recipe auto: the first run chooses the parameters; this is the plan of photos-small, chosen now",
    )
    assert plan.total.seconds > 0
    assert workspace.params.read_text(encoding="utf-8") == text, "nothing is chosen yet"
    assert measurements


@pytest.mark.seconds
def test_a_run_foresees_only_what_was_measured(tmp_path: Path) -> None:
    workspace = workspaces.create(tmp_path / "new", "cpu-small")
    assert plans.foresee(workspace, News(5, 0)) is None
    measured.keep(workspace.root, read(workspace), MEASURED)
    plan = plans.foresee(workspace, News(5, 0))
    assert plan is not None
    assert None not in plan.stages.values()


@pytest.mark.seconds
def test_a_copied_workspace_has_nothing_new_and_labels_that_change_are_news(filled: Workspace, tmp_path: Path) -> None:
    """Every file of a copy has another stamp, and its folder another name; a run reads them and finds them known."""
    ingest(filled)
    measured.keep(filled.root, read(filled), MEASURED)
    shutil.copytree(filled.root, tmp_path / "copy", symlinks=True)
    copy = Workspace(tmp_path / "copy")
    assert survey(copy, ["inbox"]).new_files == 40
    assert make(copy).notes == ("no new images",)
    put(copy, "labels.csv", b"path,label\nunlabeled/camera 0/000.png,cross\n")
    plan = make(copy)
    assert plan.notes == ("new labels, splits or groups of 1 known image",)
    assert None not in plan.stages.values()
    put(copy, "unlabeled/new.png", encode(draw(0, 999)))
    assert make(copy).notes == ("1 new image and new labels, splits or groups of 1 known image",)
    assert ingest(copy).new_images == 1


def test_with_nothing_to_do_nothing_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measurements: list[str]
) -> None:
    workspace = Workspace(tmp_path)
    workspace.params.write_text(workspaces.template("params.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(plans, "completed", SimpleNamespace(has_nothing_to_do=lambda *_: True))
    monkeypatch.setattr(plans, "load", lambda _: GRAPH)
    plan = make(workspace)
    assert plan.notes == (NOTHING,)
    assert plan.costs == {}
    assert plan.total == Cost()
    assert measurements == []
