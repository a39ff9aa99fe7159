"""The encoder f: the network whose output h is kept after pretraining.

ResNets come with a width multiplier and three stems; every other classification model of torchvision comes by its name,
and every one of timm by ``timm/`` and its name.
``Encoder.backbone`` has torchvision's own parameter names, so that the weights of a ResNet of width 1 with the
"imagenet" stem load into torchvision's model, and into whatever is built on it.
"""

from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import Any, Literal

import torch
import torchvision.models
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from simclr_core.encoder_names import TIMM, TIMM_MISSING, fixed_shape, has_one_side, unknown_encoder
from simclr_core.errors import UnknownEncoderError
from simclr_core.model.first_layer import take_channels

Stem = Literal["imagenet", "cifar", "compact"]

RESNETS: dict[str, tuple[type[BasicBlock | Bottleneck], tuple[int, int, int, int]]] = {
    "resnet10": (BasicBlock, (1, 1, 1, 1)),  # not in torchvision: for small images and small machines
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
    "resnet152": (Bottleneck, (3, 8, 36, 3)),
}


class Encoder(nn.Module):
    """A backbone without its classifier. float [n, 3, side, side], normalized -> h [n, feature_dim].

    Of images of several sizes, a tensor for each, it gives one h, in their order; the backbone sees each size alone.
    ``head`` holds the first layers of the projection head when some are kept for fine-tuning, and h is their output.
    """

    def __init__(self, backbone: nn.Module, feature_dim: int, head: nn.Module | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head or nn.Identity()
        self.feature_dim = feature_dim

    def forward(self, images: Tensor | Sequence[Tensor]) -> Tensor:
        if isinstance(images, Tensor):
            features: Tensor = self.backbone(images).flatten(1)
        else:
            features = torch.cat([self.backbone(one).flatten(1) for one in images])
        kept: Tensor = self.head(features)
        return kept


def build_encoder(
    name: str, width: float = 1.0, stem: Stem = "imagenet", image_size: int = 224, channels: int = 3
) -> Encoder:
    """Build an encoder with fresh weights, drawn from torch's global generator.

    Args:
        width: multiplies the channels of a ResNet, rounded to multiples of 8 (64 · width after the stem).
        stem: the ResNet's first layers. "imagenet": 7x7 stride 2 and max-pool; "cifar": 3x3 stride 1 (SimCLR section
            B.9); "compact": 3x3 stride 2, for small images on a small budget.
        image_size: side of the images in pixels; only networks with a position table (ViT, MaxViT) depend on it.
        channels: of the images; see ``simclr_core.model.first_layer``.

    Raises:
        UnknownEncoderError: no such name, a width or stem for something that is not a ResNet, or no convolution to take
            other channels than three.

    Examples:
        >>> import torch
        >>> encoder = build_encoder("resnet10", width=0.5, stem="compact").eval()
        >>> encoder.feature_dim
        256
        >>> tuple(encoder(torch.zeros(2, 3, 28, 28)).shape)
        (2, 256)
    """
    encoder = _build(name, width, stem, image_size)
    if channels != 3:
        take_channels(encoder.backbone, channels, name)
    return encoder


def _build(name: str, width: float, stem: Stem, image_size: int) -> Encoder:
    if name in RESNETS:
        resnet = ResNet(*RESNETS[name], base_channels=max(8, 8 * round(8 * width)), stem=stem)
        return Encoder(resnet, resnet.feature_dim)
    if (advice := unknown_encoder(name)) is not None:
        raise UnknownEncoderError(f"encoder {name!r} is not known; {advice}")
    refuse_width_and_stem(name, width, stem)
    if name.startswith(TIMM):
        return build_timm_encoder(name.removeprefix(TIMM), image_size)
    backbone = torchvision.models.get_model(name, weights=None, **_arguments(name, image_size))
    return Encoder(backbone, _remove_classifier(backbone))


def build_timm_encoder(name: str, image_size: int) -> Encoder:
    """A network of timm without its classifier; what depends on the side of the images is made for ``image_size``.

    Raises:
        UnknownEncoderError: timm is not installed, has no such network, or it does not take images of this side.
    """
    timm = import_timm()
    if not timm.is_model(name):
        close = get_close_matches(name, timm.list_models(), n=3, cutoff=0.4)
        advice = f"did you mean {' or '.join(f'{TIMM}{one}' for one in close)}?" if close else "see timm.list_models()"
        raise UnknownEncoderError(f"encoder {TIMM + name!r} is not known to timm {timm.__version__}; {advice}")
    sized = {"img_size": image_size} if timm.get_pretrained_cfg_value(name, "fixed_input_size") else {}
    try:
        backbone = timm.create_model(name, pretrained=False, num_classes=0, **sized)
    except (AssertionError, ValueError, RuntimeError, TypeError) as error:
        reason = f"{error or type(error).__name__}; choose another pretrain.image_size, or another encoder"
        raise UnknownEncoderError(
            f"encoder {TIMM + name!r} cannot be built for {image_size} pixels: {reason}"
        ) from None
    return Encoder(
        backbone, backbone.head_hidden_size if hasattr(backbone, "head_hidden_size") else backbone.num_features
    )


def require_other_side(name: str, built_for: int, side: int) -> None:
    """Raise UnknownEncoderError if a network that was built for images of one side takes no other one."""
    if name.startswith(TIMM):
        fixed = bool(import_timm().get_pretrained_cfg_value(name.removeprefix(TIMM), "fixed_input_size"))
    else:
        fixed = has_one_side(name)
    if fixed and side != built_for:
        raise UnknownEncoderError(
            f"encoder {name!r} takes images of one size, {built_for} pixels here; set "
            f"pretrain.augmentation.extra_crop_size to null, not {side}, or choose another encoder"
        )


def import_timm() -> Any:
    """The package, which is an extra.

    Raises:
        UnknownEncoderError: it is not installed.
    """
    try:
        return import_module("timm")
    except ModuleNotFoundError:
        raise UnknownEncoderError(f"{TIMM_MISSING}, or choose an encoder without timm/ before its name") from None


def refuse_width_and_stem(name: str, width: float, stem: Stem) -> None:
    """Raises UnknownEncoderError: a width or stem was chosen for a network that has neither."""
    if (fault := fixed_shape(name, width, stem)) is not None:
        raise UnknownEncoderError(fault)


class ResNet(nn.Module):
    """He et al. 2016 with the parameter names of torchvision's ResNet; ends with the global average pool."""

    def __init__(
        self, block: type[BasicBlock | Bottleneck], depths: tuple[int, int, int, int], base_channels: int, stem: Stem
    ) -> None:
        super().__init__()
        kernel, stride = {"imagenet": (7, 2), "cifar": (3, 1), "compact": (3, 2)}[stem]
        self.conv1 = nn.Conv2d(3, base_channels, kernel, stride, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(base_channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if stem == "imagenet" else nn.Identity()
        channels = [base_channels * 2**stage for stage in range(4)]
        inputs = [base_channels, *(block.expansion * count for count in channels[:3])]
        self.layer1 = _stage(block, depths[0], inputs[0], channels[0], stride=1)
        self.layer2 = _stage(block, depths[1], inputs[1], channels[1], stride=2)
        self.layer3 = _stage(block, depths[2], inputs[2], channels[2], stride=2)
        self.layer4 = _stage(block, depths[3], inputs[3], channels[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.feature_dim = block.expansion * channels[3]
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        pooled: Tensor = self.avgpool(x)
        return pooled


def _stage(block: type[BasicBlock | Bottleneck], depth: int, inputs: int, channels: int, stride: int) -> nn.Sequential:
    outputs = block.expansion * channels
    downsample = None
    if stride != 1 or inputs != outputs:
        downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
    rest = [block(outputs, channels) for _ in range(depth - 1)]
    return nn.Sequential(block(inputs, channels, stride, downsample), *rest)


def _arguments(name: str, image_size: int) -> dict[str, object]:
    if name.startswith("vit_"):
        return {"image_size": image_size}
    if name.startswith("maxvit"):
        return {"input_size": (image_size, image_size)}
    if name in ("googlenet", "inception_v3"):
        # With auxiliary classifiers training would return a tuple; without the second argument torchvision warns.
        return {"aux_logits": False, "init_weights": True, "dropout": 0.0}
    return {}


def _remove_classifier(backbone: nn.Module) -> int:
    """Replace the last layer (a linear one; SqueezeNet's is a 1x1 convolution) by the identity; return its input width.

    Dropout in the classifier goes too: h must not depend on a draw.
    """
    head_name, head = list(backbone.named_children())[-1]
    layers = [(name, layer) for name, layer in head.named_modules(prefix=head_name)]
    classifier, last = [pair for pair in layers if isinstance(pair[1], nn.Linear | nn.Conv2d)][-1]
    for name, layer in layers:
        if name == classifier or isinstance(layer, nn.Dropout):
            backbone.set_submodule(name, nn.Identity())
    return last.in_features if isinstance(last, nn.Linear) else last.in_channels
