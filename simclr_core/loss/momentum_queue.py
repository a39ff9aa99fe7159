"""Contrastive learning with negatives from earlier batches (MoCo: He et al. 2020, arXiv 1911.05722).

    loss = -log( exp(q·k / t) / (exp(q·k / t) + sum_{j in queue} exp(q·k_j / t)) )

q is z of a first view, k of its second view by a slow copy of the network, the momentum encoder; k_j are the keys of
earlier steps, all of unit length. With SimCLR's head and augmentations it is MoCo v2 (Chen et al. 2020, arXiv
2003.04297). A step takes less memory and time than one of ``InBatch`` with the same number of negatives: one view has a
backward pass, and the batch may be small. What it costs: keys are as old as the queue is long, and when it is longer
than an epoch, it holds earlier views of the very image that asks. Where MoCo shuffles images between GPUs, the copy
normalizes with running statistics (``WeightAverage``). Both keep a key from telling which batch it comes from; this
also does on one process, without communication.

With extra crops (see ``objective``), first views and extra crops ask, and second views are their keys. With groups,
images of one thing, a key of the group of the image that asks is left out of the sum.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from simclr_core.data.order import uniform
from simclr_core.loss.nt_xent import check_temperature, gathered, own_share
from simclr_core.loss.objective import Outcome, Views, as_it_is, by_size, project
from simclr_core.model.weight_average import WeightAverage
from simclr_core.stopwatch import part

QUEUE_VIEW = 2**32  # no view of an image has this number: the queue's first rows have their own draws
OF_NO_GROUP = torch.iinfo(torch.int64).min  # the group of the queue's first rows, which no image has


class MomentumQueue:
    """An ``Objective`` with a queue of keys [size, dim], at least the global batch, and a momentum encoder.

    After every step each weight of the copy goes to ``momentum`` · itself + (1 - ``momentum``) · the network's, and the
    keys of all processes take the place of the oldest. ``queue`` is what it begins with, such as ``random_directions``.
    Every process must hold equally many images.

    Raises:
        NtXentError: the temperature is below 0.003.
    """

    def __init__(
        self,
        network: nn.Module,
        queue: Tensor,
        momentum: float,
        temperature: float,
        precision: torch.dtype,
        extra_crops: int = 0,
        scaled: Callable[[Tensor], Tensor] = as_it_is,
    ) -> None:
        check_temperature(temperature)
        self._average = WeightAverage(network, momentum)
        self._copy = self._average.network
        weight = next(network.parameters())
        self._queue = queue.to(weight, copy=True)
        self._temperature = temperature
        self._precision = precision
        self._views = 2 + extra_crops
        self._scaled = scaled
        self._keys = self._queue[:0]  # of the last step, of all processes
        self._queued_groups: Tensor | None = None  # int64 [size]
        self._key_groups: Tensor | None = None  # of the last step, likewise

    def backward(self, model: nn.Module, views: Views, groups: Tensor | None = None) -> Outcome:
        self._key_groups = groups
        if groups is not None and self._queued_groups is None:
            self._queued_groups = groups.new_full((len(self._queue),), OF_NO_GROUP)
        pair, *smaller = by_size(views)
        first, second, *extras = pair.chunk(2 if smaller else self._views)
        asking = torch.cat([first, *extras])
        with part("forward"):
            with torch.no_grad():
                keys = normalize(project(self._copy, second, self._precision).to(self._queue.dtype), dim=1)
            queries = project(model, (asking, *smaller) if smaller else asking, self._precision)
            loss = self._info_nce(queries, keys)
        with part("backward"):
            torch.autograd.backward(self._scaled(loss))
        self._keys = gathered(keys)
        return Outcome(mean_over_processes(loss.detach()), queries.detach()[: len(first)], keys)

    def update(self) -> None:
        assert 0 < len(self._keys) <= len(self._queue), (len(self._keys), len(self._queue))
        with torch.no_grad():
            new = torch.arange(len(self._keys), device=self._queue.device) + self._average.updates * len(self._keys)
            self._queue.index_copy_(0, new % len(self._queue), self._keys)
            if self._queued_groups is not None and self._key_groups is not None:
                self._queued_groups.index_copy_(0, new % len(self._queue), self._key_groups)
        self._average.update()

    def tensors(self) -> dict[str, Tensor]:
        groups = {} if self._queued_groups is None else {"groups": self._queued_groups}
        return {"queue": self._queue, **groups, **self._average.tensors()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        self._average.restore(tensors)
        self._queue.copy_(tensors["queue"])
        self._queued_groups = tensors["groups"].to(self._queue.device, copy=True) if "groups" in tensors else None

    def _info_nce(self, queries: Tensor, keys: Tensor) -> Tensor:
        with torch.autocast(queries.device.type, enabled=False):
            rows = normalize(queries.to(keys.dtype), dim=1)
            positives = (rows * keys.repeat(len(rows) // len(keys), 1)).sum(dim=1, keepdim=True)
            negatives = rows @ self._queue.T
            if self._key_groups is not None and self._queued_groups is not None:
                asking = own_share(self._key_groups, len(keys)).repeat(len(rows) // len(keys))
                negatives = negatives.masked_fill(asking[:, None] == self._queued_groups, float("-inf"))
            logits = torch.cat([positives, negatives], dim=1) / self._temperature
            return cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long))


def random_directions(seed: int, count: int, dim: int) -> Tensor:
    """Uniform on the unit sphere, by normal draws: float64 [count, dim]."""
    draws = torch.from_numpy(uniform(seed, 0, np.arange(count), QUEUE_VIEW, dim))
    return normalize(torch.special.ndtri(draws + 2.0**-54), dim=1)  # half of a draw's grain: 0 is not a quantile


def mean_over_processes(value: Tensor) -> Tensor:
    """Of a number of each; all of them call this at once. ``value`` itself becomes it."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(value)
        value /= dist.get_world_size()
    return value
