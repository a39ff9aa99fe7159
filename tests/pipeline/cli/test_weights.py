"""`simclr weights`: the file is copied and tried, and params.yaml is set as its card says, or stays as it is."""

import shutil
from pathlib import Path

import pytest
import torch

from pipeline import params
from pipeline.cli.weights import _encoder_of, begin_with
from pipeline.dvc import client
from pipeline.errors import ParamsError
from pipeline.recipes.recipe import AUTO_HEADER
from pipeline.release.champion import pin_first
from pipeline.workspace import Workspace
from simclr_core.errors import WeightsError
from simclr_core.model.encoder import build_encoder
from simclr_core.pretraining import initial


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "resnet18.pth"
    torch.save({"state_dict": build_encoder("resnet18").backbone.state_dict()}, path)
    return path


def test_a_file_is_copied_tried_and_named_in_the_parameters(workspace: Workspace, file: Path) -> None:
    said = begin_with(workspace, str(file), "resnet18", 32)
    pretrain = params.read(workspace).pretrain
    assert (pretrain.init, pretrain.weights.source, pretrain.image_size) == ("weights", "resnet18.pth", 32)
    assert (workspace.root / "weights" / "resnet18.pth").read_bytes() == file.read_bytes()
    assert "resnet18 at 32 pixels" in said
    assert "mean 0.485, 0.456, 0.406; std 0.229, 0.224, 0.225, by torchvision's own weights of resnet18" in said
    begin_with(workspace, "resnet18.pth", "resnet18", None)  # which is in the folder now
    assert params.read(workspace).pretrain.image_size == 224


def test_a_folder_of_another_workspace_brings_encoder_and_side(
    workspace: Workspace, tmp_path: Path, file: Path
) -> None:
    begin_with(workspace, str(file), "resnet18", 32)
    initial.run(workspace.root)
    shutil.move(workspace.root / "models" / "initial" / "pretrained", tmp_path / "given")
    begin_with(workspace, str(tmp_path / "given"), None, None)
    pretrain = params.read(workspace).pretrain
    assert (pretrain.weights.source, pretrain.encoder.name, pretrain.image_size) == ("given", "resnet18", 32)


def test_what_does_not_fit_changes_no_parameter(workspace: Workspace, file: Path) -> None:
    before = workspace.params.read_text()
    with pytest.raises((ParamsError, WeightsError), match=r"resnet18\.pth: is not of resnet34 for 32 pixels, of which"):
        begin_with(workspace, str(file), "resnet34", 32)
    with pytest.raises(ParamsError, match="does not exist; give the file with the weights"):
        begin_with(workspace, "nothing.pth", None, None)
    with pytest.raises(ParamsError, match=r"exists; remove it first, or give `simclr weights resnet18\.pth` to"):
        begin_with(workspace, str(file), None, None)
    assert workspace.params.read_text() == before
    workspace.params.write_text(AUTO_HEADER + before)
    with pytest.raises(ParamsError, match="is chosen by the first `simclr run`, which would replace these values"):
        begin_with(workspace, str(file), None, None)


def test_another_file_in_the_folder_is_a_changed_input_of_the_stage(workspace: Workspace, file: Path) -> None:
    pin_first(workspace)
    begin_with(workspace, str(file), "resnet18", 32)
    client.repro(workspace.root, "initial")
    assert "initial" not in client.changed_stages(workspace.root, "initial")
    torch.save(build_encoder("resnet18").backbone.state_dict(), workspace.root / "weights" / file.name)
    (reason,) = client.changed_stages(workspace.root, "initial")["initial"]
    assert reason.startswith("weights")
    client.repro(workspace.root, "initial")
    start = initial.read_start(workspace.root, params.read(workspace).pretrain)
    assert initial.is_adopted(workspace.root, params.read(workspace).pretrain)
    assert str(start).startswith("weights resnet18.pth (")


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("torchvision:ResNet50_Weights.IMAGENET1K_V2", "resnet50"),
        ("torchvision:ViT_B_16_Weights.IMAGENET1K_V1", "vit_b_16"),
        ("torchvision:ConvNeXt_Tiny_Weights.DEFAULT", "convnext_tiny"),
        ("resnet50.pth", None),
    ],
)
def test_torchvision_names_the_encoder(source: str, name: str | None) -> None:
    assert _encoder_of(source) == name
