"""The first convolution of an encoder for images that have not three channels."""

from math import sqrt

import torch
from torch import Tensor, nn

from simclr_core.errors import UnknownEncoderError

RGB = 3


def take_channels(backbone: nn.Module, channels: int, name: str) -> None:
    """Make a fresh network for RGB take ``channels`` channels, in place.

    The new kernels are drawn from torch's global generator with the spread of the old ones times sqrt(3 / channels): of
    independent channels, the response varies as that to RGB does.

    Raises:
        UnknownEncoderError: no layer of the network, which the message calls ``name``, is a convolution of three
            channels.
    """
    for layer in backbone.modules():
        if isinstance(layer, nn.Conv2d) and layer.in_channels == RGB and layer.groups == 1:
            old = layer.weight.detach()
            shape = (old.shape[0], channels, *old.shape[2:])
            spread = float(old.std()) * sqrt(RGB / channels)
            layer.weight = nn.Parameter(torch.randn(shape, dtype=old.dtype) * spread)
            layer.in_channels = channels
            return
    advice = "it begins without a convolution of RGB; choose another pretrain.encoder.name"
    raise UnknownEncoderError(f"encoder {name!r} cannot take {channels} channels: {advice}")


def spread_kernels(kernels: Tensor, channels: int) -> Tensor:
    """Kernels for RGB [outputs, 3, h, w] as such for ``channels``: their mean, times 3 / channels, for every channel.

    An image whose channels are equal gets the response that a gray image gets from the kernels for RGB.
    """
    return kernels.mean(dim=1, keepdim=True).mul(RGB / channels).repeat(1, channels, 1, 1)
