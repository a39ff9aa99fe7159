"""`simclr transfer`: what it writes, and what it refuses."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from deploy.artifact import publish
from pipeline.cli.main import simclr
from pipeline.workspace import Workspace
from simclr_core.errors import LabelError
from simclr_core.model.encoder import build_encoder
from simclr_core.model.model_directory import save_model

CARD = {
    "kind": "pretrained",
    "encoder": {"name": "resnet18", "width": 0.0625, "stem": "compact"},
    "preprocessing": {"size": 16, "resize": 16},
    "mean": [0.5, 0.5, 0.5],
    "std": [0.25, 0.25, 0.25],
}


@pytest.fixture
def trained(workspace: Workspace) -> Workspace:
    with publish(workspace.root / "models" / "pretrained") as directory:
        save_model(directory, build_encoder("resnet18", 0.0625, "compact", image_size=16), {}, CARD)
    return workspace


def write_set(root: Path, classes: tuple[str, ...] = ("dark", "light")) -> Path:
    for bright, label in enumerate(classes):
        for number in range(6):
            path = root / ("test" if number > 3 else "train") / label / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (9, 7), (200 * bright + number, 200 * bright, 0)).save(path)
    return root


@pytest.mark.seconds
def test_the_reports_are_written_and_say_what_cannot_be_measured(trained: Workspace, tmp_path: Path) -> None:
    write_set(tmp_path / "shades")
    (tmp_path / "shades/train/dark/bad.png").write_bytes(b"\x89PNG nothing")
    command = ["--workspace", str(trained.root), "transfer", f"shades={tmp_path / 'shades'}"]
    said = CliRunner().invoke(simclr, command, catch_exceptions=False).output
    assert "shades: 2 classes, 8 training images, 4 test images" in said
    assert "too few images" in said
    assert "random weights 3" in said
    assert "left out: 1 file that cannot be read" in said
    (found,) = json.loads((trained.reports / "transfer.json").read_text())["sets"]
    assert list(found["worth"]) == ["simclr", "random_init 0", "random_init 1", "random_init 2", "pixels"]
    assert found["worth"]["pixels"]["linear"] == found["worth"]["pixels"]["knn"] == 100
    assert "<h1>Transfer</h1>" in (trained.reports / "transfer.html").read_text()


def test_a_set_of_one_class_leaves_no_report(trained: Workspace, tmp_path: Path) -> None:
    write_set(tmp_path, ("dark",))
    result = CliRunner().invoke(simclr, ["--workspace", str(trained.root), "transfer", f"shades={tmp_path}"])
    assert isinstance(result.exception, LabelError)
    assert "one class, 'dark'" in str(result.exception)
    assert not (trained.reports / "transfer.json").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "no set to measure on"),
        (["birds"], "'birds': give NAME=FOLDER"),
        (["=birds"], "give NAME=FOLDER"),
        (["digits=x", "--set", "digits"], "a name occurs twice"),
    ],
)
def test_wrong_arguments(workspace: Workspace, given: list[str], said: str) -> None:
    result = CliRunner().invoke(simclr, ["--workspace", str(workspace.root), "transfer", *given])
    assert result.exit_code == 2
    assert said in result.output
