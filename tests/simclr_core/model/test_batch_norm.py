"""Global BatchNorm on several ranks is torch's BatchNorm on the whole batch."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import product
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from simclr_core.model.batch_norm import GlobalBatchNorm, synchronize

torch.set_num_threads(1)

ROWS = {"on processors": (5, 2), "on GPUs": (3, 3)}  # of each rank: uneven, where that is allowed
NORMS: dict[str, Callable[[], nn.Module]] = {
    "2d": lambda: nn.BatchNorm2d(3),
    "1d": lambda: nn.BatchNorm1d(3),
    "1d rows": lambda: nn.BatchNorm1d(3, eps=1e-3, momentum=0.3),
    "cumulative": lambda: nn.BatchNorm2d(3, momentum=None),
    "no weights": lambda: nn.BatchNorm2d(3, affine=False),
    "no memory": lambda: nn.BatchNorm2d(3, track_running_stats=False),
}


def test_one_process_alone_equals_plain_batch_norm() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    norm = model[1]
    assert synchronize(model) is model
    assert model[1] is norm


def test_a_process_group_of_one_equals_plain_batch_norm() -> None:
    norm = nn.BatchNorm2d(3)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        assert synchronize(norm) is norm
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_equal_one_process_on_the_whole_batch(on_ranks: Callable[..., list[Any]]) -> None:
    """Output, gradients, running statistics after two steps, evaluation, for every kind of BatchNorm."""
    shares = on_ranks(2, each_kind)
    for (kind, make), where in product(NORMS.items(), ROWS):
        whole = run(warmed(make()), *(batch[: sum(ROWS[where])] for batch in batches(kind)))
        first, second = (share[kind, where] for share in shares)
        assert first["type"] == second["type"] == "GlobalBatchNorm"
        assert first["state"].keys() == whole["state"].keys()
        for name, value in whole["state"].items():
            torch.testing.assert_close(first["state"][name], value, rtol=1e-10, atol=1e-10)
            assert torch.equal(first["state"][name], second["state"][name]), f"{kind}: {name} differs between the ranks"
        for part in ("output", "input gradient"):
            torch.testing.assert_close(torch.cat([first[part], second[part]]), whole[part], rtol=1e-9, atol=1e-9)
        for mine, other, gradient in zip(first["gradients"], second["gradients"], whole["gradients"], strict=True):
            torch.testing.assert_close(mine + other, gradient, rtol=1e-9, atol=1e-9)
        if kind != "no memory":  # there evaluation takes the statistics of the batch
            torch.testing.assert_close(torch.cat([first["evaluation"], second["evaluation"]]), whole["evaluation"])


def each_kind(rank: int) -> dict[tuple[str, str], dict[str, Any]]:
    results = {}
    for where, shares in ROWS.items():
        with gpu_kernels() if where == "on GPUs" else nullcontext():
            for kind, make in NORMS.items():
                own = (batch[: sum(shares)].split(shares)[rank] for batch in batches(kind))
                results[kind, where] = run(synchronize(warmed(make())), *own)
    return results


@contextmanager
def gpu_kernels() -> Iterator[None]:
    """Inside, GlobalBatchNorm computes as on a GPU, by what CUDA's documentation says of its kernels."""

    def over(x: Tensor) -> tuple[int, ...]:
        return (0, *range(2, x.ndim))

    def along(x: Tensor, values: Tensor | None) -> Tensor | float:
        return 1.0 if values is None else values.view(1, -1, *[1] * (x.ndim - 2))

    def stats(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        variance, mean = torch.var_mean(x, over(x), correction=0)
        return mean, (variance + eps).rsqrt()

    def normalize(
        x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, scale: Tensor, _: float
    ) -> Tensor:
        shift = 0.0 if bias is None else along(x, bias)
        return (x - along(x, mean)) * along(x, scale) * along(x, weight) + shift

    def reduce(pull: Tensor, x: Tensor, mean: Tensor, scale: Tensor, *_: Any) -> tuple[Tensor, ...]:
        of_bias, centered = pull.sum(over(x)), (pull * (x - along(x, mean))).sum(over(x))
        return of_bias, centered, centered * scale, of_bias.clone()

    def backward(pull: Tensor, x: Tensor, mean: Tensor, scale: Tensor, weight: Tensor | None, *sums: Tensor) -> Tensor:
        of_bias, centered, count = sums
        rows = count.sum()
        slope = along(x, centered / rows * scale**2)
        return (pull - along(x, of_bias / rows) - (x - along(x, mean)) * slope) * along(x, scale) * along(x, weight)

    here = GlobalBatchNorm.forward

    def forward(norm: GlobalBatchNorm, x: Tensor) -> Tensor:
        return norm._on_gpu(x) if norm.training else here(norm, x)

    kernels = {
        "batch_norm_stats": stats,
        "batch_norm_elemt": normalize,
        "batch_norm_backward_reduce": reduce,
        "batch_norm_backward_elemt": backward,
    }
    with torch.library._scoped_library("aten", "IMPL") as library, patch.object(GlobalBatchNorm, "forward", forward):
        for name, kernel in kernels.items():
            library.impl(name, kernel, "CPU")
        yield


@pytest.mark.slow
def test_the_compiler_captures_a_whole_network_with_its_exchanges() -> None:
    """No graph ends at a normalization, and the gradients are those of the same network uncompiled."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.BatchNorm2d(2))
    images = torch.randn(6, 3, 8, 8)
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=1)
    try:
        with gpu_kernels():
            network[1], network[4] = (GlobalBatchNorm.like(network[place]) for place in (1, 4))
            (network(images) ** 3).sum().backward()
            expected = [weight.grad for weight in network.parameters()]
            network.zero_grad()
            (torch.compile(network, backend="aot_eager", fullgraph=True)(images) ** 3).sum().backward()
    finally:
        dist.destroy_process_group()
    for weight, gradient in zip(network.parameters(), expected, strict=True):
        torch.testing.assert_close(weight.grad, gradient)


def run(norm: nn.Module, *steps: Tensor) -> dict[str, Any]:
    """Two training steps, the second with gradients through an uneven function, then evaluation."""
    norm(steps[0])
    x = steps[1].requires_grad_()
    output = norm(x)
    (output**3 * (1 + torch.arange(3).view(1, 3, *[1] * (x.ndim - 2)))).sum().backward()
    return {
        "type": type(norm).__name__,
        "state": norm.state_dict(),
        "output": output.detach(),
        "input gradient": x.grad,
        "gradients": [weight.grad for weight in norm.parameters()],
        "evaluation": norm.eval()(steps[0]).detach(),
    }


def warmed(norm: nn.Module) -> nn.Module:
    """With weights that are not all ones and zeros."""
    with torch.no_grad():
        for weight in norm.parameters():
            weight.add_(torch.linspace(-0.5, 1, 3))
    return norm.double()


def batches(kind: str) -> tuple[Tensor, Tensor]:
    """Two batches whose rows grow, so that the ranks' means and scales differ."""
    shape = {"1d": (3, 4), "1d rows": (3,)}.get(kind, (3, 4, 5))
    generator = torch.Generator().manual_seed(0)
    rows = torch.arange(1, 8, dtype=torch.float64).view(-1, *[1] * len(shape))
    one, two = (rows + rows * torch.randn(len(rows), *shape, generator=generator) for _ in range(2))
    return one, two


@pytest.mark.slow
def test_large_means_low_precision_and_nested_modules(on_ranks: Callable[..., list[Any]]) -> None:
    for share in on_ranks(2, hard_cases):
        assert share["types"] == [torch.bfloat16, torch.float32]
        assert share["spread"] == pytest.approx(1, abs=0.02)
        assert share["nested"] == [True, False]


def hard_cases(rank: int) -> dict[str, Any]:
    norm = synchronize(nn.BatchNorm2d(2))
    half = norm(torch.randn(4, 2, 3, 3).bfloat16())
    # In float32 the square of 1e4 has a grain of 8: a one-pass variance would find no spread here, or a negative one.
    x = 1e4 + torch.randn(256, 2, 3, 3, generator=torch.Generator().manual_seed(rank))
    nested = synchronize(nn.Sequential(nn.BatchNorm1d(2), nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2).eval())))
    training = [module.training for module in nested.modules() if isinstance(module, GlobalBatchNorm)]
    return {"types": [half.dtype, norm.running_var.dtype], "spread": norm(x).std().item(), "nested": training}
