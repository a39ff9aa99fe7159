"""The head g: identity, linear or MLP, ending in a normalized z."""

import pytest
import torch
from torch import nn

from simclr_core.model.projection_head import build_projection_head


@pytest.mark.parametrize(("layers", "linear", "dim"), [(0, 0, 12), (1, 1, 4), (2, 2, 4), (3, 3, 4)])
def test_layers_and_output(layers: int, linear: int, dim: int) -> None:
    head = build_projection_head(12, layers, width=7, dim=4)
    h = torch.randn(16, 12)
    assert head(h).shape == (16, dim)
    assert sum(isinstance(module, nn.Linear) for module in head.modules()) == linear
    assert sum(isinstance(module, nn.ReLU) for module in head.modules()) == max(0, layers - 1)
    if layers == 0:
        assert torch.equal(head(h), h)
    else:  # batch normalization is the last layer, as in the authors' code
        torch.testing.assert_close(head(h).mean(dim=0), torch.zeros(4), atol=1e-6, rtol=0)
