"""NT-Xent, the contrastive loss of SimCLR (Chen et al. 2020, equation 1), over the views of all ranks; and two kin::

    loss(i, j) = -log( exp(s_ij) / sum_{k in K(i)} exp(s_ik) ),    s_ij = cos(z_i, z_j) / temperature

averaged over the N ordered positive pairs (i, p(i)), where N = 2nW: two views of n images on each of W ranks. The
losses differ in the keys K(i) that the anchor i is compared with::

    nt_xent      all views but i itself
    decoupled    not the positive p(i) either: DCL, which learns from small batches (Yeh et al. 2022, equation 6)
    cross_view   the views on the other side alone, the positive among them: InfoNCE in both directions (van den Oord et
                 al. 2018; CLIP, Radford et al. 2021, section 2.3)

With l_i = log sum_{k in K(i)} exp(s_ik) the loss is L = 1/N sum_i (l_i - s_ip(i)). A row z_k of unit length enters L as
an anchor, through l_k, as a key of other anchors j, through l_j, and twice in its positive pair. s is symmetric, and so
is being a key, so both roles weigh the same vectors and meet in one sum::

    dL/dz_k = 1/(N temperature) ( sum_{j in K(k)} (exp(s_kj - l_k) + exp(s_kj - l_j)) z_j - 2 z_p(k) )

A rank that holds every z and every l, N scalars, thus has the exact gradient of the rows it made: the backward pass
sends nothing. Both passes compute s one tile at a time, so memory is the gathered z, N x d, and a few tiles; never N x
N.

No similarity is above 1/t, t the temperature. So exp(s_ij - 1/t) never overflows, serves anchors and keys alike, and is
computed once for (i, j) and (j, i): among its own rows a rank visits only the tiles on and above the diagonal.

With groups, images of one thing, no view of i's group is a key but its positive: exp(s_ij) is 0 for it, in both passes.
So the loss pushes no two of a group apart. That is symmetric, too, and the rest holds as it is.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import isqrt
from typing import Any, Literal, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import normalize, pad

from simclr_core.errors import NtXentError
from simclr_core.stopwatch import part
from simclr_core.torch_calls import all_gather_single

TILE = 512  # rows and columns of s at a time: 1 MiB of float32, which stays in a core's L2 cache
GPU_TILE = 2**28  # bytes of a tile on a GPU, where few large kernels are faster: 8,192 rows and columns of float32
RANGE = 80.0  # exp(-80) is still a normal float32
LOWEST = 0.003  # exp(-2 / 0.003) a normal float64

Keys = Literal["others", "negatives", "other view"]
Span = tuple[int, int]


class PairLoss(Protocol):
    """What ``LOSSES`` holds: see ``nt_xent``."""

    def __call__(
        self,
        first: Tensor,
        second: Tensor,
        temperature: float,
        counts: Sequence[int] | None = None,
        groups: Tensor | None = None,
    ) -> Tensor: ...


def uncompiled(loss: PairLoss) -> PairLoss:
    """torch.compile breaks its graph here: one of all tiles would win nothing, and differ for every batch size."""
    same: PairLoss = torch.compiler.disable(loss)  # type: ignore[no-untyped-call]  # torch does not annotate it
    return same


@uncompiled
def nt_xent(
    first: Tensor,
    second: Tensor,
    temperature: float,
    counts: Sequence[int] | None = None,
    groups: Tensor | None = None,
) -> Tensor:
    """Mean NT-Xent loss over the views of all ranks: a scalar, the same on every rank.

    ``first`` and ``second`` are this rank's projections of the two views, [n, d], not normalized, row i of both from
    image i. Where n is not the same on every rank, as in an uneven last batch, each rank gives the n of all, in the
    order of ranks, as ``counts``: to find them out would cost a third collective. Computed in float32, autocast or not,
    in float64 for temperatures below 0.025; float64 stays float64. torch.compile leaves it as it is.

    ``groups``, int64 [images of all ranks] in the order of the ranks, are equal for images of one group: of two such
    views none is a key of the other, unless they are each other's positive. Every rank gives all of them, so that they
    cost no exchange.

    The gradient is scaled for DistributedDataParallel, which averages over ranks: with g_r the part of dL/dweights that
    flows through the rows of rank r, dL/dweights = sum_r g_r = 1/W sum_r (W g_r): each rank back-propagates W dL/dz_k.

    Raises:
        NtXentError: temperature is below 0.003, the two are not both [n, d] with n >= 1, or ``counts`` or ``groups`` do
            not have them.

    Examples:
        >>> first = torch.eye(2)  # two images whose views are at a right angle to those of the other
        >>> round(nt_xent(first, first, temperature=1.0).item(), 4)  # log(e + 1 + 1) - 1
        0.5514
        >>> round(nt_xent(first, first.flip(0), temperature=1.0).item(), 4)  # views of the wrong image
        1.5514
    """
    return _mean_loss(first, second, temperature, counts, groups, "others")


@uncompiled
def decoupled(
    first: Tensor,
    second: Tensor,
    temperature: float,
    counts: Sequence[int] | None = None,
    groups: Tensor | None = None,
) -> Tensor:
    """Mean decoupled contrastive loss (DCL, without the weights of DCLW), otherwise as ``nt_xent``. May be negative.

    Raises:
        NtXentError: as ``nt_xent``, or there is one image, or one group, on all ranks together: it has no negatives.
    """
    return _mean_loss(first, second, temperature, counts, groups, "negatives")


@uncompiled
def cross_view(
    first: Tensor,
    second: Tensor,
    temperature: float,
    counts: Sequence[int] | None = None,
    groups: Tensor | None = None,
) -> Tensor:
    """Mean InfoNCE loss of first views among second ones and of second among first, otherwise as ``nt_xent``."""
    return _mean_loss(first, second, temperature, counts, groups, "other view")


LOSSES: dict[str, PairLoss] = {"nt_xent": nt_xent, "dcl": decoupled, "info_nce": cross_view}


def check_temperature(temperature: float) -> None:
    """
    Raises:
        NtXentError: the temperature is not finite, or is too small for float64 to resolve similarities.
    """
    if not LOWEST <= temperature < float("inf"):
        raise NtXentError(
            f"temperature is {temperature}; give a finite number of at least {LOWEST} (SimCLR uses 0.1 to 0.5)"
        )


def _mean_loss(
    first: Tensor,
    second: Tensor,
    temperature: float,
    counts: Sequence[int] | None,
    groups: Tensor | None,
    keys: Keys,
) -> Tensor:
    check_temperature(temperature)
    if first.shape != second.shape or first.ndim != 2 or len(first) < 1:
        raise NtXentError(
            f"the projections of the two views have shapes {list(first.shape)} and {list(second.shape)}; "
            "give both as [n, d] with the same n >= 1, row i of each from image i"
        )
    counts = _checked(counts, len(first))
    places = _Places(keys, _rank(), counts, None if groups is None else _of_views(groups, counts))
    if keys == "negatives":
        _require_negatives(places)
    precision = torch.promote_types(torch.promote_types(first.dtype, second.dtype), torch.float32)
    with torch.autocast(first.device.type, enabled=False):
        rows = normalize(torch.cat([first.to(precision), second.to(precision)]), dim=1)
        # Similarities span 2/t: at low temperatures float32 would lose what is far below the largest there could be.
        loss: Tensor = _Contrast.apply(rows if 2 / temperature <= RANGE else rows.double(), temperature, places)
    return loss.to(precision)


def _checked(counts: Sequence[int] | None, own: int) -> tuple[int, ...]:
    """The images of each rank; by default the number here."""
    ranks = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if counts is None:
        return (own,) * ranks
    if len(counts) != ranks or counts[_rank()] != own or min(counts) < 1:
        raise NtXentError(
            f"counts is {list(counts)}, but there are {ranks} ranks, and this one, rank {_rank()}, holds {own} "
            "images; give the number of images of each rank, 1 or more, in the order of the ranks"
        )
    return tuple(counts)


def _of_views(groups: Tensor, counts: Sequence[int]) -> Tensor:
    """The group of each row of the gathered views."""
    if groups.shape != (sum(counts),):
        raise NtXentError(
            f"groups has shape {list(groups.shape)}, but the ranks hold {sum(counts)} images; give the group of each, "
            "in the order of the ranks"
        )
    return torch.cat([share.repeat(2) for share in torch.split(groups, list(counts))])


def _require_negatives(places: "_Places") -> None:
    if sum(places.counts) < 2:
        raise NtXentError("one image alone has no negatives; give the decoupled loss a batch of two or more")
    groups = places.groups
    # A GPU would have to be waited for: there the caller sees to it, as ``batches.choose_groups`` does.
    if groups is not None and groups.device.type == "cpu" and bool((groups == groups[0]).all()):
        raise NtXentError("images of one group alone have no negatives; give the decoupled loss images of two or more")


@dataclass(frozen=True)
class _Places:
    """Which rows of the gathered views meet. Each rank's lie together: first all of its first views, then the second.

    ``counts`` are the images of each rank, ``groups`` the group of each row.
    """

    keys: Keys
    rank: int
    counts: tuple[int, ...]
    groups: Tensor | None = None

    @property
    def lengths(self) -> list[int]:
        """The rows of each rank."""
        return [2 * count for count in self.counts]

    @property
    def own(self) -> slice:
        start = sum(self.lengths[: self.rank])
        return slice(start, start + self.lengths[self.rank])

    @property
    def holes(self) -> tuple[int, ...]:
        """Diagonals of this rank's rows against themselves on which no key is: 0 is a row and itself."""
        n = self.counts[self.rank]
        return {"others": (0,), "negatives": (0, n, -n), "other view": ()}[self.keys]

    def without_keys(self, r: slice, c: slice) -> Tensor | None:
        """Where rows of one group meet that are not each other's positive, bool [rows, columns]; None: nowhere."""
        if self.groups is None:
            return None
        n, own = self.counts[self.rank], self.own
        same = self.groups[own][r, None] == self.groups[c]
        if own.start <= c.start < own.stop:
            for positive in (n, -n):
                same.diagonal(own.start + r.start - c.start + positive).fill_(False)
        return same

    def meetings(self) -> list[tuple[Span, list[Span]]]:
        """Ranges of this rank's rows, each with the ranges of columns that hold their keys."""
        n, own = self.counts[self.rank], self.own
        ends = list(accumulate(self.lengths))
        if self.keys != "other view":
            return [((0, 2 * n), [(0, own.start), (own.start, own.stop), (own.stop, ends[-1])])]
        first = [(end - 2 * count, end - count) for end, count in zip(ends, self.counts, strict=True)]
        second = [(end - count, end) for end, count in zip(ends, self.counts, strict=True)]
        del first[self.rank]  # these meet as the mirrored tiles of the first views
        return [((0, n), second), ((n, 2 * n), first)]

    def columns(self, top: int, spans: Sequence[Span], side: int) -> Iterator[tuple[slice, slice | None]]:
        """What the rows from ``top`` on meet in ``spans``, ``side`` columns at a time: of this rank only what no
        earlier row met, with the slice of the *rows* that these columns are, where both orders of the two are meant;
        else None."""
        own = self.own
        for first, end in spans:
            inside = own.start <= first < own.stop
            for left in range(max(first, own.start + top) if inside else first, end, side):
                c = slice(left, min(left + side, end))
                mirrored = inside and left > own.start + top
                yield c, slice(c.start - own.start, c.stop - own.start) if mirrored else None


class _Contrast(torch.autograd.Function):
    """This rank's unit rows [2n, d], all first views and then all second views, to L. Two gathers, both in forward."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, temperature: float, places: _Places) -> Tensor:
        columns = gathered(rows, places.lengths)
        sums = rows.new_zeros(len(rows))
        for r, _, mirror, shifted in _tiles(rows, columns, temperature, places):
            sums[r].add_(shifted.sum(dim=1))
            if mirror:
                sums[mirror].add_(shifted.sum(dim=0))
        all_log_sums = gathered(sums.log_().add_(1 / temperature), places.lengths)
        ctx.save_for_backward(columns, all_log_sums)
        ctx.temperature, ctx.places = temperature, places
        return all_log_sums.mean() - (_of_positives(columns, places.counts) / temperature).mean()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        columns, log_sums = ctx.saved_tensors
        places: _Places = ctx.places
        rows = columns[places.own]
        # Not inherited from forward: backward may itself be called under autocast.
        with torch.autocast(columns.device.type, enabled=False):
            pull = -2 * rows.roll(len(rows) // 2, dims=0)  # the positive of a row is n rows away
            weights = (1 / ctx.temperature - log_sums).exp_()
            for r, c, mirror, shifted in _tiles(rows, columns, ctx.temperature, places):
                as_anchor_and_key = shifted.mul_(weights[places.own][r, None] + weights[c])
                pull[r].addmm_(as_anchor_and_key, columns[c])
                if mirror:
                    pull[mirror].addmm_(as_anchor_and_key.T, rows[r])
            ranks = len(places.counts)
            return pull.mul_(gradient * ranks / (len(columns) * ctx.temperature)), None, None


def _tiles(
    rows: Tensor, columns: Tensor, temperature: float, places: _Places
) -> Iterator[tuple[slice, slice, slice | None, Tensor]]:
    """exp(s - 1/temperature) of ``rows``, the own ones of ``columns``, against their keys; 0 where there is none.

    Yields a slice of the rows, one of the columns, and the tile. Of two tiles that are each other's transposed only one
    is there, with the slice of the *rows* that its columns are: ``mirror``, else None.
    """
    scaled, shift = rows / temperature, rows.new_full((), -1 / temperature)
    own, side = places.own, _side(rows)
    for (first, end), spans in places.meetings():
        for top in range(first, end, side):
            r = slice(top, min(top + side, end))
            for c, mirror in places.columns(top, spans, side):
                shifted = torch.addmm(shift, scaled[r], columns[c].T).exp_()
                if (same := places.without_keys(r, c)) is not None:
                    shifted.masked_fill_(same, 0)
                if own.start <= c.start < own.stop:
                    for hole in places.holes:  # most tiles hold no such place: their diagonal at that offset is empty
                        shifted.diagonal(own.start + top - c.start + hole).fill_(0)
                yield r, c, mirror, shifted


def _side(rows: Tensor) -> int:
    """Rows and columns of a tile."""
    return TILE if rows.device.type == "cpu" else isqrt(GPU_TILE // rows.element_size())


def _of_positives(columns: Tensor, counts: Sequence[int]) -> Tensor:
    """The cosine of each pair of views, of all ranks; at once where each rank has equally many."""
    if len(set(counts)) > 1:
        shares = torch.split(columns, [2 * count for count in counts])
        return torch.cat([_of_positives(share, (len(share) // 2,)) for share in shares])
    return columns.view(len(counts), 2, counts[0], -1).prod(dim=1).sum(dim=-1).flatten()


def gathered(local: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
    """Every rank's ``local`` in the order of the ranks, along the first dimension, without gradient.

    ``lengths`` are those of the ranks, None where they are all the same. A shorter one sends padding too.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return local
    lengths = lengths or (len(local),) * dist.get_world_size()
    longest = max(lengths)
    padding = [0, 0] * (local.ndim - 1) + [0, longest - len(local)]
    everyone = local.new_empty((len(lengths) * longest, *local.shape[1:]))
    with part("communication"):
        all_gather_single(everyone, pad(local, padding).contiguous())
    if min(lengths) == longest:
        return everyone
    return torch.cat([share[:length] for share, length in zip(torch.split(everyone, longest), lengths, strict=True)])


def own_share(everyone: Tensor, count: int) -> Tensor:
    """Of what ``gathered`` returns the part of this rank, where each has ``count``."""
    return everyone[_rank() * count : (_rank() + 1) * count]


def _rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
