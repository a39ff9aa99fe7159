"""A search in a workspace: real trainings, a kill on the way, what is written, and who is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

import deploy.failpoint
from pipeline.dvc import client
from pipeline.errors import BusyError, ParamsError
from pipeline.maintenance.records import tidy
from pipeline.params import read
from pipeline.tune import tune as module
from pipeline.tune.report import Asked, Report
from pipeline.tune.tune import tune
from pipeline.workspace import Workspace
from simclr_core.tune.comparison import Comparison
from simclr_core.tune.halving import Plan, Rung
from simclr_core.tune.search import Outcome, Search
from simclr_core.tune.trial import Trainings
from tests.conftest import TINY_PARAMS, write_prepared

pytest.importorskip("optuna")
ASKED = Asked(seconds=60.0, trials=2)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """Training images, half of them labeled, and no test split; every training is one epoch."""
    root = write_prepared(tmp_path / "workspace")
    shutil.rmtree(root / "data" / "prepared" / "test")
    monkeypatch.setattr(Trainings, "epoch_seconds", lambda *_: 1.0)
    monkeypatch.setattr(module, "plan", lambda *_: Plan((Rung(2, 1.0),), 1.0))
    return Workspace(root)


def results(found: Report) -> list[object]:
    return [replace(one, cpu_seconds=0.0) for one in found.outcome.tried]


@pytest.mark.slow
def test_after_a_kill_the_search_ends_with_the_same_table(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Workspace(shutil.copytree(workspace.root, workspace.root.with_name("other")))
    whole = tune(other, ASKED, lambda _: None)
    for place in ("checkpoint.remove:raise@1", "tune.trained:raise@1"):
        deploy.failpoint._reached.clear()
        monkeypatch.setenv(deploy.failpoint.VARIABLE, place)
        with pytest.raises(RuntimeError, match="failpoint"):
            tune(workspace, ASKED, lambda _: None)
    monkeypatch.delenv(deploy.failpoint.VARIABLE)
    found = tune(workspace, ASKED, lambda _: None)
    assert results(found) == results(whole)
    assert found.advice == whole.advice
    report = json.loads((workspace.reports / "tune.json").read_text())
    assert [one["settings"] for one in report["tried"]][:2] == [0, 1]
    assert report["judge"]["by"] == "labels"
    assert not [*workspace.scratch.glob("tune/*/0-*")], "a training that is recorded leaves nothing"
    tidied = tidy(workspace, read(workspace).storage)
    assert tidied.files
    assert not [*workspace.scratch.glob("tune/*")]


def imagine(monkeypatch: pytest.MonkeyPatch, better: bool) -> None:
    values = {0: {"temperature": 0.5, "encoder.width": 0.125}, 1: {"temperature": 0.2, "encoder.width": 0.25}}
    comparison = Comparison(3, 2.0, 1.0 if better else -1.0, 3.0, better)
    monkeypatch.setattr(Search, "run", lambda *_: Outcome(values, [], 1, comparison, 1))


PARAMS = """# mine
pretrain:
  temperature: 0.5  # the paper has 0.1
  encoder: {name: resnet10, width: 0.125, stem: compact}  # small
  epochs: 2
"""


@pytest.mark.parametrize(("better", "write"), [(True, True), (True, False), (False, True)])
def test_only_a_better_winner_is_written_and_only_its_keys(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, better: bool, write: bool
) -> None:
    others = {name: block for name, block in TINY_PARAMS.items() if name != "pretrain"}
    pretrain = {
        name: value
        for name, value in TINY_PARAMS["pretrain"].items()
        if name not in ("temperature", "encoder", "epochs")
    }
    text = PARAMS + "".join(f"  {line}\n" for line in yaml.safe_dump(pretrain).splitlines()) + yaml.safe_dump(others)
    workspace.params.write_text(text)
    imagine(monkeypatch, better)
    found = tune(workspace, replace(ASKED, write=write), lambda _: None)
    assert found.written == (better and write)
    assert ("keep what you have" in found.advice) == (not better)
    after = workspace.params.read_text().splitlines()
    changed = [
        (one, other)
        for one, other in zip(text.splitlines(), after, strict=True)
        if one.split() != other.split()  # a longer value moves the comment
    ]
    expected = [
        ("  temperature: 0.5  # the paper has 0.1", "  temperature: 0.2  # the paper has 0.1"),
        (
            "  encoder: {name: resnet10, width: 0.125, stem: compact}  # small",
            "  encoder: {name: resnet10, width: 0.25, stem: compact}   # small",
        ),
        ("  epochs: 2", "  epochs: 1"),
    ]
    assert [pair for pair in changed if pair[0].startswith(("  temp", "  enc", "  ep"))] == (
        expected if found.written else []
    )


def test_a_second_search_is_refused(workspace: Workspace) -> None:
    with client.exclusive(workspace.root, "simclr tune"), pytest.raises(BusyError, match="simclr tune of process"):
        tune(workspace, ASKED, lambda _: None)


def test_a_time_that_is_too_short_is_refused(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainings, "epoch_seconds", lambda *_: 10.0)
    with pytest.raises(ParamsError, match="give at least 10 min"):
        tune(workspace, ASKED, lambda _: None)
    assert not [*workspace.scratch.glob("tune/*")], "the measured speed is not kept"


def test_without_optuna_the_command_that_installs_it_is_named(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.tune.tune.find_spec", lambda _: None)
    with pytest.raises(ParamsError, match=r"needs Optuna, which is not installed; run .*pip install '.*\[tune\]'"):
        tune(workspace, Asked(60.0))
