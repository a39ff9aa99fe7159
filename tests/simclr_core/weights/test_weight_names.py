"""Names of weights: those of the common tools find the encoder's, and the weights of another encoder are refused."""

import math
from pathlib import Path

import pytest
import torch
import torchvision.models
from torch import Tensor, nn

from deploy.graph_policy import check_graph
from simclr_core.errors import WeightsError
from simclr_core.export.onnx_graph import ServedEncoder, export_graph
from simclr_core.model.encoder import build_encoder
from simclr_core.weights.weight_names import Match, match
from simclr_core.weights.weights_file import read_weights_file

SMALL = ("resnet10", 0.125, "compact")


def trained(*arguments: object, seed: int = 3) -> nn.Module:
    """A backbone in which no two tensors are equal and no statistic is as it begins."""
    backbone = build_encoder(*arguments).backbone.eval()  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in backbone.state_dict().items():
            if tensor.is_floating_point() and tensor.ndim <= 1:
                noise = torch.rand(tensor.shape, generator=generator)
                tensor.copy_(noise + 0.5 if name.endswith(("weight", "var")) else noise - 0.5)
    return backbone


def loaded(backbone: nn.Module, tensors: dict[str, Tensor]) -> Match:
    found = match(backbone, tensors, "file", "the encoder")
    backbone.load_state_dict(found.tensors, strict=False)
    return found


def assert_equal_outputs(one: nn.Module, other: nn.Module, side: int, tolerance: float = 0.0) -> None:
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (one.eval()(images).flatten(1) - other.eval()(images).flatten(1)).abs().max() <= tolerance


@pytest.mark.parametrize(
    "prefix",
    [
        "", "module.", "state_dict.model.", "state_dict.backbone.", "encoder.", "state_dict.module.encoder_q.",
        "student.module.backbone.", "model_state_dict.online_encoder.net.", "teacher.",
    ],
)  # fmt: skip
def test_what_tools_put_before_a_name_is_found(prefix: str) -> None:
    source = trained(*SMALL)
    tensors = {f"{prefix}{name}": tensor for name, tensor in source.state_dict().items()}
    tensors |= {f"{prefix}fc.weight": torch.ones(10, 64), "queue": torch.ones(8, 4)}
    target = build_encoder(*SMALL).backbone
    found = loaded(target, tensors)
    assert (found.prefix, found.missing) == (prefix, {})
    assert set(found.unused) == {f"{prefix}fc.weight", "queue"}
    assert_equal_outputs(source, target, 32)


def test_a_sequence_of_layers_has_positions_in_place_of_names() -> None:
    source, target = trained(*SMALL), build_encoder(*SMALL).backbone
    sequence = nn.Sequential(*source.children())
    found = loaded(target, {f"state_dict.backbone.{name}": one for name, one in sequence.state_dict().items()})
    assert (found.prefix, found.missing, found.unused) == ("state_dict.backbone.", {}, ())
    assert_equal_outputs(source, target, 32)


def test_of_two_networks_in_a_file_the_query_and_the_teacher_are_taken() -> None:
    for first, second in (("encoder_q.", "encoder_k."), ("teacher.", "student."), ("online.", "target.")):
        good, other = trained(*SMALL, seed=1), trained(*SMALL, seed=2)
        tensors = {f"{second}{name}": one for name, one in other.state_dict().items()}
        tensors |= {f"{first}{name}": one for name, one in good.state_dict().items()}
        target = build_encoder(*SMALL).backbone
        assert loaded(target, tensors).prefix == first
        assert_equal_outputs(good, target, 32)


@pytest.mark.seconds
@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize(("name", "side"), [("resnet18", 64), ("vit_b_32", 64), ("mobilenet_v3_small", 64)])
def test_state_dicts_of_torchvision_load_fully(name: str, side: int) -> None:
    arguments = {"image_size": side} if name.startswith("vit") else {}
    source = torchvision.models.get_model(name, weights=None, **arguments)
    encoder = build_encoder(name, image_size=side)
    found = loaded(encoder.backbone, source.state_dict())
    assert found.missing == {}
    last = list(source.named_children())[-1][0]
    assert all(one.startswith(last) for one in found.unused)
    linear = [module for module in source.modules() if isinstance(module, nn.Linear)][-1]
    linear.weight.data, linear.bias.data = torch.eye(linear.in_features), torch.zeros(linear.in_features)
    assert_equal_outputs(source, encoder, side, tolerance=1e-6)


@pytest.mark.seconds
@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "convnext_atto"])
def test_state_dicts_of_timm_load_fully(name: str) -> None:
    timm = pytest.importorskip("timm")
    arguments = {"img_size": 64} if name.startswith("vit") else {}
    source = timm.create_model(name, pretrained=False, **arguments).eval()
    encoder = build_encoder(f"timm/{name}", image_size=64)
    found = loaded(encoder.backbone, source.state_dict())
    assert found.missing == {}
    assert all(one.startswith(("fc.", "head.")) for one in found.unused)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = source.forward_head(source.forward_features(images), pre_logits=True)
        assert torch.equal(encoder.eval()(images), expected)
    assert encoder.feature_dim == expected.shape[1]


@pytest.mark.seconds
def test_resnets_of_timm_and_torchvision_exchange_weights() -> None:
    timm = pytest.importorskip("timm")
    source, target = timm.create_model("resnet18", num_classes=0), build_encoder("resnet18").backbone
    assert loaded(target, source.state_dict()).missing == {}
    assert_equal_outputs(source, target, 64, tolerance=1e-5)


@pytest.mark.usefixtures("shallow")
def test_positions_are_resized_as_torchvision_does() -> None:
    source = torchvision.models.vit_b_32(weights=None, image_size=96)
    target = build_encoder("vit_b_32", image_size=64).backbone
    found = loaded(target, source.state_dict())
    expected = torchvision.models.vision_transformer.interpolate_embeddings(64, 32, source.state_dict())
    name = "encoder.pos_embedding"
    assert found.changed == {name: "was resized from 10 to 5 positions"}
    assert torch.allclose(target.state_dict()[name], expected[name], atol=1e-6, rtol=0) is False  # align_corners=True
    corners = source.state_dict()[name][:, 1:].reshape(1, 3, 3, -1).permute(0, 3, 1, 2)
    oracle = nn.functional.interpolate(corners, size=(2, 2), mode="bicubic", align_corners=False)
    assert torch.allclose(target.state_dict()[name][0, 1], oracle[0, :, 0, 0])
    assert torch.equal(target.state_dict()[name][:, :1], source.state_dict()[name][:, :1])


def test_weights_of_gray_images_are_spread_over_the_channels() -> None:
    source = trained(*SMALL)
    tensors = dict(source.state_dict())
    gray = tensors["conv1.weight"].sum(1, keepdim=True)
    tensors["conv1.weight"] = gray
    target = build_encoder(*SMALL).backbone
    assert loaded(target, tensors).changed == {"conv1.weight": "was spread from gray over the channels"}
    plane = torch.rand(1, 1, 16, 16)
    ours = nn.functional.conv2d(plane.expand(1, 3, 16, 16), target.state_dict()["conv1.weight"])
    assert torch.allclose(ours, nn.functional.conv2d(plane, gray), atol=1e-5)


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_those_of_the_encoder(precision: torch.dtype) -> None:
    source, target = trained(*SMALL), build_encoder(*SMALL).backbone
    loaded(target, {n: t.to(precision) if t.is_floating_point() else t for n, t in source.state_dict().items()})
    assert target.state_dict()["conv1.weight"].dtype == torch.float32


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (
            ("resnet10", 0.25, "compact"),
            r"is not of the encoder, of which only \d+% match \(conv1.weight: shape \[16, 3",
        ),
        (("resnet18", 0.125, "compact"), r"which does not have its layers layer1\.1\.conv1\.weight, .* more; set"),
        (("mobilenet_v3_small",), r"only \d+% match \(conv1.weight: absent"),
    ],
)
def test_weights_of_another_encoder_are_refused(source: tuple[object, ...], reason: str) -> None:
    tensors = dict(build_encoder(*source).backbone.state_dict())  # type: ignore[arg-type]
    with pytest.raises(WeightsError, match=reason):
        match(build_encoder(*SMALL).backbone, tensors, "file", "the encoder")


def test_a_stem_of_another_shape_is_listed_and_begins_at_random() -> None:
    source = trained("resnet10", 0.125, "imagenet")
    found = match(build_encoder(*SMALL).backbone, dict(source.state_dict()), "file", "the encoder")
    assert found.missing == {"conv1.weight": "shape [8, 3, 7, 7], the encoder's is [8, 3, 3, 3]"}
    assert "not in the file: conv1.weight; not used of the file: conv1.weight" in str(found)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_refused(value: float) -> None:
    tensors = {name: tensor.clone() for name, tensor in trained(*SMALL).state_dict().items()}
    tensors["layer2.0.bn1.bias"][1] = value
    with pytest.raises(WeightsError, match=r"has numbers that are not finite in layer2\.0\.bn1\.bias"):
        match(build_encoder(*SMALL).backbone, tensors, "file", "the encoder")


@pytest.mark.seconds
@pytest.mark.parametrize("name", ["resnet10", "timm/vit_tiny_patch16_224"])
def test_our_own_onnx_loads_back_and_computes_the_same(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name.startswith("timm"):
        transformers = pytest.importorskip("timm").models.vision_transformer
        make = transformers._create_vision_transformer

        def shallow(*given: object, **named: object) -> nn.Module:
            return make(*given, **named | {"depth": 2})

        monkeypatch.setattr(transformers, "_create_vision_transformer", shallow)
        arguments: tuple[object, ...] = (name, 1.0, "imagenet", 32)
    else:
        arguments = SMALL
    source = trained(*arguments)
    encoder = build_encoder(*arguments)  # type: ignore[arg-type]
    encoder.backbone.load_state_dict(source.state_dict())
    graph = export_graph(ServedEncoder(encoder, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)), 32, 20, {})
    check_graph(graph)  # what the encoder is served from
    (tmp_path / "m.onnx").write_bytes(graph)
    target = build_encoder(*arguments).backbone  # type: ignore[arg-type]
    assert loaded(target, read_weights_file(tmp_path / "m.onnx")).missing == {}
    assert_equal_outputs(source, target, 32, tolerance=1e-4)
