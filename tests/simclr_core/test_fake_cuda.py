"""The fake GPU counts what a real one would be asked, and goes backwards as autograd does."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from simclr_core.torch_calls import all_gather_single
from tests.simclr_core.fake_cuda import backward, count, fake_cuda, gradients


@pytest.fixture
def gpu() -> Iterator[torch.device]:
    with fake_cuda() as device:
        yield device


def counted(function: Callable[[], object]) -> dict[str, int]:
    """Those that are not 0."""
    counts = vars(count(function))
    return {kind: number for kind, number in counts.items() if kind != "names" and number}


WORK: dict[str, tuple[Callable[[Tensor], object], int]] = {
    "sum": (lambda x: x + 1, 1),
    "in place": (lambda x: x.mul_(2), 1),
    "view": (lambda x: x.view(-1)[2:].view(6, 3).T, 0),
    "allocation": (lambda x: torch.empty_like(x), 0),
    "zeros": (lambda x: x.new_zeros(3), 1),
    "nothing": (lambda x: x[:0].fill_(1), 0),
    "layer": (lambda x: nn.functional.conv2d(x[None, None], x[None, None, :2, :2]), 1),
    "list": (lambda x: torch._foreach_add_([x, x.clone()], 1.0), 2),
    "copy": (lambda x: x.bfloat16(), 1),
    "number": (lambda x: x.new_full((), 3.0), 1),
}


@pytest.mark.parametrize("name", WORK)
def test_what_launches_work_is_counted_and_views_are_not(gpu: torch.device, name: str) -> None:
    function, kernels = WORK[name]
    x = torch.ones(4, 5, device=gpu)
    assert counted(lambda: function(x)) == ({"kernels": kernels} if kernels else {})


STALLS: dict[str, tuple[Callable[[Tensor, Tensor], object], str]] = {
    "number": (lambda x, host: float(x.sum()), "read_backs"),
    "list": (lambda x, host: x[0, :1].tolist(), "read_backs"),
    "condition": (lambda x, host: bool((x > 1).all()), "read_backs"),
    "equal": (lambda x, host: torch.equal(x, x), "read_backs"),
    "nonzero": (lambda x, host: x.nonzero(), "read_backs"),
    "mask": (lambda x, host: x[x > 1], "read_backs"),
    "to the processor": (lambda x, host: x.cpu(), "read_backs"),
    "into the processor's": (lambda x, host: host.copy_(x), "read_backs"),
    "into what is not pinned": (lambda x, host: host.copy_(x, non_blocking=True), "read_backs"),
    "constant": (lambda x, host: x.new_tensor(1.0), "blocking_copies"),
    "tensor": (lambda x, host: torch.tensor([1.0], device=x.device), "blocking_copies"),
    "not pinned": (lambda x, host: host.to(x.device, non_blocking=True), "blocking_copies"),
    "pinned, blocking": (lambda x, host: host.pin_memory().to(x.device), "blocking_copies"),
    "index": (lambda x, host: x[torch.tensor([0, 1])], "blocking_copies"),
    "event": (lambda x, host: torch.cuda.Event().synchronize(), "waits"),
    "device": (lambda x, host: torch.cuda.synchronize(), "waits"),
}


@pytest.mark.parametrize("name", STALLS)
def test_what_makes_the_processor_wait_is_counted(gpu: torch.device, name: str) -> None:
    function, kind = STALLS[name]
    x, host = torch.ones(4, 5, device=gpu), torch.ones(4, 5)
    assert {key: number for key, number in counted(lambda: function(x, host)).items() if key != "kernels"} == {kind: 1}


QUIET: dict[str, Callable[[Tensor, Tensor], object]] = {
    "pinned": lambda x, host: host.pin_memory().to(x.device, non_blocking=True),
    "made pinned": lambda x, host: x.copy_(torch.empty(4, 5, pin_memory=True), non_blocking=True),
    "part of pinned": lambda x, host: x[:2].copy_(host.pin_memory()[:2], non_blocking=True),
    "back, looked at later": lambda x, host: x.to("cpu", non_blocking=True),
    "back into pinned": lambda x, host: host.pin_memory().copy_(x, non_blocking=True),
    "number by a mask": lambda x, host: x.masked_fill_(x > 1, 0.0),
    "assignment by a mask": lambda x, host: x.__setitem__(x > 1, 0.0),
    "numbers of the processor": lambda x, host: float(torch.tensor(3.0)),
    "looked at later": lambda x, host: x[0].to("cpu", non_blocking=True).tolist(),
}


@pytest.mark.parametrize("name", QUIET)
def test_what_does_not_is_not(gpu: torch.device, name: str) -> None:
    x, host = torch.ones(4, 5, device=gpu), torch.ones(4, 5)
    assert not {"read_backs", "blocking_copies", "waits"} & set(counted(lambda: QUIET[name](x, host)))


def test_numbers_are_ones(gpu: torch.device) -> None:
    x = torch.zeros(2, 3, device=gpu)
    assert (x.sum().item(), x.int().sum().item(), bool((x > 1).any())) == (1.0, 1, True)
    assert (len(x.nonzero()), len(x[x > 1])) == (6, 6)


def test_exchanges_are_counted(gpu: torch.device) -> None:
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=8)
    try:
        x, everyone = torch.ones(4, 5, device=gpu), torch.empty(32, 5, device=gpu)
        assert counted(lambda: dist.all_reduce(x)) == {"collectives": 1}
        assert counted(lambda: all_gather_single(everyone, x)) == {"collectives": 1}
    finally:
        dist.destroy_process_group()


def network() -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(16, 3))
    return layers, torch.randn(5, 3, 4, 4, requires_grad=True)


def loss_of(layers: nn.Module, images: Tensor) -> Tensor:
    """With a path that forks, a sum that spreads, and a type that changes."""
    z = nn.functional.normalize(layers(images))
    return ((z @ z.T).double() + z.sum(dim=1)).exp().mean() * images.mean()


def test_the_graph_is_walked_as_autograd_does() -> None:
    results = []
    for walk in (torch.autograd.backward, backward):
        layers, images = network()
        for _ in range(2):  # gradients add up
            walk(loss_of(layers, images))
        results.append([images.grad, *(weight.grad for weight in layers.parameters())])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


def test_single_gradients_leave_the_weights_alone() -> None:
    layers, images = network()
    wanted: list[Any] = [images, layers[4].weight]
    expected = torch.autograd.grad(loss_of(layers, images), wanted)
    torch.testing.assert_close(gradients(loss_of(layers, images), wanted), expected, rtol=1e-6, atol=1e-7)
    assert layers[4].weight.grad is None


def test_a_backward_pass_counts_too(gpu: torch.device) -> None:
    layers, images = network()
    layers, images = layers.to(gpu), images.detach().to(gpu)
    loss = loss_of(layers, images)
    counts = count(lambda: torch.autograd.backward(loss))
    assert counts.names["kernels: convolution_backward"] == 1
    assert all(weight.grad is not None and weight.grad.device == gpu for weight in layers.parameters())
