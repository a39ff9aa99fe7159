"""A new workspace gets what was proposed; one without a choice gets it at its first run, once."""

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import pytest
import yaml
from click.testing import CliRunner

from pipeline import params
from pipeline import workspace as workspaces
from pipeline.cli import main
from pipeline.cli.main import simclr
from pipeline.costs.measured import measure_units, read_measured
from pipeline.costs.model import Cost, Work, stage_costs
from pipeline.dvc.project import stage_names
from pipeline.errors import ParamsError
from pipeline.proposal import budget
from pipeline.proposal import choose as choosing
from pipeline.proposal.choose import attempt, choose_at_first_run
from pipeline.proposal.judging import Judging
from pipeline.proposal.training import Training
from pipeline.recipes.recipe import is_auto
from pipeline.workspace import Workspace
from simclr_core.monitoring.unit_costs import TrainingSet
from tests.pipeline.costs.examples import IMAGES, MEASURED
from tests.pipeline.proposal.folders import fill, photograph

BASE = workspaces.template("params.yaml").read_text(encoding="utf-8")
STAGES = stage_names(workspaces.template("dvc.yaml").parent)
DATA = TrainingSet(500, 2)


@pytest.fixture(autouse=True)
def _measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "measure", lambda text, params, contents, images: MEASURED)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for name in ("cats", "dogs"):
        fill(tmp_path / "pictures", name + "/{}.jpg", 40, lambda: photograph(120, 90))
    return tmp_path / "pictures"


def invoke(*arguments: str, answer: str | None = None) -> tuple[int, str]:
    done = CliRunner().invoke(simclr, arguments, input=answer)
    return done.exit_code, done.output


@pytest.mark.seconds
def test_a_workspace_is_made_with_what_was_proposed(tmp_path: Path, pictures: Path) -> None:
    code, shown = invoke("init", str(tmp_path / "new"), "--from", str(pictures), "--yes")
    assert code == 0, shown
    assert "ingest.class_folders" in shown
    workspace = Workspace(tmp_path / "new")
    read = params.read(workspace)
    assert (read.ingest.class_folders, read.ingest.hold_out) == (True, 0.25)
    assert read.retraining.sources == ("inbox", str(pictures))
    assert "a first run takes about " in shown
    assert read_measured(workspace.root, read) == MEASURED, "`simclr plan` measures nothing again"
    assert not is_auto(workspace.params.read_text(encoding="utf-8")), "a first run leaves it as it is"
    assert choose_at_first_run(workspace) == []


@pytest.mark.seconds
def test_nothing_is_made_without_consent(tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main, "sys", SimpleNamespace(stdin=SimpleNamespace(isatty=lambda: True)))
    code, shown = invoke("init", str(tmp_path / "new"), "--from", str(pictures), answer="n\n")
    assert code == 1
    assert "Make the workspace with these values?" in shown
    assert not (tmp_path / "new").exists()


def test_without_a_terminal_nothing_is_looked_at_before_the_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(*_: object) -> NoReturn:
        raise AssertionError("looked at the images")

    monkeypatch.setattr(choosing, "choose", look)
    code, shown = invoke("init", str(tmp_path / "new"), "--from", str(tmp_path))
    assert code == 2
    assert "there is no terminal to answer on; add --yes" in shown
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "cifar", "--from", "."], "--recipe takes the values of a recipe"),
        (["--recipe", "cifar", "--budget", "2h"], "--recipe takes the values of a recipe"),
        (["--budget", "2h"], "--budget needs images to choose for; name them with --from"),
    ],
)
def test_options_that_exclude_each_other_are_refused(tmp_path: Path, arguments: list[str], message: str) -> None:
    code, shown = invoke("init", str(tmp_path / "new"), *arguments)
    assert code == 2
    assert message in shown
    assert not (tmp_path / "new").exists()


@pytest.mark.seconds
def test_the_first_run_chooses_and_later_ones_do_not(tmp_path: Path, pictures: Path) -> None:
    assert invoke("init", str(tmp_path / "new"))[0] == 0
    workspace = Workspace(tmp_path / "new")
    text = workspace.params.read_text(encoding="utf-8")
    assert is_auto(text)
    assert yaml.safe_load(text) == yaml.safe_load(BASE)
    pictures.rename(workspace.inbox / "unlabeled" / "pictures")
    lines = choose_at_first_run(workspace)
    assert any(line.startswith("recipe ") and "photos-small" in line for line in lines)
    assert params.read(workspace).pretrain.image_size > 28
    assert params.read(workspace).retraining.sources == ("inbox",)
    assert choose_at_first_run(workspace) == []


@pytest.mark.seconds
def test_the_first_run_is_estimated_by_the_stages_of_its_workspace(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def ask(work: Work, stages: Iterable[str]) -> dict[str, Cost]:
        costs = stage_costs(work, stages)
        asked.extend(costs)
        return costs

    monkeypatch.setattr(choosing, "stage_costs", ask)
    workspace = workspaces.create(tmp_path / "new", "auto")
    graph = workspace.root / "dvc.yaml"
    text = graph.read_text(encoding="utf-8").replace('["0.01", "0.1"]', '["0.05"]')
    kept = "      - models/finetuned/"
    graph.write_text(text.replace(f"{kept}0.01\n{kept}0.1\n", f"{kept}0.05\n"), encoding="utf-8")
    pictures.rename(workspace.inbox / "unlabeled" / "pictures")
    assert choose_at_first_run(workspace)
    assert {name for name in asked if name.startswith("finetune")} == {"finetune@0.05"}


@pytest.mark.seconds
def test_too_few_images_leave_the_choice_for_later(tmp_path: Path) -> None:
    workspace = workspaces.create(tmp_path / "new", "auto")
    fill(workspace.inbox, "unlabeled/{}.jpg", 10, lambda: photograph(120, 90))
    assert choose_at_first_run(workspace) == []
    assert is_auto(workspace.params.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("10m", 600), ("2h", 7200), (" 1.5 H ", 5400), ("1d", 86_400), ("overnight", 36_000)],
)
def test_a_budget_is_a_time(text: str, seconds: float) -> None:
    assert budget.parse(text) == seconds


@pytest.mark.parametrize("text", ["", "10", "ten minutes", "-5m", "30s", "0h", "5 weeks", "nan h", "1e9h"])
def test_what_is_not_a_time_is_refused(text: str) -> None:
    with pytest.raises(ParamsError, match=r"must be a time of at least a minute, such as 10m, 2h or overnight"):
        budget.parse(text)


@pytest.mark.slow
def test_the_rate_is_that_of_real_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    trainings = [Training("cpu-small", side, "resnet10", 0.25, "compact", 32, 16) for side in (28, 56)]
    for _ in range(2):  # other work may disturb one of them
        small, large = (attempt(BASE, [], STAGES, one, IMAGES) for one in trainings)
        rates = [trial.measured.unit.images_per_second for trial in (small, large)]
        if rates[0] > 1.5 * rates[1] > 0:
            break
    else:
        pytest.fail(f"images a second: {rates}")
    few, many = Judging(5, 1, ()), Judging(3000, 3, (1, 2, 5))
    assert small.seconds(1, few) < small.seconds(2, few) < small.seconds(2, many)
    assert small.seconds(1, few) < small.seconds(1, Judging(5, 1, (5,))) < small.seconds(1, Judging(5, 3, (5,)))


@pytest.mark.slow
def test_a_training_that_does_not_run_here_is_one_sentence() -> None:
    with pytest.raises(ParamsError, match=r"a few steps of training failed on this machine: .*--recipe"):
        measure_units(BASE.replace("name: resnet10, width: 0.5, stem: compact", "name: vit_b_16, width: 1.0"), DATA)
