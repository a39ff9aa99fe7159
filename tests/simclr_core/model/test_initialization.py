"""What a fresh network begins with, against the distributions that the papers name; and what training leaves alone."""

from math import sqrt
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from simclr_core.errors import UnknownEncoderError
from simclr_core.model.encoder import Encoder, build_encoder
from simclr_core.model.initialization import initialize
from simclr_core.model.model_directory import load_model
from simclr_core.model.projection_head import build_projection_head
from simclr_core.pretraining import pretrain
from tests.simclr_core.conftest import configure, results

NOTHING: dict[str, Any] = {
    "scheme": "torch",
    "zero_last_gamma": False,
    "without_last_beta": False,
    "frozen_first_layer": False,
}


def built(name: str = "resnet10", **changes: Any) -> tuple[Encoder, nn.Module]:
    torch.manual_seed(0)
    shape = (0.5, "compact") if name.startswith("resnet") else (1.0, "imagenet")
    encoder = build_encoder(name, *shape, image_size=32)
    head = build_projection_head(encoder.feature_dim, 2, 256, 128)
    initialize(encoder, head, **{**NOTHING, **changes})
    return encoder, head


def weights(*modules: nn.Module) -> dict[str, Tensor]:
    return {f"{place} {name}": value for place, one in enumerate(modules) for name, value in one.state_dict().items()}


def test_with_nothing_asked_for_nothing_is_drawn() -> None:
    torch.manual_seed(0)
    encoder = build_encoder("resnet10", 0.5, "compact", 32)
    plain = weights(encoder, build_projection_head(encoder.feature_dim, 2, 256, 128))
    following = torch.rand(1)
    asked = weights(*built())
    assert torch.equal(torch.rand(1), following)
    assert all(torch.equal(value, asked[name]) for name, value in plain.items())


def test_the_distributions_are_those_of_the_code_of_simclr() -> None:
    encoder, head = built(scheme="simclr")
    convolutions = [layer for layer in encoder.modules() if isinstance(layer, nn.Conv2d)]
    assert len(convolutions) > 8
    for layer in convolutions:
        fan_in = layer.in_channels * layer.kernel_size[0] * layer.kernel_size[1]
        expected, weight = 1 / sqrt(fan_in), layer.weight.detach()
        assert float(weight.std()) == pytest.approx(expected, rel=4 / sqrt(2 * weight.numel()))
        assert abs(float(weight.mean())) < 4 * expected / sqrt(weight.numel())
        assert float(weight.abs().max()) < 2.28 * expected  # two deviations of what is not cut off yet
    for layer in head.modules():
        if isinstance(layer, nn.Linear):
            assert float(layer.weight.detach().std()) == pytest.approx(0.01, rel=0.02)


@pytest.mark.parametrize("name", ["resnet10", "resnet50"])
def test_residual_blocks_begin_as_the_identity(name: str) -> None:
    encoder, _ = built(name, zero_last_gamma=True)
    blocks = [block for block in encoder.modules() if isinstance(block, BasicBlock | Bottleneck)]
    assert blocks
    for block in blocks:
        if block.downsample is None:
            norm = block.bn3 if isinstance(block, Bottleneck) else block.bn2
            inputs = torch.rand(2, norm.num_features, 4, 4)
            torch.testing.assert_close(block.train()(inputs), inputs)


def test_a_network_without_such_a_layer_is_refused() -> None:
    with pytest.raises(UnknownEncoderError, match=r"no residual block .*zero_last_gamma: false"):
        built("squeezenet1_1", zero_last_gamma=True)


@pytest.mark.seconds
@pytest.mark.parametrize(
    ("name", "layer"), [("vit_b_32", "conv_proj"), ("timm/vit_small_patch16_224", "patch_embed.proj")]
)
def test_the_first_convolution_of_a_vit_is_its_patch_projection(name: str, layer: str) -> None:
    encoder, _ = built(name, frozen_first_layer=True)
    frozen = {name for name, weight in encoder.named_parameters() if not weight.requires_grad}
    assert frozen == {f"backbone.{layer}.weight", f"backbone.{layer}.bias"}


@pytest.mark.seconds
@pytest.mark.usefixtures("pictures_by_digest")
def test_what_is_not_trained_stays_and_all_else_moves(prepared: Path) -> None:
    configure(prepared, epochs=1, weight_decay=0.1, initialization={**NOTHING, "frozen_first_layer": True})
    pretrain.run(prepared)
    plain = load_model(prepared / "models" / "pretrained")
    assert float(plain.head["4.bias"].abs().max()) > 0
    configure(prepared, initialization={**NOTHING, "without_last_beta": True, "frozen_first_layer": True})
    pretrain.run(prepared)
    trained = load_model(prepared / "models" / "pretrained")
    assert trained.head.keys() == plain.head.keys()
    assert float(trained.head["4.bias"].abs().max()) == 0
    torch.manual_seed(0)
    start = build_encoder("resnet10", 0.125, "compact", 16).state_dict()
    first = "backbone.conv1.weight"
    for name, value in trained.encoder.state_dict().items():
        assert torch.equal(value, start[name]) == (name == first), name
    assert results(prepared)
