"""`simclr weights`: the file is tried and copied, and params.yaml is set as its card says, or stays as it is."""

import re
import shutil
from pathlib import Path

import pytest
import torch

from pipeline import params
from pipeline.cli.weights import _encoder_of, _is_same, begin_with, describe
from pipeline.dvc import client
from pipeline.errors import ParamsError
from pipeline.recipes.recipe import AUTO_HEADER
from pipeline.release.champion import pin_first
from pipeline.workspace import Workspace
from simclr_core.model.encoder import build_encoder
from simclr_core.pretraining import initial


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "resnet18.pth"
    torch.save({"state_dict": build_encoder("resnet18").backbone.state_dict()}, path)
    return path


@pytest.mark.seconds
def test_a_file_is_tried_copied_and_named_in_the_parameters(workspace: Workspace, file: Path) -> None:
    said = begin_with(workspace, str(file), "resnet18", 32)
    pretrain = params.read(workspace).pretrain
    assert (pretrain.init, pretrain.weights.source, pretrain.image_size) == ("weights", "resnet18.pth", 32)
    assert (workspace.root / "weights" / "resnet18.pth").read_bytes() == file.read_bytes()
    assert "resnet18 at 32 pixels" in said
    assert "mean 0.485, 0.456, 0.406; std 0.229, 0.224, 0.225, by torchvision's own weights of resnet18" in said
    begin_with(workspace, "resnet18.pth", "resnet18", None)  # which is in the folder now
    assert params.read(workspace).pretrain.image_size == 224


@pytest.mark.seconds
def test_a_folder_of_another_workspace_brings_encoder_and_side(
    workspace: Workspace, tmp_path: Path, file: Path
) -> None:
    begin_with(workspace, str(file), "resnet18", 32)
    initial.run(workspace.root)
    shutil.move(workspace.root / "models" / "initial" / "pretrained", tmp_path / "given")
    begin_with(workspace, str(tmp_path / "given"), None, None)
    pretrain = params.read(workspace).pretrain
    assert (pretrain.weights.source, pretrain.encoder.name, pretrain.image_size) == ("given", "resnet18", 32)


@pytest.mark.seconds
def test_what_does_not_fit_changes_no_parameter_and_leaves_no_file(workspace: Workspace, file: Path) -> None:
    before = workspace.params.read_text()
    with pytest.raises(ParamsError, match=f"{re.escape(str(file))}: is not of resnet34 for 32 pixels, of which"):
        begin_with(workspace, str(file), "resnet34", 32)
    broken = file.with_name("broken.pth")
    broken.write_bytes(b"<html>")
    with pytest.raises(ParamsError, match=f"{re.escape(str(broken))}: is neither safetensors, nor"):
        begin_with(workspace, str(broken), "resnet18", 32)
    assert files(workspace.root / "weights") == {}
    with pytest.raises(ParamsError, match="does not exist; give the file with the weights"):
        begin_with(workspace, "nothing.pth", None, None)
    assert workspace.params.read_text() == before
    workspace.params.write_text(AUTO_HEADER + before)
    with pytest.raises(ParamsError, match="is chosen by the first `simclr run`, which would replace these values"):
        begin_with(workspace, str(file), None, None)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".gitignore"}


@pytest.mark.seconds
def test_a_file_of_equal_bytes_is_taken_again_and_another_is_not_replaced(workspace: Workspace, file: Path) -> None:
    for side in (32, 64):
        begin_with(workspace, str(file), "resnet18", side)
        assert params.read(workspace).pretrain.image_size == side
    there = workspace.root / "weights" / file.name
    before = there.read_bytes()
    torch.save(build_encoder("resnet18").backbone.state_dict(), file)
    reason = f"{re.escape(str(file))}: {re.escape(str(there))} exists and differs from it; remove that one"
    with pytest.raises(ParamsError, match=reason):
        begin_with(workspace, str(file), "resnet18", 32)
    assert files(workspace.root / "weights") == {file.name: before}
    begin_with(workspace, str(there), "resnet18", 32)  # as the message advises


def test_a_folder_is_the_same_if_all_its_files_are(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        (folder / "inner").mkdir(parents=True)
        (folder / "inner" / "a").write_bytes(b"1")
    assert _is_same(one, other)
    assert not _is_same(one, other / "inner" / "a")
    (other / "b").write_bytes(b"")
    assert not _is_same(one, other)
    (one / "b").write_bytes(b"2")
    assert not _is_same(one, other)


@pytest.mark.seconds
def test_what_a_file_of_unknown_origin_expects_is_said_once_and_not_as_a_fact(
    workspace: Workspace, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = (
        "torchvision's weights of resnet18 expect 224 pixels; if these do too, they adapt to 32, from a lower start"
    )
    said = begin_with(workspace, str(file), "resnet18", 32)
    assert (said.count(expected), "expect" in caplog.text) == (1, False)
    assert "of resnet18; if these expect others, set pretrain.weights.mean and pretrain.weights.std\n" in said
    initial.run(workspace.root)
    assert caplog.text.count(f"resnet18.pth: {expected}") == 1
    params.override(workspace, {"pretrain.weights.mean": "[0, 0, 0]", "pretrain.weights.std": "[1, 1, 1]"})
    assert "pixels      mean 0, 0, 0; std 1, 1, 1, by pretrain.weights.mean and std\n" in describe(workspace)
    assert "\nresolution" not in begin_with(workspace, str(file), "resnet18", 224)


@pytest.mark.seconds
def test_what_the_card_of_a_folder_says_is_a_fact(workspace: Workspace, tmp_path: Path, file: Path) -> None:
    begin_with(workspace, str(file), "resnet18", 64)
    initial.run(workspace.root)
    given = tmp_path / "given"
    shutil.copytree(workspace.root / "models" / "initial" / "pretrained", given)
    said = begin_with(workspace, str(given), None, 32)
    assert "these weights expect 64 pixels; they adapt to 32, from a lower start" in said
    assert ", by given/model.json\n" in said


@pytest.mark.seconds
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
