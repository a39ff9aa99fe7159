"""What is known of encoders without torch is what torch's networks do."""

import subprocess
import sys

import pytest
import torch
import torchvision.models

from simclr_core.encoder_names import NO_BLOCKS, RESNETS, TORCHVISION, has_one_side, side_fault
from simclr_core.errors import UnknownEncoderError
from simclr_core.model import encoder
from simclr_core.model.encoder import build_encoder, require_other_side
from simclr_core.model.gradient_checkpointing import blocks


def test_the_names_are_those_of_torchvision_and_one_of_ours() -> None:
    known = torchvision.models.list_models(module=torchvision.models)
    assert {*RESNETS, *TORCHVISION.split()} == {*known, "resnet10"}


@pytest.mark.seconds
def test_they_are_known_without_torch() -> None:
    program = "import sys, simclr_core.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.seconds
@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("alexnet", 63),
        ("convnext_tiny", 32),
        ("densenet121", 29),
        ("googlenet", 15),
        ("inception_v3", 75),
        ("squeezenet1_0", 21),
        ("squeezenet1_1", 17),
        ("vgg11_bn", 32),
        ("maxvit_t", 221),
        ("vit_b_16", 32),
        ("vit_b_32", 64),
    ],
)
def test_an_image_that_is_too_small_for_a_network_is_known_before_it_is_built(name: str, side: int) -> None:
    assert side_fault(name, side) is None
    assert side_fault(name, side - 1) is not None
    with torch.device("meta"):
        assert len(build_encoder(name, image_size=side)(torch.zeros(2, 3, side, side))) == 2
        with pytest.raises((RuntimeError, ValueError, AssertionError)):
            build_encoder(name, image_size=side - 1)(torch.zeros(2, 3, side - 1, side - 1))


@pytest.mark.seconds
@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "mobilenet_v3_small", "shufflenet_v2_x0_5"])
def test_others_take_the_smallest_images_there_are(name: str) -> None:
    assert side_fault(name, 8) is None
    with torch.device("meta"):
        assert len(build_encoder(name)(torch.zeros(2, 3, 8, 8))) == 2


@pytest.mark.parametrize(("name", "other"), [("vit_b_16", 96), ("maxvit_t", 448)])
def test_networks_of_one_side_take_no_other(name: str, other: int) -> None:
    assert has_one_side(name)
    with torch.device("meta"), pytest.raises((RuntimeError, ValueError, AssertionError)):
        build_encoder(name)(torch.zeros(2, 3, other, other))


@pytest.mark.seconds
@pytest.mark.parametrize("name", ["resnet18", "swin_t", "convnext_tiny"])
def test_others_take_any(name: str) -> None:
    assert not has_one_side(name)
    require_other_side(name, 224, 96)
    with torch.device("meta"):
        both = torch.zeros(2, 3, 224, 224), torch.zeros(4, 3, 96, 96)
        assert len(build_encoder(name)(both)) == 6


def test_one_that_only_timm_knows_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    class Timm:
        def get_pretrained_cfg_value(self, name: str, key: str) -> bool:
            assert key == "fixed_input_size"
            return name == "vit_tiny"

    monkeypatch.setattr(encoder, "import_timm", Timm)
    require_other_side("timm/resnet18", 224, 96)
    require_other_side("timm/vit_tiny", 224, 224)
    with pytest.raises(UnknownEncoderError, match="'timm/vit_tiny' takes images of one size, 224 pixels here; set"):
        require_other_side("timm/vit_tiny", 224, 96)


@pytest.mark.parametrize("name", ["vgg11", "alexnet", "inception_v3", "densenet121", "squeezenet1_0"])
def test_networks_without_blocks_are_known(name: str) -> None:
    with torch.device("meta"):
        assert (name in NO_BLOCKS) == (not list(blocks(build_encoder(name))))
