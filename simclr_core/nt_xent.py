"""NT-Xent, the contrastive loss of SimCLR (Chen et al. 2020, equation 1), over the views of all ranks.

    loss(i, j) = -log( exp(s_ij) / sum_{k != i} exp(s_ik) ),    s_ij = cos(z_i, z_j) / temperature

averaged over the N ordered positive pairs (i, p(i)), where N = 2nW: two views of n images on each of W ranks. With
l_i = log sum_{k != i} exp(s_ik) the loss is L = 1/N sum_i (l_i - s_ip(i)). A row z_k of unit length enters L as an
anchor, through l_k, as a key of every other anchor j, through l_j, and twice in its positive pair. s is symmetric, so
both roles weigh the same vectors and meet in one sum:

    dL/dz_k = 1/(N temperature) ( sum_{j != k} (exp(s_kj - l_k) + exp(s_kj - l_j)) z_j - 2 z_p(k) )

A rank that holds every z and every l, N scalars, thus has the exact gradient of its own rows: the backward pass talks
to nobody. Both passes compute s one tile at a time, so memory is the gathered z, N x d, and a few tiles; never N x N.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import normalize

from simclr_core.errors import NtXentError

TILE = 512  # rows and columns of s at a time: 1 MiB of float32, which stays in a core's L2 cache


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Mean NT-Xent loss over the views of all ranks: a scalar, the same on every rank.

    ``first`` and ``second`` are this rank's projections of the two views, [n, d], not normalised, row i of both from
    image i; n is the same on every rank. Computed in float32, autocast or not; float64 stays float64.

    The gradient is scaled for DistributedDataParallel, which averages over ranks: with g_r the part of dL/dweights that
    flows through the rows of rank r, dL/dweights = sum_r g_r = 1/W sum_r (W g_r): each rank back-propagates W dL/dz_k.

    Raises:
        NtXentError: temperature is not above 0, or the two are not both [n, d] with n >= 1.
    """
    if not 0 < temperature < float("inf"):
        raise NtXentError(f"temperature is {temperature}; give a finite number above 0 (SimCLR uses 0.1 to 0.5)")
    if first.shape != second.shape or first.ndim != 2 or len(first) < 1:
        raise NtXentError(
            f"the projections of the two views have shapes {list(first.shape)} and {list(second.shape)}; "
            "give both as [n, d] with the same n >= 1, row i of each from image i"
        )
    precision = torch.promote_types(torch.promote_types(first.dtype, second.dtype), torch.float32)
    with torch.autocast(first.device.type, enabled=False):
        rows = normalize(torch.cat([first.to(precision), second.to(precision)]), dim=1)
        loss: Tensor = _NTXent.apply(rows, temperature)
    return loss


class _NTXent(torch.autograd.Function):
    """This rank's unit rows [2n, d], all first views and then all second views, to L. Two gathers, both in forward."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, temperature: float) -> Tensor:
        columns = _gathered(rows)
        start = _rank() * len(rows)
        log_sums = rows.new_full((len(rows),), float("-inf"))
        for r, _, similarities in _tiles(rows, columns, start, temperature):
            log_sums[r] = torch.logaddexp(log_sums[r], similarities.logsumexp(dim=1))
        all_log_sums = _gathered(log_sums)
        ctx.save_for_backward(columns, all_log_sums)
        ctx.own, ctx.temperature = slice(start, start + len(rows)), temperature
        positives = columns.view(-1, 2, len(rows) // 2, rows.shape[1]).prod(dim=1).sum(dim=-1) / temperature
        return all_log_sums.mean() - positives.mean()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        columns, log_sums = ctx.saved_tensors
        rows, own_log_sums = columns[ctx.own], log_sums[ctx.own]
        # Not inherited from forward: backward may itself be called under autocast.
        with torch.autocast(columns.device.type, enabled=False):
            pull = -2 * rows.roll(len(rows) // 2, dims=0)  # the positive of a row is n rows away
            for r, c, similarities in _tiles(rows, columns, ctx.own.start, ctx.temperature):
                as_anchor = (similarities - own_log_sums[r, None]).exp_()
                as_key = similarities.sub_(log_sums[c]).exp_()
                pull[r].addmm_(as_anchor.add_(as_key), columns[c])
            ranks = len(columns) // len(rows)
            return pull.mul_(gradient * ranks / (len(columns) * ctx.temperature)), None


def _tiles(rows: Tensor, columns: Tensor, start: int, temperature: float) -> Iterator[tuple[slice, slice, Tensor]]:
    """s of ``rows``, which are columns[start:], against ``columns``, tile by tile; -inf where a row meets itself.

    Most tiles hold no such place: their diagonal at that offset is empty.
    """
    for top in range(0, len(rows), TILE):
        r = slice(top, min(top + TILE, len(rows)))
        for left in range(0, len(columns), TILE):
            c = slice(left, min(left + TILE, len(columns)))
            similarities = (rows[r] @ columns[c].T).div_(temperature)
            similarities.diagonal(start + top - left).fill_(float("-inf"))
            yield r, c, similarities


def _gathered(local: Tensor) -> Tensor:
    """Every rank's ``local`` [m, ...] in the order of the ranks: [W m, ...]."""
    if not (dist.is_available() and dist.is_initialized()):
        return local
    everyone = local.new_empty((dist.get_world_size() * len(local), *local.shape[1:]))
    dist.all_gather_single(everyone, local.contiguous())
    return everyone


def _rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
