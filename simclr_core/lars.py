"""LARS (You et al. 2017) as SimCLR uses it: each weight's step is scaled by the ratio of its norm to its gradient's.

Biases and normalization parameters take neither the scaling nor weight decay. Arithmetic is in lists of tensors
(``torch._foreach_*``: few kernels) and nothing is read back from the device.
"""

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import (
    Tensor,
    _foreach_add,
    _foreach_add_,
    _foreach_mul_,
    _foreach_norm,
    _foreach_sub_,
    _fused_sgd_,
    nn,
)

TRUST_COEFFICIENT = 0.001  # eta of You et al.; the value in SimCLR's code


def parameter_groups(modules: Iterable[nn.Module], weight_decay: float) -> list[dict[str, Any]]:
    """Two groups for any optimizer: the weights of layers, and without decay all others. Those are one-dimensional
    (biases, normalization), or no layer's ``weight``: class tokens, position tables, the scales of ConvNeXt's blocks.

    ``adaptive`` is read by LARS only.
    """
    named = [pair for module in modules for pair in module.named_parameters()]
    weights = [one for name, one in named if _is_weight(name, one)]
    others = [one for name, one in named if not _is_weight(name, one)]
    return [
        {"params": weights, "weight_decay": weight_decay, "adaptive": True},
        {"params": others, "weight_decay": 0.0, "adaptive": False},
    ]


def _is_weight(name: str, parameter: Tensor) -> bool:
    return parameter.ndim > 1 and name.endswith("weight")


class LARS(torch.optim.Optimizer):
    """``v <- momentum · v + lr · trust · (g + decay · w);  w <- w - v;  trust = eta · |w| / |g + decay · w|``.

    The rate is inside v, as in SimCLR's code, so that a change of rate does not rescale the past. Trust is 1 for
    parameters that are not ``adaptive``, and where a norm is zero. A ``fused`` one, for GPUs, leaves a step out where
    its attribute ``found_inf``, a tensor of one float, is 1, as torch's own do: the gradients may then be anything.

    Examples:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> layer.weight.data = torch.tensor([[3.0, 4.0]])  # of norm 5
        >>> layer.weight.grad = torch.tensor([[0.0, 10.0]])
        >>> LARS(parameter_groups([layer], weight_decay=0.0), lr=1.0).step()
        >>> [round(value, 4) for value in layer.weight.tolist()[0]]  # trust: 0.001 * 5 / 10
        [3.0, 3.995]
    """

    def __init__(
        self, groups: list[dict[str, Any]], lr: float, momentum: float = 0.9, fused: bool | None = None
    ) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": 0.0, "adaptive": True})
        self._fused = bool(fused)
        self._step_supports_amp_scaling = self._fused  # for torch's GradScaler, which would wait for found_inf

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        assert closure is None, "LARS takes one gradient per step"
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if weights:
                self._update(weights, group)
        return None

    def _update(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        velocities = [self._velocity(weight) for weight in weights]
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        updates = _foreach_add(gradients, weights, alpha=group["weight_decay"])
        if group["adaptive"]:
            _foreach_mul_(updates, _trust(weights, updates))
        if self._fused:
            _foreach_mul_(updates, group["lr"])
            self._descend(weights, updates, velocities, group["momentum"])
            return
        _foreach_mul_(velocities, group["momentum"])
        _foreach_add_(velocities, updates, alpha=group["lr"])
        _foreach_sub_(weights, velocities)

    def _descend(
        self, weights: list[Tensor], updates: tuple[Tensor, ...], velocities: list[Tensor], momentum: float
    ) -> None:
        """A step of SGD at a rate of 1."""
        _fused_sgd_(
            weights,
            updates,
            velocities,
            weight_decay=0.0,
            momentum=momentum,
            lr=1.0,
            dampening=0.0,
            nesterov=False,
            maximize=False,
            is_first_step=False,
            found_inf=getattr(self, "found_inf", None),
        )

    def _velocity(self, weight: Tensor) -> Tensor:
        state: dict[str, Tensor] = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        return state["momentum_buffer"]


def _trust(weights: list[Tensor], updates: tuple[Tensor, ...]) -> list[Tensor]:
    weight_norms = torch.stack(_foreach_norm(weights))
    update_norms = torch.stack(_foreach_norm(updates))
    ratios = TRUST_COEFFICIENT * weight_norms / update_norms
    usable = (weight_norms > 0) & (update_norms > 0)
    return list(torch.where(usable, ratios, torch.ones_like(ratios)).unbind())
