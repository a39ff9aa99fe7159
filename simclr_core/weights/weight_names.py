"""Whose weights are whose: the tensors of a file matched with the parameters of an encoder.

A file names a parameter as the encoder does, after a beginning that depends on who trained it: ``module.`` (DDP),
``state_dict.backbone.`` (Lightning, solo-learn), ``module.encoder_q.`` (MoCo), ``teacher.`` (DINO). No list of these is
kept: the beginning that the most weights have in common with the encoder is taken. A backbone that was made a sequence
of its layers (lightly) has their positions in place of their names.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.nn.modules.batchnorm import _BatchNorm

from deploy.plural import listed
from simclr_core.errors import WeightsError

LEAST_MATCHED = 0.9  # of the encoder's tensors, and of its numbers
MOST_FOREIGN = 0.1  # of the numbers: layers of the file that the encoder does not have
SHOWN = 4  # names in a message
POSITIONS = ("pos_embed", "pos_embedding", "position_embedding")
PREFIX_TOKENS = (0, 1, 2, 5)  # of position tables: none, a class token, distillation, registers
COUNTER = "num_batches_tracked"  # of BatchNorm: not a weight, and missing in many files
# Of two networks in a file that match equally well, these are second: what is evaluated is the query and the teacher.
SECOND = re.compile(r"(^|[._])(encoder_k|key|target|momentum|student)([._]|$)")


@dataclass(frozen=True)
class Match:
    """What a file gives an encoder, by the encoder's names, and what neither has of the other.

    ``prefix`` is what its names have before them in the file; ``missing`` says why a parameter keeps its random start.
    """

    tensors: dict[str, Tensor]
    prefix: str
    missing: dict[str, str]
    unused: tuple[str, ...]
    changed: dict[str, str]  # how a tensor was changed to fit

    def __str__(self) -> str:
        said = [f"{len(self.tensors)} tensors match" + (f", named after {self.prefix!r}" if self.prefix else "")]
        said += [f"{name} {how}" for name, how in self.changed.items()]
        said += [f"not in the file: {_listed(self.missing)}"] if self.missing else []
        said += [f"not used of the file: {_listed(self.unused)}"] if self.unused else []
        return "; ".join(said)


def match(
    backbone: nn.Module, tensors: Mapping[str, Tensor], file: str, encoder: str, key: str = "pretrain.encoder"
) -> Match:
    """The tensors of ``file`` as the ``backbone`` of ``encoder`` names them, in its shapes and types; ``key`` of
    params.yaml says which encoder.

    Raises:
        WeightsError: they are mostly those of another network, or not finite.
    """
    wanted = {name: tensor for name, tensor in backbone.state_dict().items() if not name.endswith(COUNTER)}
    positions = {str(place): name for place, (name, _) in enumerate(backbone.named_children())}
    prefix = _choose_prefix(wanted, tensors, positions)
    given = {
        _renamed(name.removeprefix(prefix), wanted, positions): name for name in tensors if name.startswith(prefix)
    }
    found: dict[str, Tensor] = {}
    missing: dict[str, str] = {}
    changed: dict[str, str] = {}
    for name, target in wanted.items():
        if name not in given:
            missing[name] = "absent"
            continue
        tensor = tensors[given[name]]
        fitting, how = _fit(name, tensor, target)
        if fitting is None:
            missing[name] = f"shape {list(tensor.shape)}, the encoder's is {list(target.shape)}"
        else:
            found[name] = fitting.to(target.dtype).clone(memory_format=torch.contiguous_format)
            changed |= {name: how} if how else {}
    folded = dict(_unfold(backbone, tensors, given, missing))
    found |= folded
    missing = {name: why for name, why in missing.items() if name not in folded}
    used = {given[name] for name in found if name in given}
    unused = [name for name in tensors if name not in used and not name.endswith(COUNTER)]
    result = Match(found, prefix, missing, tuple(unused), changed)
    advice = f"set {key} to the network that the weights were trained with, its width and stem too"
    if fault := _find_others(result, backbone, wanted, tensors):
        raise WeightsError(f"{file}: is not of {encoder}, {fault}; {advice}")
    if wrong := [name for name, tensor in found.items() if not tensor.isfinite().all()]:
        raise WeightsError(f"{file}: has numbers that are not finite in {_listed(wrong)}; get the file again")
    return result


def _find_others(
    found: Match, backbone: nn.Module, wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> str | None:
    """What shows that the weights are mostly those of another network."""
    numbers = sum(tensor.numel() for tensor in wanted.values())
    matched = sum(tensor.numel() for tensor in found.tensors.values())
    share = min(len(found.tensors) / len(wanted), matched / numbers)
    if share < LEAST_MATCHED:
        reasons = "; ".join(f"{name}: {why}" for name, why in list(found.missing.items())[:SHOWN])
        has = f"the file has {_listed([name for name in found.unused if name.startswith(found.prefix)])}"
        return f"of which only {share:.0%} match ({reasons}; {has})"
    foreign = [name for name in found.unused if _is_foreign(name, found.prefix, backbone)]
    if sum(tensors[name].numel() for name in foreign) > MOST_FOREIGN * numbers:
        return f"which does not have its layers {_listed(foreign)}"
    return None


def _is_foreign(name: str, prefix: str, backbone: nn.Module) -> bool:
    """Whether it is of a layer between the encoder's own: heads, and what was removed as one, are not."""
    if not name.startswith(prefix):
        return False
    layer = name.removeprefix(prefix).rpartition(".")[0]
    own = {child for child, module in backbone.named_children() if any(True for _ in module.parameters())}
    return layer.partition(".")[0] in own and layer not in dict(backbone.named_modules())


def _choose_prefix(wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor], positions: Mapping[str, str]) -> str:
    """The beginning with which most numbers of the file are those of the encoder."""
    counts: Counter[str] = Counter()
    for name, tensor in tensors.items():
        parts = name.split(".")
        for start in range(len(parts)):
            rest = ".".join(parts[start:])
            target = wanted.get(_renamed(rest, wanted, positions))
            if target is not None and target.shape == tensor.shape:
                counts[name.removesuffix(rest)] += target.numel()
    return max(counts, key=lambda prefix: (counts[prefix], not SECOND.search(prefix), prefix), default="")


def _renamed(name: str, wanted: Mapping[str, Tensor], positions: Mapping[str, str]) -> str:
    """``4.0.conv1.weight`` of a sequence of layers is ``layer1.0.conv1.weight``."""
    first, dot, rest = name.partition(".")
    if name in wanted or first not in positions:
        return name
    return f"{positions[first]}{dot}{rest}"


def _fit(name: str, tensor: Tensor, target: Tensor) -> tuple[Tensor | None, str | None]:
    """The tensor in the shape of ``target``, and how it was changed; None where that cannot be done."""
    if tensor.shape == target.shape and tensor.is_floating_point() == target.is_floating_point():
        return tensor, None
    if not tensor.is_floating_point() or tensor.ndim != target.ndim:
        return None, None
    if name.rpartition(".")[2] in POSITIONS and target.ndim == 3 and tensor.shape[::2] == target.shape[::2]:
        table = _resize_positions(tensor.float(), target.shape[1])
        return table, None if table is None else f"was resized from {tensor.shape[1]} to {target.shape[1]} positions"
    others = [place for place in range(tensor.ndim) if place != 1]
    if (
        target.ndim == 4
        and tensor.shape[1] == 1
        and all(tensor.shape[place] == target.shape[place] for place in others)
    ):
        return tensor.float().expand_as(target) / target.shape[1], "was spread from gray over the channels"
    return None, None


def _resize_positions(table: Tensor, length: int) -> Tensor | None:
    """[1, n, d] to [1, length, d]: the square grid bicubically, the tokens before it as they are."""
    for tokens in PREFIX_TOKENS:
        sides = [math.isqrt(max(0, count - tokens)) for count in (table.shape[1], length)]
        if [side * side + tokens for side in sides] == [table.shape[1], length] and all(sides):
            grid = table[:, tokens:].reshape(1, sides[0], sides[0], -1).permute(0, 3, 1, 2)
            resized = interpolate(grid, size=(sides[1], sides[1]), mode="bicubic", align_corners=False)
            return torch.cat([table[:, :tokens], resized.flatten(2).transpose(1, 2)], dim=1)
    return None


def _unfold(
    backbone: nn.Module, tensors: Mapping[str, Tensor], given: Mapping[str, str], missing: Mapping[str, str]
) -> Iterator[tuple[str, Tensor]]:
    """BatchNorm that an exporter moved into the convolution before it: one that adds the bias and does nothing else.

    In evaluation that is the same function. In training it is not, until the statistics are those of the images.
    """
    modules = list(backbone.named_modules())
    for (before, convolution), (name, norm) in pairwise(modules):
        bias = given.get(f"{before}.bias")
        if not isinstance(convolution, nn.Conv2d) or not isinstance(norm, _BatchNorm) or bias is None:
            continue
        if f"{name}.weight" in missing and tensors[bias].shape == norm.weight.shape:
            yield f"{name}.weight", torch.full_like(norm.weight.detach(), math.sqrt(1 + norm.eps))
            yield f"{name}.bias", tensors[bias].float().clone()
            yield f"{name}.running_mean", torch.zeros_like(norm.weight.detach())
            yield f"{name}.running_var", torch.ones_like(norm.weight.detach())


def _listed(names: Mapping[str, str] | Sequence[str]) -> str:
    return listed([*names], SHOWN) or "nothing"
