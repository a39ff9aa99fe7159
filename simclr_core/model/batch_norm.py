"""BatchNorm over the global batch of all ranks, as SimCLR asks (Chen et al. 2020, section 2.2).

A positive is always on its own rank and most negatives are not: with statistics per rank, the network can tell them
apart by their rank's mean and scale, and the loss falls without better features.

    encoder = synchronize(encoder.to(device))

torch's SyncBatchNorm refuses CPU tensors, so the ranks of a gloo group get GlobalBatchNorm from here.
"""

from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import batch_norm
from torch.nn.modules.batchnorm import _BatchNorm

from simclr_core.stopwatch import part


def synchronize(module: nn.Module) -> nn.Module:
    """``module`` with every BatchNorm in it taking its statistics over all ranks.

    Call it when the module is on its device. Weights, buffers and state-dict keys stay as they are; replaces inside
    ``module``, and returns the replacement where ``module`` is itself a BatchNorm. Without a process group, or alone in
    one, ``module`` is returned unchanged.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return module
    if any(tensor.is_cuda for tensor in chain(module.parameters(), module.buffers())):
        convert: Callable[[nn.Module], nn.Module] = nn.SyncBatchNorm.convert_sync_batchnorm
        return convert(module)
    if isinstance(module, _BatchNorm):
        return GlobalBatchNorm.like(module)
    for name, child in module.named_children():
        setattr(module, name, synchronize(child))
    return module


class GlobalBatchNorm(_BatchNorm):
    """nn.BatchNorm1d, 2d or 3d over the rows of all ranks, which need not hold equally many.

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
