"""LARS against a loop over the published formula, one number at a time."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from simclr_core.lars import LARS, TRUST_COEFFICIENT, parameter_groups
from simclr_core.loss.nt_xent import nt_xent


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 4))


def oracle_step(
    weights: list[list[float]],
    gradients: list[list[float]],
    velocities: list[list[float]],
    adaptive: list[bool],
    lr: float,
    momentum: float,
    decay: float,
) -> None:
    for w, g, v, is_adaptive in zip(weights, gradients, velocities, adaptive, strict=True):
        regularized = [gi + (decay if is_adaptive else 0.0) * wi for gi, wi in zip(g, w, strict=True)]
        weight_norm = sum(wi * wi for wi in w) ** 0.5
        gradient_norm = sum(gi * gi for gi in regularized) ** 0.5
        trust = (
            TRUST_COEFFICIENT * weight_norm / gradient_norm if is_adaptive and weight_norm and gradient_norm else 1.0
        )
        for i in range(len(w)):
            v[i] = momentum * v[i] + lr * trust * regularized[i]
            w[i] -= v[i]


def gradients_of_step(network: nn.Module, step: int) -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    for parameter in network.parameters():
        yield torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)


def test_equals_the_formula_over_several_steps_and_rates() -> None:
    network = small_network().double()
    optimizer = LARS(parameter_groups([network], weight_decay=0.1), lr=1.0, momentum=0.9)
    parameters = list(network.parameters())
    weights = [parameter.detach().flatten().tolist() for parameter in parameters]
    velocities = [[0.0] * len(w) for w in weights]
    adaptive = [parameter.ndim > 1 for parameter in parameters]
    for step, lr in enumerate([0.5, 1.0, 0.25]):
        gradients = list(gradients_of_step(network, step))
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.clone()
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        oracle_step(weights, [g.flatten().tolist() for g in gradients], velocities, adaptive, lr, 0.9, 0.1)
    for parameter, expected in zip(parameters, weights, strict=True):
        torch.testing.assert_close(parameter.detach().flatten(), torch.tensor(expected, dtype=torch.float64))


def test_biases_and_normalization_take_plain_momentum_without_decay() -> None:
    network = small_network()
    weights, others = parameter_groups([network], weight_decay=0.1)
    assert [p.ndim for p in weights["params"]] == [4, 2]
    assert [p.ndim for p in others["params"]] == [1, 1, 1, 1]
    assert (weights["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    bias = network[3].bias
    before = bias.detach().clone()
    bias.grad = torch.ones_like(bias)
    LARS([weights, others], lr=0.5).step()
    torch.testing.assert_close(bias.detach(), before - 0.5)


@pytest.mark.parametrize("zero", ["weight", "gradient"])
def test_a_zero_norm_means_a_trust_of_one(zero: str) -> None:
    weight = nn.Parameter(torch.zeros(2, 2) if zero == "weight" else torch.ones(2, 2))
    weight.grad = torch.zeros(2, 2) if zero == "gradient" else torch.ones(2, 2)
    LARS([{"params": [weight]}], lr=0.5).step()
    torch.testing.assert_close(weight.detach(), torch.full((2, 2), -0.5 if zero == "weight" else 1.0))


def test_the_groups_serve_sgd_and_adamw_too() -> None:
    network = small_network()
    for optimizer in (
        torch.optim.SGD(parameter_groups([network], 0.1), lr=0.1),
        torch.optim.AdamW(parameter_groups([network], 0.1), lr=0.1),
    ):
        assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
        for parameter in network.parameters():
            parameter.grad = torch.zeros_like(parameter)
        before = network[1].weight.detach().clone()
        optimizer.step()
        torch.testing.assert_close(network[1].weight.detach(), before)  # no gradient and no decay: no change


def test_a_frozen_parameter_stays() -> None:
    network = small_network()
    network[0].requires_grad_(False)
    before = network[0].weight.detach().clone()
    for parameter in network[3].parameters():
        parameter.grad = torch.ones_like(parameter)
    LARS(parameter_groups([network], 0.1), lr=0.5).step()
    torch.testing.assert_close(network[0].weight.detach(), before)


WAITING = {"_local_scalar_dense", "item", "nonzero", "masked_select", "equal", "is_nonzero", "unique_dim", "_unique2"}


class HostSyncs(TorchDispatchMode):
    """Counts the operations for which a GPU would have to be waited for: a value, or a shape that depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name == "index" and any(index is not None and index.dtype == torch.bool for index in args[1])
        self.count += name in WAITING or by_mask
        return func(*args, **(kwargs or {}))


def test_a_step_never_waits_for_the_device() -> None:
    network = small_network()
    optimizer = LARS(parameter_groups([network], weight_decay=0.1), lr=0.5)
    for _ in range(2):  # the first one makes the velocities
        with HostSyncs() as waits:
            optimizer.zero_grad()
            first, second = network(torch.randn(8, 2, 4, 4)).chunk(2)
            torch.autograd.backward(nt_xent(first, second, 0.5))
            optimizer.step()
        assert waits.count == 0


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: float(x.norm()),
        lambda x: 1 if x.norm() != 0 else 0,  # what other implementations of LARS ask, twice a tensor
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: torch.masked_select(x, x > 0),
    ],
)
def test_waiting_operations_are_counted(operation: Any) -> None:
    with HostSyncs() as waits:
        operation(torch.ones(3))
    assert waits.count == 1
