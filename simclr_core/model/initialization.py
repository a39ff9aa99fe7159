"""What a fresh network begins with, where ``pretrain.initialization`` asks for more than torch and torchvision do.

They draw convolutions by He et al. 2015 (fan out) and linear layers uniformly. The code of SimCLR draws convolutions
from a normal distribution of variance 1 / fan in, cut off at two standard deviations, and the linear layers of the head
from one of standard deviation 0.01; the last BatchNorm of each residual block begins with a weight of 0, so that the
block is the identity (Goyal et al. 2017, arXiv 1706.02677, section 5.1), and that of the head has no bias.
"""

from collections.abc import Iterator
from math import sqrt
from typing import Literal

from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from simclr_core.errors import UnknownEncoderError
from simclr_core.model.encoder import Encoder

HEAD_STD = 0.01
CUT = 2  # standard deviations
SPREAD_LEFT = 0.87962566103423978  # standard deviation of a standard normal distribution that is cut off there


def initialize(
    encoder: Encoder,
    head: nn.Module,
    scheme: Literal["torch", "simclr"],
    zero_last_gamma: bool,
    without_last_beta: bool,
    frozen_first_layer: bool,
) -> None:
    """Draw the weights again, from torch's global generator, and settle those that are not drawn or not trained.

    The bias that a head is ``without`` stays a parameter, of value 0: the names of weights are the same for all. With
    nothing asked for, nothing is drawn or changed.

    Raises:
        UnknownEncoderError: the network has none of the layers that are asked for.
    """
    if scheme == "simclr":
        _draw_as_simclr(encoder, head)
    if zero_last_gamma:
        for norm in _last_norms(encoder):
            nn.init.zeros_(norm.weight)
    if without_last_beta:
        last = list(head.modules())[-1]
        assert isinstance(last, nn.BatchNorm1d), last
        nn.init.zeros_(last.bias).requires_grad_(False)
    if frozen_first_layer:
        _first_convolution(encoder).requires_grad_(False)


def _draw_as_simclr(encoder: Encoder, head: nn.Module) -> None:
    for layer in encoder.modules():
        if isinstance(layer, nn.Conv2d):
            std = 1 / sqrt(layer.weight[0].numel()) / SPREAD_LEFT
            nn.init.trunc_normal_(layer.weight, std=std, a=-CUT * std, b=CUT * std)
    for layer in head.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=HEAD_STD)


def _last_norms(encoder: Encoder) -> Iterator[nn.BatchNorm2d]:
    found = [block for block in encoder.modules() if isinstance(block, BasicBlock | Bottleneck)]
    if not found:
        raise UnknownEncoderError(
            "this encoder has no residual block that ends in a BatchNorm; set "
            "pretrain.initialization.zero_last_gamma: false, or take a ResNet"
        )
    for block in found:
        norm = block.bn3 if isinstance(block, Bottleneck) else block.bn2
        assert isinstance(norm, nn.BatchNorm2d), norm
        yield norm


def _first_convolution(encoder: Encoder) -> nn.Conv2d:
    for layer in encoder.modules():
        if isinstance(layer, nn.Conv2d):
            return layer
    raise UnknownEncoderError(
        "this encoder has no convolution; set pretrain.initialization.frozen_first_layer: false, or take another one"
    )
