"""What a step of a training minimizes: forward, loss and backward, after which the gradients are in the parameters.

``InBatch`` takes its negatives from the global batch. With micro-batches the network sees a few images at a time and
the loss still all of them (gradient caching: Gao et al. 2021, arXiv 2101.06983): a pass without gradients for every z,
the loss over all z and its gradient there, then a pass with gradients, a micro-batch at a time, each begun with its
part of that gradient. Activations are those of one micro-batch, for one more forward pass, a third more time at most.

    Exact: negatives, loss and gradient are those of the whole batch, whatever its parts; unlike gradient accumulation,
    which has the negatives of a part. One difference remains: BatchNorm normalizes with the statistics of a
    micro-batch (over all processes), so networks that have it see noisier statistics, in both passes the same ones, and
    the running statistics move once for every micro-batch. LayerNorm and GroupNorm have no such difference.

Views are [(2 + k) n, 3, s, s]: all first views, all second ones, then k groups of extra crops. Extra crops of another
size are a tensor next to that of the pair (``Views``). The backbone then sees each size alone, BatchNorm too: its
running statistics move once for each. With extra crops the loss is the mean over the pair of the two views and each
pair of one of them with an extra crop, a gather each.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from math import log
from typing import Protocol

import torch
from torch import Tensor, nn

from simclr_core.loss.nt_xent import PairLoss
from simclr_core.stopwatch import find_data_parallel, part

Views = Tensor | tuple[Tensor, ...]
"""All views of a step in one tensor, or, where extra crops have another size, the pair and the extra crops."""


@dataclass(frozen=True)
class Outcome:
    """The loss over all processes, the same on each, and this one's z of both views, [n, d]; all without gradient.
    Where a student learns from a teacher, they are what each says of the view."""

    loss: Tensor
    first: Tensor
    second: Tensor


class Objective(Protocol):
    """Gradients of one step into the parameters of ``model``, and whatever else has to live as long as the training."""

    def backward(self, model: nn.Module, views: Views, marks: Tensor | None = None, /) -> Outcome:
        """``model`` is the network, or it within DistributedDataParallel, whose gradients are then synchronized once.
        ``marks``, int64 [images of all processes], are what is known of the images: of a contrastive loss groups, equal
        for images that must not be each other's negatives. Leaves nothing but gradients, and the buffers of ``model``,
        changed."""
        ...

    def update(self) -> None:
        """To be called after the optimizer's step."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint has to hold besides the network."""
        ...

    def restore(self, tensors: Mapping[str, Tensor]) -> None: ...


def as_it_is(loss: Tensor) -> Tensor:
    return loss


class InBatch:
    """A pair loss over the global batch, at once or from micro-batches of at most ``micro_batch_size`` images.

    Every process must hold equally many images.
    """

    def __init__(
        self,
        loss: PairLoss,
        temperature: float,
        precision: torch.dtype,
        micro_batch_size: int | None = None,
        extra_crops: int = 0,
        scaled: Callable[[Tensor], Tensor] = as_it_is,
    ) -> None:
        """``scaled`` makes of the loss what is back-propagated: see ``precision.LossScaler``."""
        self._loss = loss
        self._temperature = temperature
        self._precision = precision
        self._micro_batch_size = micro_batch_size
        self._views = 2 + extra_crops
        self._scaled = scaled

    def backward(self, model: nn.Module, views: Views, groups: Tensor | None = None) -> Outcome:
        images = sum(map(len, by_size(views))) // self._views
        parts = 1 if self._micro_batch_size is None else -(-images // self._micro_batch_size)
        if parts == 1:
            with part("forward"):
                projections = project(model, views, self._precision)
                loss = self._mean(projections, groups)
            with part("backward"):
                torch.autograd.backward(self._scaled(loss))
        else:
            projections, loss = self._cached(model, views, parts, groups)
        first, second = projections.detach().chunk(self._views)[:2]
        return Outcome(loss.detach(), first, second)

    def update(self) -> None:
        """Nothing lasts from one step to the next."""

    def tensors(self) -> dict[str, Tensor]:
        return {}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        assert not tensors, sorted(tensors)

    def _mean(self, projections: Tensor, groups: Tensor | None) -> Tensor:
        first, second, *extras = projections.chunk(self._views)
        pairs = [(first, second), *((view, extra) for extra in extras for view in (first, second))]
        losses = [self._loss(one, other, self._temperature, groups=groups) for one, other in pairs]
        return torch.stack(losses).mean()

    def _cached(self, model: nn.Module, views: Views, parts: int, groups: Tensor | None) -> tuple[Tensor, Tensor]:
        """z of all views and the loss, after a backward pass over ``parts`` micro-batches."""
        # A network that draws, as stochastic depth does, has to draw the same for a micro-batch in both passes.
        seeds = torch.randint(2**62, (parts,)).tolist()
        with part("forward"), torch.no_grad(), buffers_kept(model):
            passed = [self._seeded(model, *one) for one in zip(self._micro_batches(views, parts), seeds, strict=True)]
        with part("forward"):
            projections = _joined(passed, self._views).requires_grad_()
            loss = self._mean(projections, groups)
        with part("backward"):
            (gradient,) = torch.autograd.grad(self._scaled(loss), projections)
        pulls = _parts(gradient, self._views, parts)
        for number, (few, seed, pull) in enumerate(
            zip(self._micro_batches(views, parts), seeds, pulls, strict=True), start=1
        ):
            with _synchronized(model, number == parts):
                with part("forward"):
                    again = self._seeded(model, few, seed)
                with part("backward"):
                    torch.autograd.backward(again, pull)
        return projections, loss

    def _micro_batches(self, views: Views, count: int) -> Iterator[Views]:
        if isinstance(views, Tensor):
            return _parts(views, self._views, count)
        pair, extras = views
        return zip(_parts(pair, 2, count), _parts(extras, self._views - 2, count), strict=True)

    def _seeded(self, model: nn.Module, views: Views, seed: int) -> Tensor:
        torch.manual_seed(seed)
        return project(model, views, self._precision)


def chance_loss(loss: str, batch_size: int, queue_size: int | None) -> float:
    """The loss of a network that maps every image to one point: the logarithm of how many keys an anchor has. It is
    less where others of its group, which are not keys, are in the batch."""
    if queue_size is not None:
        return log(queue_size + 1)
    return log({"nt_xent": 2 * batch_size - 1, "dcl": 2 * batch_size - 2, "info_nce": batch_size}[loss])


def by_size(views: Views) -> tuple[Tensor, ...]:
    """A tensor for each size."""
    return (views,) if isinstance(views, Tensor) else views


def project(model: nn.Module, views: Views, precision: torch.dtype) -> Tensor:
    """z of all views, [m, d]. One pass over all of them: DDP allows no two, and BatchNorm sees all rows of a size."""
    with torch.autocast(by_size(views)[0].device.type, precision, enabled=precision != torch.float32):
        projections: Tensor = model(views)
    return projections


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Forward passes inside leave no trace in BatchNorm's statistics, nor in any other buffer."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for buffer, before in buffers:
            buffer.copy_(before)


def _parts(rows: Tensor, groups: int, count: int) -> Iterator[Tensor]:
    """``count`` nearly equal parts of the images of ``rows``, [groups · n, ...]: each with all its views."""
    shares = [group.tensor_split(count) for group in rows.chunk(groups)]
    return (torch.cat(share) for share in zip(*shares, strict=True))


def _joined(parts: list[Tensor], groups: int) -> Tensor:
    """What ``_parts`` took apart."""
    return torch.cat([torch.cat(group) for group in zip(*(rows.chunk(groups) for rows in parts), strict=True)])


def _synchronized(model: nn.Module, now: bool) -> AbstractContextManager[None]:
    """Gradients of DistributedDataParallel are only summed up, and synchronized with the last micro-batch."""
    distributed = find_data_parallel(model)
    return nullcontext() if now or distributed is None else distributed.no_sync()
