"""Teachers from files give what the model directory gives; a wrong file ends in one sentence."""

import copy
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn

from simclr_core.config import DistillConfig, EncoderConfig
from simclr_core.data.shards import DatasetCard, read_card
from simclr_core.distillation import distill
from simclr_core.distillation.teacher import AsExpected, Seen, Teacher, choose_teacher
from simclr_core.errors import SimclrError
from simclr_core.model.model_directory import Model, load_model
from tests.sentences import assert_plain
from tests.simclr_core.distillation.conftest import change

OWN = EncoderConfig(name="resnet10", width=0.125, stem="compact")
PIXELS = {"mean": (0.4, 0.4, 0.4), "std": (0.3, 0.3, 0.3)}


def seen(workspace: Path, side: int = 16) -> Seen:
    return Seen(read_card(workspace / "data" / "prepared"), side)


def choose(workspace: Path, source: str, **values: Any) -> Teacher:
    return choose_teacher(workspace, DistillConfig(teacher=source, **values), OWN, seen(workspace))


def network_of(model: Model) -> nn.Sequential:
    head = nn.Linear(model.encoder.feature_dim, 4)
    head.load_state_dict(model.head)
    return nn.Sequential(copy.deepcopy(model.encoder), head).eval()


def export(network: nn.Module, path: Path, side: int = 16, batch: bool = True) -> Path:
    path.parent.mkdir(exist_ok=True)
    shapes = ({0: "batch"},) if batch else None
    program = torch.onnx.export(
        network.eval(),
        (torch.zeros(2, 3, side, side),),
        dynamo=True,
        dynamic_shapes=shapes,
        external_data=False,
        verbose=False,
    )
    assert program is not None
    program.save(str(path))
    return path


@pytest.mark.seconds
def test_a_classifier_from_each_kind_of_file_gives_the_targets_of_the_model_directory(tuned: Path) -> None:
    directory, folder = tuned / "models" / "finetuned" / "0.1", tuned / "weights"
    network = network_of(load_model(directory))
    export(network, folder / "teacher.onnx")
    export(nn.Sequential(network, nn.Softmax(dim=1)), folder / "softmax.onnx")
    state = {f"module.{name}": one for name, one in network[0].backbone.state_dict().items()}
    state |= {f"module.fc.{name}": one for name, one in network[1].state_dict().items()}
    torch.save({"state_dict": state}, folder / "teacher.pth")
    shutil.copytree(directory, folder / "copy")
    ours = choose(tuned, "0.1")
    views = torch.randn(5, 3, 16, 16)
    expected = ours.network(views)
    torch.testing.assert_close(expected, network(views))
    assert ours.learned_from == ("0.1", 0)
    for source, given in (("copy", {}), ("teacher.pth", PIXELS), ("teacher.onnx", PIXELS), ("softmax.onnx", PIXELS)):
        teacher = choose(tuned, source, **given)
        assert (teacher.has_classes, teacher.dim) == (True, 4), source
        found = teacher.network(views)
        torch.testing.assert_close(found.softmax(1), expected.softmax(1), rtol=1e-4, atol=1e-6)
    same = choose(tuned, "copy")
    assert torch.equal(same.network(views), expected)
    assert (same.identity, same.learned_from) == (ours.identity, ours.learned_from)


@pytest.mark.seconds
def test_a_student_learns_the_direction_of_the_vectors_of_an_encoder(tuned: Path) -> None:
    encoder = load_model(tuned / "models" / "pretrained").encoder
    export(encoder, tuned / "weights" / "encoder.onnx")
    torch.save(encoder.backbone.state_dict(), tuned / "weights" / "encoder.pth")
    views = torch.randn(5, 3, 16, 16)
    for source in ("encoder.onnx", "encoder.pth"):
        teacher = choose(tuned, source, **PIXELS)
        assert (teacher.has_classes, teacher.dim) == (False, encoder.feature_dim)
        torch.testing.assert_close(teacher.network(views), encoder(views), rtol=1e-4, atol=1e-4)
    change(tuned, "distill", teacher="encoder.onnx", mean=[0.4] * 3, std=[0.3] * 3)
    distill.run(tuned)
    found = load_model(tuned / "models" / "distilled")
    assert found.card["classes"] is None
    assert sorted(found.head) == ["map.bias", "map.weight"]
    assert found.card["metrics"]["loss_last"] < found.card["metrics"]["loss_first"] < 4
    change(tuned, "distill", alpha=0.5)
    with pytest.raises(SimclrError, match="the teacher has no classes"):
        distill.run(tuned)


def test_a_teacher_gets_pixels_as_it_expects_them(tuned: Path) -> None:
    """Of another side and another normalization, from the views of the student."""
    shown: list[torch.Tensor] = []

    class Watching(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            shown.append(images)
            return images.mean((2, 3))

    card: DatasetCard = read_card(tuned / "data" / "prepared")
    expected = AsExpected(Watching(), Seen(card, 16), 24, (0.0, 0.5, 0.5), (1.0, 0.5, 0.25))
    pixels = torch.tensor([0.2, 0.4, 0.6]).view(1, 3, 1, 1).expand(2, 3, 16, 16)
    expected((pixels - 0.4) / 0.3)
    assert shown[0].shape == (2, 3, 24, 24)
    torch.testing.assert_close(shown[0][0, :, 3, 3], torch.tensor([0.2, -0.2, 0.4]))


def put(workspace: Path, kind: str) -> str:
    folder = workspace / "weights"
    folder.mkdir(exist_ok=True)
    path = folder / kind
    network = nn.Sequential(nn.Flatten(), nn.Linear(768, 4))
    if kind == "text.onnx":
        path.write_text("no graph at all")
    elif kind == "damaged.onnx":
        path.write_bytes(export(network, path).read_bytes()[:900])
    elif kind == "fixed.onnx":
        export(network, path, batch=False)
    elif kind == "maps.onnx":
        export(nn.Conv2d(3, 4, 3), path)
    elif kind == "elsewhere.onnx":
        graph = onnx.load(export(network, path))
        onnx.save(graph, path, save_as_external_data=True, location="other.bin", size_threshold=0)
    elif kind == "lacking.pth":
        state = load_model(workspace / "models" / "pretrained").encoder.backbone.state_dict()
        del state["bn1.weight"]
        torch.save(state, path)
    elif kind == "other.pth":
        torch.save(network.state_dict(), path)
    elif kind == "code.pth":
        torch.save(network, path)
    return kind


@pytest.mark.seconds
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("text.onnx", "is neither safetensors, nor a state dict"),
        ("damaged.onnx", "onnxruntime cannot load it"),
        ("fixed.onnx", r"takes .*; export a teacher that takes float32 images \[batch, 3, side, side\]"),
        ("maps.onnx", "export a teacher whose first output is"),
        ("elsewhere.onnx", "export it again, with its weights inside"),
        ("lacking.pth", "lacks weights of resnet10, which would stay random"),
        ("other.pth", "set distill.teacher_encoder to the network"),
        ("code.pth", "holds more than weights"),
    ],
)
def test_a_wrong_file_ends_in_a_sentence(tuned: Path, kind: str, said: str) -> None:
    with pytest.raises(SimclrError, match=said) as caught:
        choose(tuned, put(tuned, kind), **PIXELS)
    assert "\n" not in str(caught.value)
    if "onnxruntime" not in said and "inside" not in said:
        assert_plain(str(caught.value))


def test_a_graph_needs_a_normalization(tuned: Path) -> None:
    export(nn.Sequential(nn.Flatten(), nn.Linear(768, 4)), tuned / "weights" / "teacher.onnx")
    with pytest.raises(SimclrError, match=r"give distill\.mean and distill\.std"):
        choose(tuned, "teacher.onnx")


def test_a_teacher_of_other_classes_is_refused(tuned: Path) -> None:
    card = read_card(tuned / "data" / "prepared")
    other = Seen(replace(card, classes=("a", "b")), 16)
    with pytest.raises(SimclrError, match="knows the classes circle, cross"):
        choose_teacher(tuned, DistillConfig(teacher="0.1"), OWN, other)
