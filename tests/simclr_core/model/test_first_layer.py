"""The first convolution for other channels than three: what it takes, and how it answers."""

import numpy as np
import pytest
import torch
from torch import nn

from simclr_core.errors import UnknownEncoderError
from simclr_core.model.encoder import build_encoder
from simclr_core.model.first_layer import spread_kernels, take_channels


@pytest.mark.parametrize("channels", [1, 2, 5, 16])
@pytest.mark.parametrize("name", ["resnet10", pytest.param("vit_b_32", marks=pytest.mark.seconds)])
def test_an_encoder_takes_the_channels(name: str, channels: int) -> None:
    arguments = {"width": 0.125, "stem": "compact"} if name == "resnet10" else {}
    encoder = build_encoder(name, image_size=32, channels=channels, **arguments).eval()  # type: ignore[arg-type]
    assert encoder(torch.rand(2, channels, 32, 32)).shape == (2, encoder.feature_dim)


@pytest.mark.seconds
def test_fresh_kernels_keep_the_variance_of_the_response() -> None:
    torch.manual_seed(0)
    responses = []
    for channels in (3, 1, 12):
        layer = build_encoder("resnet18", channels=channels).backbone.conv1
        assert isinstance(layer, nn.Conv2d)
        with torch.no_grad():
            responses.append(float(layer(torch.randn(8, channels, 64, 64)).std()))
    assert responses[1:] == pytest.approx(responses[:1] * 2, rel=0.1)


def test_three_channels_have_the_weights_that_they_had() -> None:
    torch.manual_seed(0)
    plain = build_encoder("resnet10", 0.125, "compact").state_dict()
    torch.manual_seed(0)
    same = build_encoder("resnet10", 0.125, "compact", channels=3).state_dict()
    assert all(map(torch.equal, plain.values(), same.values()))


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_spread_kernels_answer_equal_channels_as_those_for_rgb_answer_gray(channels: int) -> None:
    random = np.random.default_rng(0)
    kernels, gray = random.normal(size=(7, 3, 3, 3)), random.random((2, 1, 6, 6))
    spread = spread_kernels(torch.from_numpy(kernels), channels)
    assert spread.shape == (7, channels, 3, 3)
    expected = np.stack(
        [
            [[(kernels.sum(1) * one[:, y : y + 3, x : x + 3]).sum((1, 2)) for x in range(4)] for y in range(4)]
            for one in gray
        ]
    ).transpose(0, 3, 1, 2)
    found = nn.functional.conv2d(torch.from_numpy(gray).expand(-1, channels, -1, -1), spread)
    assert np.abs(found.numpy() - expected).max() < 1e-12


def test_a_network_without_such_a_convolution_is_refused() -> None:
    with pytest.raises(UnknownEncoderError, match="'mlp' cannot take 5 channels"):
        take_channels(nn.Sequential(nn.Linear(3, 4)), 5, "mlp")
