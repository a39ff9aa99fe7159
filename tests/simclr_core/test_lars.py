"""LARS against a loop over the published formula, one number at a time."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn
from torchvision import models
from torchvision.models.convnext import CNBlockConfig

from simclr_core.lars import LARS, TRUST_COEFFICIENT, parameter_groups
from tests.simclr_core.fake_cuda import count, fake_cuda


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


@pytest.mark.parametrize(
    ("make", "without"),
    [
        (lambda: models.VisionTransformer(8, 4, 1, 1, 8, 8), {"class_token", "pos_embedding"}),
        (lambda: models.SwinTransformer([2, 2], 8, [2], [2], [2, 2]), {"relative_position_bias_table"}),
        (lambda: models.ConvNeXt([CNBlockConfig(8, None, 2)]), {"layer_scale"}),
    ],
    ids=["vit", "swin", "convnext"],
)
def test_tokens_tables_and_scales_do_not_decay(make: Callable[[], nn.Module], without: set[str]) -> None:
    network = make()
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    weights, others = parameter_groups([network], 0.1)
    assert all(names[id(one)].endswith("weight") for one in weights["params"])
    assert {names[id(one)].rpartition(".")[2] for one in others["params"] if one.ndim > 1} == without


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


def test_a_step_never_waits_for_the_device() -> None:
    """Other implementations ask twice a tensor whether its norm is 0."""
    with fake_cuda() as gpu:
        network = small_network().to(gpu)
        optimizer = LARS(parameter_groups([network], weight_decay=0.1), lr=0.5)
        for _ in range(2):  # the first one makes the velocities
            for parameter in network.parameters():
                parameter.grad = torch.ones_like(parameter)
            counts = count(lambda: optimizer.step())
            assert (counts.read_backs, counts.blocking_copies, counts.waits) == (0, 0, 0), counts.names
