"""BatchNorm over the global batch of all ranks, as SimCLR asks (Chen et al. 2020, section 2.2).

A positive is always on its own rank and most negatives are not: with statistics per rank, the network can tell them
apart by their rank's mean and scale, and the loss falls without better features.

    encoder = synchronize(encoder.to(device))

torch's SyncBatchNorm refuses CPU tensors. On GPUs it asks which ranks hold any rows: the processor waits for that three
times a layer, and torch.compile cannot capture it. GlobalBatchNorm calls its kernels, and asks nothing.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import batch_norm
from torch.nn.modules.batchnorm import _BatchNorm

from simclr_core.stopwatch import part
from simclr_core.torch_calls import all_gather_single


def synchronize(module: nn.Module) -> nn.Module:
    """``module`` with every BatchNorm in it taking its statistics over all ranks.

    Weights, buffers and state-dict keys stay as they are; replaces inside ``module``, and returns the replacement where
    ``module`` is itself a BatchNorm. Without a process group, or alone in one, ``module`` is returned unchanged.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return module
    if isinstance(module, _BatchNorm):
        return GlobalBatchNorm.like(module)
    for name, child in module.named_children():
        setattr(module, name, synchronize(child))
    return module


class GlobalBatchNorm(_BatchNorm):
    """nn.BatchNorm1d, 2d or 3d over the rows of all ranks. On GPUs each must hold equally many.

    A subclass of torch's own base, so that weight-decay rules, state dicts and evaluation see the BatchNorm that it is.
    Statistics are float32 under autocast. The variance is a second pass over x - mean: E[x^2] - E[x]^2 loses all its
    digits when the mean is large.
    """

    @classmethod
    def like(cls, norm: _BatchNorm) -> "GlobalBatchNorm":
        """The same normalization with the same weights and buffers, shared, not copied."""
        twin = cls(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        twin.weight, twin.bias = norm.weight, norm.bias
        twin.running_mean, twin.running_var = norm.running_mean, norm.running_var
        twin.num_batches_tracked = norm.num_batches_tracked
        return twin.train(norm.training)

    def forward(self, input: Tensor) -> Tensor:
        """[n, channels, ...] to the same shape and type. In training every rank must take part."""
        if not self.training:
            local = self.running_mean is None  # as torch does: nothing remembered, so statistics of this batch
            return batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, local, eps=self.eps)
        if input.device.type == "cuda":
            return self._on_gpu(input)
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        channels, others = (1, -1, *[1] * (x.ndim - 2)), (0, *range(2, x.ndim))
        rows = x.new_full((1,), x.numel() / x.shape[1])
        sums = _Sum.apply(torch.cat([x.sum(others), rows]))
        mean, total = sums[:-1] / sums[-1], sums[-1].detach()
        centered = x - mean.view(channels)
        variance = _Sum.apply(centered.square().sum(others)) / total
        self._remember(mean.detach(), variance.detach() * total / (total - 1))
        scale = (variance + self.eps).rsqrt()
        if not self.affine:
            return torch.mul(centered, scale.view(channels)).to(input.dtype)
        scale = scale * self.weight
        return torch.addcmul(self.bias.view(channels), centered, scale.view(channels)).to(input.dtype)

    def _on_gpu(self, input: Tensor) -> Tensor:
        """By the kernels of torch's SyncBatchNorm, with one exchange forwards and one backwards."""
        x, rows = _dense(input), dist.get_world_size() * input.numel() // input.shape[1]
        with torch.no_grad():
            mean, padded = _statistics(x, self.eps)
            self._remember(mean, (padded - self.eps) * (rows / (rows - 1)))
        output: Tensor = _Normalized.apply(x, self.weight, self.bias, mean, padded.rsqrt(), rows)
        return output

    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics towards those of this batch; ``variance`` is the unbiased one."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        pace = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, pace)
        self.running_var.lerp_(variance, pace)


class _Sum(torch.autograd.Function):
    """Sum over ranks. Every rank's output depends on every rank's input, so gradients are summed over ranks as well."""

    @staticmethod
    def forward(_: Any, local: Tensor) -> Tensor:
        total = local.clone()
        with part("communication"):
            dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        with part("communication"):
            dist.all_reduce(total)
        return total


def _statistics(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Mean, and variance + ``eps``, over the rows of all ranks, which hold equally many: float32 [channels] each."""
    own = torch.stack(torch.batch_norm_stats(x, eps))
    everyone = own.new_empty((dist.get_world_size() * len(own), own.shape[1]))
    all_gather_single(everyone, own)
    means, scales = everyone.view(-1, *own.shape).unbind(dim=1)
    between, mean = torch.var_mean(means, dim=0, correction=0)
    return mean, scales.pow(-2).mean(dim=0) + between


class _Normalized(torch.autograd.Function):
    """``(x - mean) · scale · weight + bias``, where mean and scale are those of the ``rows`` of all ranks."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, scale: Tensor, rows: int
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, scale)
        ctx.rows = rows
        return torch.batch_norm_elemt(x, weight, bias, mean, scale, 0.0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale = ctx.saved_tensors
        gradient, needed = _dense(gradient), ctx.needs_input_grad[1:3]
        *sums, of_weight, of_bias = torch.batch_norm_backward_reduce(gradient, x, mean, scale, weight, True, *needed)
        total = torch.stack(sums)
        dist.all_reduce(total)
        count = total.new_full((1,), ctx.rows, dtype=torch.int32)
        of_x = torch.batch_norm_backward_elemt(gradient, x, mean, scale, weight, total[0], total[1], count)
        return of_x, of_weight if needed[0] else None, of_bias if needed[1] else None, None, None, None


def _dense(x: Tensor) -> Tensor:
    """As the kernels want it: channels last, or contiguous."""
    return x if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last) else x.contiguous()


def _shapes_of_stats(x: Tensor, _: float) -> tuple[Tensor, Tensor]:
    mean = x.new_empty(x.shape[1], dtype=torch.promote_types(x.dtype, torch.float32))
    return mean, torch.empty_like(mean)


def _shapes_of_sums(
    _: Tensor, __: Tensor, mean: Tensor, scale: Tensor, weight: Tensor | None, *___: bool
) -> tuple[Tensor, ...]:
    like = mean if weight is None else weight
    return torch.empty_like(mean), torch.empty_like(scale), torch.empty_like(like), torch.empty_like(like)


def _shape_of_input(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x)


# What torch.compile has to know of the kernels, which torch does not say.
SHAPES: dict[str, Callable[..., Any]] = {
    "batch_norm_stats": _shapes_of_stats,
    "batch_norm_elemt": _shape_of_input,
    "batch_norm_backward_reduce": _shapes_of_sums,
    "batch_norm_backward_elemt": _shape_of_input,
}
for name, shapes in SHAPES.items():
    with suppress(RuntimeError):  # of a torch that says it
        torch.library.register_fake(f"aten::{name}", shapes)
