"""How given weights are adapted: which layers move, and how fast.

Layers are the stem (all before the first block) and the blocks, each with what follows it. The rate falls by a factor
from each block to the one before it (Howard & Ruder 2018, arXiv 1801.06146, section 3.2; Bao et al. 2022, arXiv
2106.08254): what is near the pixels is of use for other images too.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from simclr_core.model.encoder import Encoder
from simclr_core.model.gradient_checkpointing import blocks


def layers_of(encoder: Encoder) -> list[list[nn.Parameter]]:
    """The parameters of the stem, which may be none, and of each block with what comes after it, in their order."""
    starts = {id(parameter): block for block in blocks(encoder.backbone) for parameter in block.parameters()}
    if not starts:  # a sequence of layers
        leaves = [module for module in encoder.backbone.modules() if list(module.parameters(recurse=False))]
        return [list(leaf.parameters(recurse=False)) for leaf in leaves]
    layers: list[list[nn.Parameter]] = [[]]
    last: nn.Module | None = None
    for parameter in encoder.backbone.parameters():
        block = starts.get(id(parameter), last)
        if block is not last:
            layers.append([])
            last = block
        layers[-1].append(parameter)
    return layers


def freeze_stem(encoder: Encoder) -> None:
    """Keep the weights before the first block. The statistics of a BatchNorm in it still follow the images."""
    for parameter in layers_of(encoder)[0]:
        parameter.requires_grad_(False)


def layer_rates(encoder: Encoder, decay: float) -> dict[int, float]:
    """``id`` of each parameter of the encoder -> the factor on its learning rate, 1 for the last block."""
    layers = layers_of(encoder)
    return {id(one): decay ** (len(layers) - 1 - place) for place, layer in enumerate(layers) for one in layer}


def split_by_rate(groups: Sequence[Mapping[str, Any]], rates: Mapping[int, float]) -> list[dict[str, Any]]:
    """Optimizer groups in which all parameters have one factor, ``rate``; those without one have 1."""
    split: dict[tuple[int, float], dict[str, Any]] = {}
    for place, group in enumerate(groups):
        for parameter in group["params"]:
            rate = rates.get(id(parameter), 1.0)
            split.setdefault((place, rate), {**group, "params": [], "rate": rate})["params"].append(parameter)
    return list(split.values())
