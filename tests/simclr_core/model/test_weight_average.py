"""The moving average of a network, against the sum that it stands for, and what it asks of a GPU."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from simclr_core.model import weight_average
from simclr_core.model.weight_average import WeightAverage
from tests.simclr_core.fake_cuda import count, fake_cuda

STEPS, DECAY = 120, 0.9


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double()


def trained(model: nn.Sequential, average: WeightAverage) -> Iterator[dict[str, Tensor]]:
    """What the network is at first, and after each of some random steps, which the average follows."""
    yield {name: value.clone() for name, value in model.state_dict().items()}
    for step in range(STEPS):
        torch.manual_seed(step)
        model(torch.randn(8, 3, dtype=torch.float64))
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn_like(weight))
        average.update()
        yield {name: value.clone() for name, value in model.state_dict().items()}


def test_it_is_the_weighted_sum_of_all_networks_so_far() -> None:
    model = network()
    average = WeightAverage(model, DECAY)
    states = list(trained(model, average))
    paces = [max(1 - DECAY, 9 / (10 + step)) for step in range(STEPS)]
    assert paces[0] == 0.9
    assert paces[-1] == 1 - DECAY, "the faster start is over"
    left, shares = 1.0, []
    for pace in reversed(paces):
        shares.append(pace * left)
        left *= 1 - pace
    shares = [left, *reversed(shares)]
    assert abs(sum(shares) - 1) < 1e-12
    for name, value in average.network.state_dict().items():
        if value.is_floating_point():
            expected = sum(share * state[name] for share, state in zip(shares, states, strict=True))
            torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-10)
    assert int(average.network[1].num_batches_tracked) == STEPS
    assert not average.network.training
    assert not any(weight.requires_grad for weight in average.network.parameters())


def test_without_memory_it_is_the_network_bit_for_bit() -> None:
    model = network()
    average = WeightAverage(model, 0.0)
    for state in trained(model, average):
        if average.updates:
            assert all(torch.equal(value, state[name]) for name, value in average.network.state_dict().items())


def test_it_continues_bit_for_bit_and_leaves_the_network_alone() -> None:
    model, other = network(), network()
    average, undisturbed = WeightAverage(model, DECAY), WeightAverage(other, DECAY)
    for number, (state, expected) in enumerate(zip(trained(model, average), trained(other, undisturbed), strict=True)):
        assert all(torch.equal(value, expected[name]) for name, value in state.items())
        if number == STEPS // 2:
            kept = {name: value.clone() for name, value in average.tensors().items()}
            average.network.load_state_dict(expected)
            average.updates = 0
            average.restore(kept)
    assert all(torch.equal(value, undisturbed.tensors()[name]) for name, value in average.tensors().items())


def test_a_gpu_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_cuda() as gpu:
        model, copy = network().to(gpu), network().to(gpu)
        monkeypatch.setattr(weight_average, "deepcopy", lambda _: copy)
        average = WeightAverage(model, DECAY)
        counts = count(average.update)
    assert (counts.blocking_copies, counts.read_backs, counts.waits) == (0, 0, 0), counts.names
    assert counts.kernels <= 3, counts.names
