"""Frozen features: the encoder's output h for every image, the input of the linear probe, kNN and the diagnostics.

h is what SimCLR keeps; the output z of the projection head is worse by over ten points (paper, section 4.2).

Several processes share the images by whole batches, so each batch, and every number, is that of one process.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deploy.images.full_depth import FULL, Samples
from simclr_core.launch import Member
from simclr_core.torch_calls import all_gather_single

BATCH = 256  # images that the encoder takes at a time


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 [n, s, s, 3] to float32 [n, 3, s, s]: pixels scaled to [0, 1], then standardized by channel.

    uint16 [n, s, s, channels] of full depth likewise.
    """
    pixels = scaled(images)
    return (pixels - _channels(mean, pixels)) / _channels(std, pixels)


def scaled(images: Tensor) -> Tensor:
    """uint8 or uint16 [n, s, s, channels] to float32 [n, channels, s, s] in [0, 1]."""
    return images.permute(0, 3, 1, 2).float() / (255 if images.dtype == torch.uint8 else FULL)


def encode(
    encoder: nn.Module, images: Samples, mean: Sequence[float], std: Sequence[float], batch_size: int = BATCH
) -> Tensor:
    """The raw h (not L2-normalized) of uint8 [n, s, s, 3], or uint16 [n, s, s, channels]: float32 [n, d], in the order
    of the images, on the encoder's device.

    Runs in evaluation mode and leaves every module in the mode it was in.
    """
    assert images.shape[3:] == (len(mean),), images.shape
    assert images.dtype in (np.uint8, np.uint16), images.dtype
    device = next(chain(encoder.parameters(), encoder.buffers())).device  # an ONNX teacher has buffers alone
    with evaluating(encoder):
        # An empty batch still goes through once, so that no images give [0, d] and not a guess.
        batches = [
            encoder(normalize(_sent(images[start : start + batch_size], device), mean, std)).float()
            for start in range(0, max(len(images), 1), batch_size)
        ]
    return torch.cat(batches)


def own_rows(count: int, member: Member) -> NDArray[np.int64]:
    """Which of ``count`` images this process looks at: every batch whose turn it is."""
    return np.flatnonzero(np.arange(count) // BATCH % member.size == member.rank)


def gather_rows(own: Tensor, count: int, member: Member, batch: int = BATCH) -> Tensor:
    """What all processes have made of the rows that each has, on each of them: [count, ...], in the order of images.

    ``own`` is on the process's device; all of them call this at once. ``batch`` rows are made by one process.
    """
    if member.size == 1:
        return own
    turns, shape = max(1, -(-count // (batch * member.size))), own.shape[1:]
    padded = own.new_zeros(turns * batch, *shape)
    padded[: len(own)] = own
    everyone = own.new_empty(member.size * len(padded), *shape)
    all_gather_single(everyone, padded)
    return everyone.view(member.size, turns, batch, *shape).transpose(0, 1).flatten(0, 2)[:count]


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Inference in evaluation mode; every module is then in the mode it was in."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def _sent(images: Samples, device: torch.device) -> Tensor:
    here = torch.tensor(images)
    return here.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else here.to(device)


def _channels(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(1, -1, 1, 1)
