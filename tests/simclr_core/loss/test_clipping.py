"""Gradients that are longer than they may be: shortened to the limit, whatever computes them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from simclr_core.launch import Member
from simclr_core.loss.nt_xent import nt_xent
from simclr_core.loss.objective import InBatch
from simclr_core.model.weight_average import WeightAverage
from simclr_core.pretraining import pretrain
from simclr_core.pretraining.precision import LossScaler
from simclr_core.pretraining.training import Learner, gradients, update

IMAGES, LIMIT = 8, 0.05


def network(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Sequential(nn.Flatten(), nn.Linear(12, 6)), nn.Linear(6, 4)).to(dtype)


def learner(
    model: nn.Sequential, limit: float | None, micro_batch_size: int | None = None, dtype: torch.dtype = torch.float32
) -> Learner:
    scaler = LossScaler(dtype, torch.device("cpu"))
    objective = InBatch(nt_xent, 0.5, torch.float32, micro_batch_size, scaled=scaler.scaled)
    return Learner(model, model, torch.optim.SGD(model.parameters(), lr=0.0), objective, scaler, largest_norm=limit)


def views(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(2 * IMAGES, 3, 2, 2, generator=torch.Generator().manual_seed(1)).to(dtype)


def moved(trained: Learner, inputs: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """The gradients of a step, and by how much it moved the weights with a learning rate of 1."""
    before = [weight.detach().clone() for weight in trained.network.parameters()]
    gradients(trained, inputs, 0)
    found = [weight.grad.clone() for weight in trained.network.parameters() if weight.grad is not None]
    update(trained, 1.0)
    return found, [old - new.detach() for old, new in zip(before, trained.network.parameters(), strict=True)]


def test_a_long_gradient_is_shortened_to_the_limit_in_its_direction() -> None:
    found, moves = moved(learner(network(), LIMIT), views())
    norm = sum(float(number) ** 2 for one in found for number in one.flatten()) ** 0.5
    assert norm > 2 * LIMIT
    for gradient, move in zip(found, moves, strict=True):
        torch.testing.assert_close(move, gradient * LIMIT / norm, rtol=1e-4, atol=1e-12)
    assert sum(float(move.square().sum()) for move in moves) ** 0.5 == pytest.approx(LIMIT, rel=1e-4)


def test_a_short_gradient_stays_as_it_is() -> None:
    _, free = moved(learner(network(), None), views())
    _, clipped = moved(learner(network(), 1e3), views())
    assert all(torch.equal(one, other) for one, other in zip(free, clipped, strict=True))


def test_micro_batches_are_clipped_together() -> None:
    _, whole = moved(learner(network(), LIMIT), views())
    _, parts = moved(learner(network(), LIMIT, micro_batch_size=3), views())
    torch.testing.assert_close(parts, whole, rtol=1e-10, atol=1e-12)


def test_the_multiple_of_float16_is_taken_out_first() -> None:
    _, plain = moved(learner(network(torch.float32), LIMIT), views(torch.float32))
    _, scaled = moved(learner(network(torch.float32), LIMIT, dtype=torch.float16), views(torch.float32))
    torch.testing.assert_close(scaled, plain, rtol=1e-4, atol=1e-7)


def on_rank(rank: int, size: int) -> dict[str, Any]:
    """Three clipped steps on this rank's share, followed by an average."""
    member = Member(rank, size, torch.device("cpu"))
    model = network()
    average = WeightAverage(model, 0.9)
    scaler = LossScaler(torch.float32, member.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
    trained = Learner(
        model,
        pretrain.distributed(model, member),
        optimizer,
        InBatch(nt_xent, 0.5, torch.float32),
        scaler,
        average,
        LIMIT,
    )
    share = slice(rank * IMAGES // size, (rank + 1) * IMAGES // size)
    for step in range(3):
        gradients(trained, torch.cat([half[share] for half in views().chunk(2)]), step)
        update(trained, 1.0)
    return {"weights": dict(model.state_dict()), "average": average.tensors()}


@pytest.mark.slow
def test_two_processes_clip_and_average_as_one_does(on_ranks: Callable[..., list[Any]]) -> None:
    whole = on_rank(0, 1)
    for half in on_ranks(2, on_rank, 2):
        torch.testing.assert_close(half, whole, rtol=1e-9, atol=1e-9)
