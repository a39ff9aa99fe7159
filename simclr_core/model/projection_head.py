"""The projection head g between the encoder and the loss: h -> z. Dropped after pretraining (SimCLR section 4.2), or
cut after one of its layers for fine-tuning (SimCLRv2, Chen et al. 2020b, section 3)."""

from torch import nn

MODULES = 3  # of a layer: linear, batch normalization, ReLU; the last layer has no ReLU


def build_projection_head(feature_dim: int, layers: int = 2, width: int = 2048, dim: int = 128) -> nn.Module:
    """[n, feature_dim] -> [n, dim]; with no layers the identity, with one linear, else an MLP with ReLU.

    Every layer ends in batch normalization, the last one too: not in the paper's text, but in the authors' code.
    """
    if layers == 0:
        return nn.Identity()
    modules: list[nn.Module] = []
    inputs = feature_dim
    for _ in range(layers - 1):
        modules += [nn.Linear(inputs, width, bias=False), nn.BatchNorm1d(width), nn.ReLU(inplace=True)]
        inputs = width
    return nn.Sequential(*modules, nn.Linear(inputs, dim, bias=False), nn.BatchNorm1d(dim))


def first_layers(head: nn.Module, layers: int) -> tuple[nn.Module, int]:
    """The first ``layers`` (at least one) of an MLP head, with its weights and their names; and how wide they end."""
    assert isinstance(head, nn.Sequential), head
    kept = head[: MODULES * layers]
    return kept, [module for module in kept if isinstance(module, nn.Linear)][-1].out_features
