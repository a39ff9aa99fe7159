"""NT-Xent, the contrastive loss of SimCLR (Chen et al. 2020, equation 1), over the views of all ranks.

    loss(i, j) = -log( exp(s_ij) / sum_{k != i} exp(s_ik) ),    s_ij = cos(z_i, z_j) / temperature

averaged over the N ordered positive pairs (i, p(i)), where N = 2nW: two views of n images on each of W ranks. With
l_i = log sum_{k != i} exp(s_ik) the loss is L = 1/N sum_i (l_i - s_ip(i)). A row z_k of unit length enters L as an
anchor, through l_k, as a key of every other anchor j, through l_j, and twice in its positive pair. s is symmetric, so
both roles weigh the same vectors and meet in one sum:

    dL/dz_k = 1/(N temperature) ( sum_{j != k} (exp(s_kj - l_k) + exp(s_kj - l_j)) z_j - 2 z_p(k) )

A rank that holds every z and every l, N scalars, thus has the exact gradient of its own rows: the backward pass talks
to nobody. Both passes compute s one tile at a time, so memory is the gathered z, N x d, and a few tiles; never N x N.

No similarity is above 1/t, t the temperature. So exp(s_ij - 1/t) never overflows, serves anchors and keys alike, and is
computed once for (i, j) and (j, i): among its own rows a rank visits only the tiles on and above the diagonal.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import normalize

from simclr_core.errors import NtXentError

TILE = 512  # rows and columns of s at a time: 1 MiB of float32, which stays in a core's L2 cache
RANGE = 80.0  # exp(-80) is still a normal float32
LOWEST = 0.003  # exp(-2 / 0.003) a normal float64


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Mean NT-Xent loss over the views of all ranks: a scalar, the same on every rank.

    ``first`` and ``second`` are this rank's projections of the two views, [n, d], not normalised, row i of both from
    image i; n is the same on every rank. Computed in float32, autocast or not, in float64 for temperatures below 0.025;
    float64 stays float64.

    The gradient is scaled for DistributedDataParallel, which averages over ranks: with g_r the part of dL/dweights that
    flows through the rows of rank r, dL/dweights = sum_r g_r = 1/W sum_r (W g_r): each rank back-propagates W dL/dz_k.

    Raises:
        NtXentError: temperature is below 0.003, or the two are not both [n, d] with n >= 1.
    """
    if not LOWEST <= temperature < float("inf"):
        raise NtXentError(
            f"temperature is {temperature}; give a finite number of at least {LOWEST} (SimCLR uses 0.1 to 0.5)"
        )
    if first.shape != second.shape or first.ndim != 2 or len(first) < 1:
        raise NtXentError(
            f"the projections of the two views have shapes {list(first.shape)} and {list(second.shape)}; "
            "give both as [n, d] with the same n >= 1, row i of each from image i"
        )
    precision = torch.promote_types(torch.promote_types(first.dtype, second.dtype), torch.float32)
    with torch.autocast(first.device.type, enabled=False):
        rows = normalize(torch.cat([first.to(precision), second.to(precision)]), dim=1)
        # Similarities span 2/t: at low temperatures float32 would lose what is far below the largest there could be.
        loss: Tensor = _NTXent.apply(rows if 2 / temperature <= RANGE else rows.double(), temperature)
    return loss.to(precision)


class _NTXent(torch.autograd.Function):
    """This rank's unit rows [2n, d], all first views and then all second views, to L. Two gathers, both in forward."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, temperature: float) -> Tensor:
        columns = _gathered(rows)
        start = _rank() * len(rows)
        sums = rows.new_zeros(len(rows))
        for r, _, mirror, shifted in _tiles(rows, columns, start, temperature):
            sums[r] += shifted.sum(dim=1)
            if mirror:
                sums[mirror] += shifted.sum(dim=0)
        all_log_sums = _gathered(sums.log_().add_(1 / temperature))
        ctx.save_for_backward(columns, all_log_sums)
        ctx.own, ctx.temperature = slice(start, start + len(rows)), temperature
        positives = columns.view(-1, 2, len(rows) // 2, rows.shape[1]).prod(dim=1).sum(dim=-1) / temperature
        return all_log_sums.mean() - positives.mean()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        columns, log_sums = ctx.saved_tensors
        own: slice = ctx.own
        rows = columns[own]
        # Not inherited from forward: backward may itself be called under autocast.
        with torch.autocast(columns.device.type, enabled=False):
            pull = -2 * rows.roll(len(rows) // 2, dims=0)  # the positive of a row is n rows away
            weights = (1 / ctx.temperature - log_sums).exp_()
            for r, c, mirror, shifted in _tiles(rows, columns, own.start, ctx.temperature):
                as_anchor_and_key = shifted.mul_(weights[own][r, None] + weights[c])
                pull[r].addmm_(as_anchor_and_key, columns[c])
                if mirror:
                    pull[mirror].addmm_(as_anchor_and_key.T, rows[r])
            ranks = len(columns) // len(rows)
            return pull.mul_(gradient * ranks / (len(columns) * ctx.temperature)), None


def _tiles(
    rows: Tensor, columns: Tensor, start: int, temperature: float
) -> Iterator[tuple[slice, slice, slice | None, Tensor]]:
    """exp(s - 1/temperature) of ``rows``, which are columns[start:], against ``columns``, 0 where a row meets itself.

    Yields a slice of the rows, one of the columns, and the tile. Of two tiles that are each other's transposed only one
    is there, with the slice of the *rows* that its columns are: ``mirror``, else None.
    """
    scaled, shift = rows / temperature, rows.new_tensor(-1 / temperature)
    for top in range(0, len(rows), TILE):
        r = slice(top, min(top + TILE, len(rows)))
        for c, mirror in _columns(top, start, len(rows), len(columns)):
            shifted = torch.addmm(shift, scaled[r], columns[c].T).exp_()
            # Most tiles hold no such place: their diagonal at that offset is empty.
            shifted.diagonal(start + top - c.start).fill_(0)
            yield r, c, mirror, shifted


def _columns(top: int, start: int, own: int, total: int) -> Iterator[tuple[slice, slice | None]]:
    """The columns that the rows from ``top`` on meet: of other ranks all, of this one those from ``top`` on."""
    for first, end in ((0, start), (start + top, start + own), (start + own, total)):
        for left in range(first, end, TILE):
            c = slice(left, min(left + TILE, end))
            mirrored = start + top < left < start + own
            yield c, slice(c.start - start, c.stop - start) if mirrored else None


def _gathered(local: Tensor) -> Tensor:
    """Every rank's ``local`` [m, ...] in the order of the ranks: [W m, ...]."""
    if not (dist.is_available() and dist.is_initialized()):
        return local
    everyone = local.new_empty((dist.get_world_size() * len(local), *local.shape[1:]))
    dist.all_gather_single(everyone, local.contiguous())
    return everyone


def _rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
