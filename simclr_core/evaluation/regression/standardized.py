"""Features as a classifier is fitted on them, standardized block by block: no copy of all of them is made.

A GPU gets the blocks from the memory of the host, unless its own has room for all of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

BLOCK_ELEMENTS = 2**20  # of features at a time: they stay in a processor's cache
ON_GPU = 64  # times as many there, where a small block costs as much as a large one
KEPT_SHARE = 0.5  # of a GPU's free memory that features may take


@dataclass(frozen=True)
class Standardized:
    """The features that a classifier is fitted on: ``rows`` [n] of ``raw`` [N, d], less ``mean`` [d], over ``std`` [d].

    Without rows, all of ``raw`` as it is. ``raw`` may be mapped from a file: it is read in blocks. Where ``mean`` and
    ``std`` are is where the classifier is computed; ``raw`` and ``rows`` may be in the memory of the host.
    """

    raw: Tensor
    rows: Tensor | None
    mean: Tensor
    std: Tensor

    def __len__(self) -> int:
        return len(self.raw if self.rows is None else self.rows)

    @property
    def device(self) -> torch.device:
        return self.mean.device

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Which of the samples, and their standardized features."""
        size, kind = _block_size(self.raw, self.device), self.raw.dtype
        scale = self.std.reciprocal()
        shift, scale = (-self.mean * scale).to(kind), scale.to(kind)
        for start in range(0, len(self), size):
            block = slice(start, start + size)
            if self.rows is None:
                yield block, self.raw[block]
            else:
                yield block, torch.addcmul(shift, _taken(self.raw, self.rows[block]).to(self.device), scale)

    def of(self, seen: Tensor) -> "Standardized":
        """The samples for which ``seen``, bool [n], is true."""
        places = seen.to(self.raw.device).nonzero()[:, 0]
        return replace(self, rows=places if self.rows is None else self.rows[places.to(self.rows.device)])

    def spread(self, most: int) -> "Standardized":
        """At most this number of the samples, spread evenly."""
        step = -(-len(self) // most)
        if step <= 1:
            return self
        every = torch.arange(0, len(self), step, device=self.raw.device)
        return replace(self, rows=every if self.rows is None else self.rows[every.to(self.rows.device)])

    def kept(self) -> "Standardized":
        """The same, in the memory of a GPU if that has room for all; else as it is."""
        elements = len(self) * self.raw.shape[1]
        if self.device.type != "cuda" or elements * self.raw.element_size() > KEPT_SHARE * free_bytes(self.device):
            return self
        whole = self.raw.new_empty(len(self), self.raw.shape[1], device=self.device)
        for rows, block in self.blocks():
            whole[rows] = block
        return unchanged(whole)


def free_bytes(device: torch.device) -> int:
    """What a GPU's memory has left."""
    free, _ = torch.cuda.mem_get_info(device)
    return int(free)


def standardize(features: Tensor, rows: Tensor, device: torch.device | None = None) -> Standardized:
    """``rows`` [n] of ``features`` [N, d], by the mean and the deviation of all N; computed on ``device``, by default
    where the features are."""
    return Standardized(features, rows, *standardization(features, device))


def unchanged(features: Tensor) -> Standardized:
    """All of ``features`` [n, d], as they are."""
    width = features.shape[1]
    return Standardized(features, None, features.new_zeros(width), features.new_ones(width))


def standardization(features: Tensor, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [d] of each feature, float64; 1 for a feature that is constant but for rounding.

    One pass, over differences to a value near the mean: their squares lose no digits (Chan, Golub and LeVeque 1983,
    "Algorithms for computing the sample variance", on shifted data).
    """
    device = device or features.device
    blocks = torch.split(features, _block_size(features, device))
    near = blocks[0].to(device).mean(dim=0)
    total = squares = torch.zeros_like(near, dtype=torch.float64)
    for block in blocks:
        apart = block.to(device) - near
        total = total + apart.sum(dim=0)
        squares = squares + apart.square_().sum(dim=0)
    offset = total / len(features)
    mean, std = near + offset, (squares / len(features) - offset.square()).clamp_min(0).sqrt()
    return mean, torch.where(std > 1e-6 * mean.abs(), std, 1.0)


def _block_size(features: Tensor, device: torch.device) -> int:
    elements = BLOCK_ELEMENTS * (ON_GPU if device.type == "cuda" else 1)
    return max(1, elements // max(1, features.shape[1]))


def _taken(features: Tensor, rows: Tensor) -> Tensor:
    """``features[rows]``, without a copy where one row comes after the other."""
    if rows.device.type == "cpu" and bool((rows.diff() == 1).all()):
        first = int(rows[0])
        return features[first : first + len(rows)]
    return features[rows]
