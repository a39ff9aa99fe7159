"""NT-Xent: its value is the paper's formula, its gradient that of one process on the whole batch, its memory N x d."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

import simclr_core.nt_xent as module
from simclr_core.batch_norm import synchronise
from simclr_core.errors import NtXentError
from simclr_core.nt_xent import nt_xent

torch.set_num_threads(1)

CLOSE = {torch.float32: 1e-5, torch.float64: 1e-12}


@pytest.mark.parametrize("temperature", [0.003, 0.01, 0.1, 0.5, 3.0])
@pytest.mark.parametrize("d", [1, 2, 16])
@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_equals_the_formula_of_the_paper(n: int, d: int, temperature: float) -> None:
    first, second = views(n, d)
    loss = nt_xent(first, second, temperature)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(paper(first, second, temperature), rel=1e-10, abs=1e-10)


@pytest.mark.parametrize("tile", [1, 2, 3, 5, 64])
def test_tiles_change_nothing(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (view.requires_grad_() for view in views(5, 4))
    whole = nt_xent(first, second, 0.2)
    gradients = torch.autograd.grad(whole, (first, second))
    monkeypatch.setattr(module, "TILE", tile)
    tiled = nt_xent(first, second, 0.2)
    torch.testing.assert_close(tiled, whole)
    torch.testing.assert_close(torch.autograd.grad(tiled, (first, second)), gradients)


@pytest.mark.parametrize(("n", "temperature"), [(1, 0.5), (2, 0.1), (4, 0.5), (4, 0.05)])
def test_gradient_is_that_of_the_loss(n: int, temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TILE", 3)
    first, second = (view.requires_grad_() for view in views(n, 3))
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, temperature), (first, second))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-3, 1e4])
def test_finite_and_exact_at_the_lowest_temperature(dtype: torch.dtype, scale: float) -> None:
    """At 0.01 a similarity spans 200 nats: exp overflows float32 without a shift and underflows with a constant one."""
    first, second = (scale * view for view in views(6, 2))
    second[0] = -first[0]
    single = [view.to(dtype).requires_grad_() for view in (first, second)]
    loss = nt_xent(single[0], single[1], 0.01)
    assert loss.item() == pytest.approx(paper(first, second, 0.01), rel=1e-5)
    for gradient in torch.autograd.grad(loss, single):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lowest_similarity_at_the_lowest_temperature(dtype: torch.dtype) -> None:
    """Every other row lies opposite: exp(-200) relative to the largest similarity there could be."""
    first = torch.tensor([[1.0, 0.0]], dtype=dtype, requires_grad=True)
    loss = nt_xent(first, -first.detach(), 0.01)
    assert loss.item() == pytest.approx(0, abs=1e-4)
    assert torch.autograd.grad(loss, first)[0].isfinite().all()


def test_alike_views_of_unlike_images_cost_nothing_and_chance_costs_its_logarithm() -> None:
    aligned = torch.eye(4)
    assert nt_xent(aligned, aligned, 0.01).item() == pytest.approx(0, abs=1e-6)
    collapsed = torch.ones(4, 3)
    assert nt_xent(collapsed, collapsed, 0.5).item() == pytest.approx(math.log(2 * 4 - 1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_under_autocast_forward_and_backward(dtype: torch.dtype) -> None:
    first, second = (view.float().requires_grad_() for view in views(8, 16))
    expected = nt_xent(first, second, 0.05)
    gradients = torch.autograd.grad(expected, (first, second))
    with torch.autocast("cpu", dtype):
        loss = nt_xent(first, second, 0.05)
        assert loss.dtype == torch.float32
        assert torch.equal(loss, expected)
        assert all(map(torch.equal, torch.autograd.grad(loss, (first, second)), gradients))
    low = nt_xent(first.to(dtype), second.to(dtype), 0.05)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, expected, rtol=0.05, atol=0)


@pytest.mark.parametrize("temperature", [0, -0.1, 0.0029, math.nan, math.inf])
def test_temperature_must_be_positive(temperature: float) -> None:
    with pytest.raises(NtXentError, match=f"temperature is {temperature}; give a finite number of at least 0.003"):
        nt_xent(*views(2, 2), temperature)


@pytest.mark.parametrize(("first", "second"), [((3, 4), (2, 4)), ((3, 4), (3, 5)), ((0, 4), (0, 4)), ((4,), (4,))])
def test_the_two_views_must_match(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    with pytest.raises(NtXentError, match=r"have shapes .* give both as \[n, d\]"):
        nt_xent(torch.ones(first), torch.ones(second), 0.5)


def test_memory_grows_with_the_rows_and_not_with_their_square() -> None:
    """Largest tensor ever made, and all that is kept for the backward pass, in elements."""
    n, d = 2048, 32
    first, second = (torch.randn(n, d, requires_grad=True) for _ in range(2))
    kept: list[int] = []
    with LargestTensor() as largest, saved_tensors_hooks(lambda t: (kept.append(t.numel()), t)[1], lambda t: t):
        nt_xent(first, second, 0.5).backward()
    assert largest.numel <= (2 * n) ** 2 / 30
    assert sum(kept) <= 5 * (2 * n * d)  # all N x N similarities would be 128 times N x d


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_ranks_on_their_shares_equal_one_process_on_the_whole_batch(
    world: int, on_ranks: Callable[..., list[Any]]
) -> None:
    """Loss and weight gradients under DistributedDataParallel with BatchNorm in the network, on asymmetric data."""
    images = {dtype: asymmetric_images(dtype) for dtype in CLOSE}
    shares = on_ranks(world, train_step, world, images)
    for dtype, tolerance in CLOSE.items():
        loss, gradients = step(network(dtype), *images[dtype])
        for share in shares:
            assert share[dtype]["collectives"] == {"forward": 2, "backward": 0}
            torch.testing.assert_close(share[dtype]["loss"], loss, rtol=tolerance, atol=tolerance)
            for name, gradient in gradients.items():
                torch.testing.assert_close(share[dtype]["gradients"][name], gradient, rtol=tolerance, atol=tolerance)


def train_step(rank: int, world: int, images: dict[torch.dtype, tuple[Tensor, Tensor]]) -> dict[torch.dtype, Any]:
    """What rank ``rank`` gets from its share of the batch."""
    results: dict[torch.dtype, Any] = {}
    for dtype, views in images.items():
        model = DistributedDataParallel(synchronise(network(dtype)))
        loss, gradients = step(model, *(view.chunk(world)[rank] for view in views))
        own = {name.removeprefix("module."): gradient for name, gradient in gradients.items()}
        results[dtype] = {"loss": loss, "gradients": own, "collectives": collectives_of_the_loss(dtype)}
    return results


def step(model: nn.Module, first: Tensor, second: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """One forward of both views, as pretraining does it; the loss and each weight's gradient."""
    projections = model(torch.cat([first, second]))
    loss = nt_xent(*projections.chunk(2), 0.2)
    loss.backward()
    return loss.detach(), {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


def collectives_of_the_loss(dtype: torch.dtype) -> dict[str, int]:
    """How often the loss alone makes the ranks talk."""
    first, second = (torch.randn(3, 4, dtype=dtype, requires_grad=True) for _ in range(2))
    counts = {}
    with Collectives() as talk:
        loss = nt_xent(first, second, 0.2)
        counts["forward"] = talk.count
        loss.backward()
        counts["backward"] = talk.count - counts["forward"]
    return counts


def network(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    trunk = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    head = [nn.Linear(32, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8)]
    return nn.Sequential(*trunk, *head).to(dtype)


def asymmetric_images(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Two views of 8 images that get brighter and noisier from one rank to the next."""
    generator = torch.Generator().manual_seed(1)
    image = torch.linspace(0.1, 4, 8).view(8, 1, 1, 1)
    first, second = (image + image * torch.randn(8, 3, 6, 6, generator=generator) for _ in range(2))
    return first.to(dtype), second.to(dtype)


def views(n: int, d: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 * n + d)
    first = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return first, first + torch.randn(n, d, generator=generator, dtype=torch.float64)


def paper(first: Tensor, second: Tensor, temperature: float) -> float:
    """Equation 1 and algorithm 1 of Chen et al. 2020, one number at a time; views 2k-1 and 2k are of image k."""
    z = [row.tolist() for pair in zip(first, second, strict=True) for row in pair]

    def similarity(i: int, j: int) -> float:
        dot = sum(a * b for a, b in zip(z[i], z[j], strict=True))
        return dot / (math.hypot(*z[i]) * math.hypot(*z[j]))

    def loss(i: int, j: int) -> float:
        terms = [similarity(i, k) / temperature for k in range(len(z)) if k != i]
        largest = max(terms)
        total = largest + math.log(sum(math.exp(term - largest) for term in terms))
        return total - similarity(i, j) / temperature

    return sum(loss(2 * k, 2 * k + 1) + loss(2 * k + 1, 2 * k) for k in range(len(first))) / len(z)


class LargestTensor(TorchDispatchMode):
    """Watches every operation and remembers the largest result, in elements."""

    numel = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.numel = max(self.numel, result.numel())
        return result


class Collectives(TorchDispatchMode):
    """Counts the operations in which ranks talk to each other."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function.namespace == "c10d"
        return function(*args, **(kwargs or {}))
