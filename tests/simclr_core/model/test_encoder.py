"""Encoders: the advertised width, torchvision's own names, and an explanation for what does not exist."""

from functools import partialmethod

import pytest
import torch
import torchvision
from torchvision.models.detection import fasterrcnn_resnet50_fpn
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from simclr_core.errors import UnknownEncoderError
from simclr_core.model.encoder import RESNETS, build_encoder
from tests.repetitions import repeated, some

FAMILIES = [
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "googlenet",
    "inception_v3",
    "maxvit_t",
    "mnasnet0_5",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "resnext50_32x4d",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "swin_t",
    "swin_v2_t",
    "vgg11_bn",
    "vit_b_32",
]


def check_feature_dim(name: str) -> None:
    side = 299 if name == "inception_v3" else 224
    with torch.device("meta"):  # shapes only: no memory, no arithmetic
        encoder = build_encoder(name)
        features = encoder(torch.zeros(2, 3, side, side))
    assert features.shape == (2, encoder.feature_dim)
    layers = list(encoder.backbone.children())
    assert not any(isinstance(m, torch.nn.Dropout) and m.p > 0 for m in [*layers, *layers[-1].modules()])


@pytest.mark.seconds
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_its_declared_feature_dim(name: str) -> None:
    check_feature_dim(name)


CLASSIFIERS = torchvision.models.list_models(module=torchvision.models)
OTHERS = [name for name in CLASSIFIERS if "regnet" not in name and name not in FAMILIES]


@repeated
@pytest.mark.slow
@pytest.mark.parametrize("name", some(OTHERS, 6))
def test_every_torchvision_classifier_has_its_declared_feature_dim(name: str) -> None:
    """Others of the families, which are deeper or wider."""
    check_feature_dim(name)


REGNETS = sorted((name for name in CLASSIFIERS if "regnet" in name), key=lambda name: "_400mf" in name)


@repeated
@pytest.mark.seconds
@pytest.mark.parametrize("name", [*some(REGNETS[:-2], 3), *REGNETS[-2:]])
def test_every_regnet_has_its_declared_feature_dim(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its constructor computes widths on real tensors, so that only the layers can be built without memory."""
    for layer in (torch.nn.Conv2d, torch.nn.BatchNorm2d, torch.nn.Linear):
        monkeypatch.setattr(layer, "__init__", partialmethod(layer.__init__, device="meta"))
    encoder = build_encoder(name)
    assert encoder(torch.zeros(2, 3, 64, 64, device="meta")).shape == (2, encoder.feature_dim)


@pytest.mark.seconds
@pytest.mark.parametrize("name", sorted(RESNETS.keys() - {"resnet10"}))
def test_resnet_weights_load_into_torchvisions_own_model(name: str) -> None:
    with torch.device("meta"):
        weights = build_encoder(name).backbone.state_dict()
        theirs = torchvision.models.get_model(name)
    result = theirs.load_state_dict(weights, strict=False, assign=True)
    assert (result.missing_keys, result.unexpected_keys) == (["fc.weight", "fc.bias"], [])
    assert {key: value.shape for key, value in theirs.state_dict().items() if not key.startswith("fc.")} == {
        key: value.shape for key, value in weights.items()
    }


@pytest.mark.seconds
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_torchvisions_model_computes_the_same_with_these_weights(name: str) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(name).eval()
    theirs = torchvision.models.get_model(name)
    theirs.load_state_dict(encoder.backbone.state_dict(), strict=False)
    theirs.fc = torch.nn.Identity()
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(encoder(images), theirs.eval()(images))


@pytest.mark.seconds
def test_resnet_weights_load_into_a_detection_backbone() -> None:
    with torch.device("meta"):
        detector = resnet_fpn_backbone(backbone_name="resnet18", weights=None)
    detector = detector.to_empty(device="cpu")
    result = detector.body.load_state_dict(build_encoder("resnet18").backbone.state_dict(), strict=False)
    # The frozen normalization of detectors counts no batches: everything else has a place.
    assert result.missing_keys == []
    assert all(key.endswith("num_batches_tracked") for key in result.unexpected_keys)


@pytest.mark.slow
def test_a_detector_gets_the_feature_maps_of_the_encoder() -> None:
    """Faster R-CNN's backbone with our weights: the feature map of the last stage, averaged, is h."""
    torch.manual_seed(0)
    encoder = build_encoder("resnet50")
    encoder(torch.randn(8, 3, 64, 64))  # fills its running statistics
    detector = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3, min_size=64)
    result = detector.backbone.body.load_state_dict(encoder.backbone.state_dict(), strict=False)
    assert result.missing_keys == []
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        maps = detector.eval().backbone.body(images)
        torch.testing.assert_close(maps["3"].mean(dim=(2, 3)), encoder.eval()(images))
        assert len(detector(list(images))) == 2


@pytest.mark.parametrize(("stem", "side"), [("imagenet", 8), ("cifar", 32), ("compact", 16)])
def test_stems_reduce_the_image_as_described(stem: str, side: int) -> None:
    backbone = build_encoder("resnet10", width=0.125, stem=stem).eval().backbone  # type: ignore[arg-type]
    sides = []
    backbone.layer1.register_forward_hook(lambda module, inputs, output: sides.append(output.shape[-1]))
    backbone(torch.zeros(1, 3, 32, 32))
    assert sides == [side]


@pytest.mark.seconds
@pytest.mark.parametrize(("width", "channels"), [(0.125, 8), (0.5, 32), (1.0, 64), (1.5, 96), (2.0, 128)])
def test_width_multiplies_the_channels(width: float, channels: int) -> None:
    with torch.device("meta"):
        small, large = build_encoder("resnet18", width), build_encoder("resnet50", width)
    assert small.backbone.conv1.out_channels == channels
    assert (small.feature_dim, large.feature_dim) == (8 * channels, 32 * channels)


@pytest.mark.seconds
def test_a_position_table_follows_the_image_size() -> None:
    with torch.device("meta"):
        assert build_encoder("vit_b_32", image_size=64)(torch.zeros(1, 3, 64, 64)).shape == (1, 768)


def test_the_seed_decides_the_weights() -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.nn.utils.parameters_to_vector(build_encoder("resnet10", width=0.125).parameters())

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet19"}, "encoder 'resnet19' is not known; did you mean resnet1"),
        ({"name": "ConvNextTiny"}, "convnext_tiny"),
        ({"name": "qqq"}, "allowed: resnet10, resnet18"),
        ({"name": "fasterrcnn_resnet50_fpn"}, "is not known"),
        ({"name": "convnext_tiny", "width": 2.0}, "no width or stem to choose .given width 2, stem 'imagenet'."),
        ({"name": "vit_b_32", "stem": "cifar"}, "no width or stem to choose"),
    ],
)
def test_unknown_networks_are_refused_with_the_choices(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UnknownEncoderError, match=message):
        build_encoder(**arguments)  # type: ignore[arg-type]
