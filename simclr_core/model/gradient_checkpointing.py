"""Gradient checkpointing (Chen et al. 2016): activations inside a block are computed twice instead of kept.

    recompute_blocks(encoder)

Only what enters each residual block, transformer layer or the like is kept for the backward pass; a step takes about a
third longer. Weights, gradients and parameter names are the same as without.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from simclr_core.errors import UnknownEncoderError


def recompute_blocks(encoder: nn.Module) -> int:
    """Make every block of ``encoder`` compute its activations again in the backward pass; returns how many there are.

    Raises:
        UnknownEncoderError: the network is one sequence of layers, without blocks (VGG, AlexNet, Inception v3).
    """
    found = list(blocks(encoder))
    if not found:
        raise UnknownEncoderError(
            "this encoder has no blocks that could be computed twice; set pretrain.gradient_checkpointing: false, or "
            "take an encoder made of blocks, such as a ResNet, ConvNeXt or ViT"
        )
    for block in found:
        # On the instance, so that parameters keep their names. A deep copy of the block gets its own.
        block.forward = partial(_recomputed, block, block.forward)
    return len(found)


def blocks(module: nn.Module, in_sequence: bool = False) -> Iterator[nn.Module]:
    """The outermost modules that contain modules and stand in a sequence: the repeated unit of every
    torchvision family that has one."""
    for child in module.children():
        if isinstance(child, nn.Sequential | nn.ModuleList):
            yield from blocks(child, in_sequence=True)
        elif in_sequence and any(True for _ in child.children()):
            yield child
        else:
            yield from blocks(child)


def _recomputed(block: nn.Module, forward: Callable[..., Any], *inputs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*inputs)
    contexts = partial(_first_and_second_pass, block)
    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=contexts)


def _first_and_second_pass(block: nn.Module) -> tuple[Any, Any]:
    return nullcontext(), _statistics_kept(block)


@contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """What BatchNorm does to its running statistics inside is done to copies: the first pass has counted the batch."""
    norms = [norm for norm in block.modules() if isinstance(norm, _BatchNorm) and norm.training]
    before = [(norm, name, buffer) for norm in norms for name, buffer in norm.named_buffers()]
    try:
        for norm, name, buffer in before:
            setattr(norm, name, buffer.clone())
        yield
    finally:
        for norm, name, buffer in before:
            setattr(norm, name, buffer)
