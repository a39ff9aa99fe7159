"""NT-Xent and its kin: the value is the paper's formula, the gradient that of one process on the whole batch, the
memory N x d, and what ranks tell each other a third of what they would with a gather that has a backward pass."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

import simclr_core.loss.nt_xent as module
from benchmarks.simclr_core.loss_bytes import Collectives
from simclr_core.errors import NtXentError
from simclr_core.loss.nt_xent import LOSSES, decoupled, nt_xent
from simclr_core.model.batch_norm import synchronize

torch.set_num_threads(1)

CLOSE = {torch.float32: 1e-5, torch.float64: 1e-12}


@pytest.mark.parametrize("temperature", [0.003, 0.01, 0.1, 0.5, 3.0])
@pytest.mark.parametrize("d", [1, 2, 16])
@pytest.mark.parametrize("n", [1, 2, 3, 7])
@pytest.mark.parametrize("name", LOSSES)
def test_equals_the_formula_of_the_paper(name: str, n: int, d: int, temperature: float) -> None:
    if (name, n) == ("dcl", 1):
        return  # no negatives: refused, see below
    first, second = views(n, d)
    loss = LOSSES[name](first, second, temperature)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(paper(first, second, temperature, name), rel=1e-10, abs=1e-10)


GROUPS = [3, 0, 0, -4, 3, -6, 0]


@pytest.mark.seconds
@pytest.mark.parametrize("temperature", [0.01, 0.5])
@pytest.mark.parametrize("tile", [1, 2, 3, 5, 64])
@pytest.mark.parametrize("name", LOSSES)
def test_images_of_a_group_are_left_out(
    name: str, tile: int, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TILE", tile)
    first, second = (view.requires_grad_() for view in views(7, 4))
    groups = torch.tensor(GROUPS)
    loss = LOSSES[name](first, second, temperature, groups=groups)
    assert loss.item() == pytest.approx(paper(first, second, temperature, name, GROUPS), rel=1e-10)
    assert torch.autograd.gradcheck(lambda a, b: LOSSES[name](a, b, temperature, groups=groups), (first, second))


@pytest.mark.parametrize("name", LOSSES)
def test_groups_of_one_image_change_no_digit(name: str) -> None:
    first, second = (view.float().requires_grad_() for view in views(7, 4))
    loss, grouped = (LOSSES[name](first, second, 0.1, groups=one) for one in (None, torch.arange(7)))
    assert torch.equal(loss, grouped)
    pulls = [torch.autograd.grad(one, (first, second)) for one in (loss, grouped)]
    assert all(map(torch.equal, *pulls))


def test_a_batch_of_one_group_has_no_negatives() -> None:
    first, second = views(3, 2)
    alike = torch.zeros(3, dtype=torch.long)
    for name in ("nt_xent", "info_nce"):
        assert LOSSES[name](first, second, 0.5, groups=alike).item() == pytest.approx(0, abs=1e-12)
    with pytest.raises(NtXentError, match="images of one group alone have no negatives"):
        decoupled(first, second, 0.5, groups=alike)
    with pytest.raises(NtXentError, match=r"groups has shape \[2\], but the ranks hold 3 images"):
        nt_xent(first, second, 0.5, groups=alike[:2])


@pytest.mark.parametrize("tile", [1, 2, 3, 5, 64])
@pytest.mark.parametrize("name", LOSSES)
def test_tiles_change_nothing(name: str, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (view.requires_grad_() for view in views(5, 4))
    whole = LOSSES[name](first, second, 0.2)
    gradients = torch.autograd.grad(whole, (first, second))
    monkeypatch.setattr(module, "TILE", tile)
    tiled = LOSSES[name](first, second, 0.2)
    torch.testing.assert_close(tiled, whole)
    torch.testing.assert_close(torch.autograd.grad(tiled, (first, second)), gradients)


@pytest.mark.parametrize(("n", "temperature"), [(2, 0.1), (4, 0.5), (4, 0.05)])
@pytest.mark.parametrize("name", LOSSES)
def test_gradient_is_that_of_the_loss(name: str, n: int, temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TILE", 3)
    first, second = (view.requires_grad_() for view in views(n, 3))
    assert torch.autograd.gradcheck(lambda a, b: LOSSES[name](a, b, temperature), (first, second))


def test_gradient_with_a_single_image() -> None:
    first, second = (view.requires_grad_() for view in views(1, 3))
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, 0.5), (first, second))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-3, 1e4])
@pytest.mark.parametrize("name", LOSSES)
def test_finite_and_exact_at_the_lowest_temperature(name: str, dtype: torch.dtype, scale: float) -> None:
    """At 0.01 a similarity spans 200 nats: exp overflows float32 without a shift and underflows with a constant one."""
    first, second = (scale * view for view in views(6, 2))
    second[0] = -first[0]
    single = [view.to(dtype).requires_grad_() for view in (first, second)]
    loss = LOSSES[name](single[0], single[1], 0.01)
    assert loss.item() == pytest.approx(paper(first, second, 0.01, name), rel=1e-5)
    for gradient in torch.autograd.grad(loss, single):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lowest_similarity_at_the_lowest_temperature(dtype: torch.dtype) -> None:
    """Every other row is opposite: exp(-200) relative to the largest similarity there could be."""
    first = torch.tensor([[1.0, 0.0]], dtype=dtype, requires_grad=True)
    loss = nt_xent(first, -first.detach(), 0.01)
    assert loss.item() == pytest.approx(0, abs=1e-4)
    assert torch.autograd.grad(loss, first)[0].isfinite().all()


def test_the_loss_is_zero_for_separated_images_and_log_of_chance_for_collapsed_ones() -> None:
    aligned = torch.eye(4)
    assert nt_xent(aligned, aligned, 0.01).item() == pytest.approx(0, abs=1e-6)
    collapsed = torch.ones(4, 3)
    assert nt_xent(collapsed, collapsed, 0.5).item() == pytest.approx(math.log(2 * 4 - 1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", LOSSES)
def test_float32_under_autocast_forward_and_backward(name: str, dtype: torch.dtype) -> None:
    first, second = (view.float().requires_grad_() for view in views(8, 16))
    expected = LOSSES[name](first, second, 0.05)
    gradients = torch.autograd.grad(expected, (first, second))
    with torch.autocast("cpu", dtype):
        loss = LOSSES[name](first, second, 0.05)
        assert loss.dtype == torch.float32
        assert torch.equal(loss, expected)
        assert all(map(torch.equal, torch.autograd.grad(loss, (first, second)), gradients))
    low = LOSSES[name](first.to(dtype), second.to(dtype), 0.05)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, expected, rtol=0.05, atol=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("name", LOSSES)
def test_a_compiled_step_is_the_step(name: str, backend: str) -> None:
    first, second = asymmetric_images(torch.float32)
    model = network(torch.float32)
    expected, gradients = step(model, first, second, LOSSES[name])
    model.zero_grad()
    compiled = torch.compile(lambda images: LOSSES[name](*model(images).chunk(2), 0.2), backend=backend)
    loss = compiled(torch.cat([first, second]))
    loss.backward()
    torch.testing.assert_close(loss.detach(), expected)
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.grad, gradients[name])


@pytest.mark.parametrize("temperature", [0, -0.1, 0.0029, math.nan, math.inf])
def test_temperature_must_be_positive(temperature: float) -> None:
    with pytest.raises(NtXentError, match=f"temperature is {temperature}; give a finite number of at least 0.003"):
        nt_xent(*views(2, 2), temperature)


@pytest.mark.parametrize(("first", "second"), [((3, 4), (2, 4)), ((3, 4), (3, 5)), ((0, 4), (0, 4)), ((4,), (4,))])
def test_the_two_views_must_match(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    with pytest.raises(NtXentError, match=r"have shapes .* give both as \[n, d\]"):
        nt_xent(torch.ones(first), torch.ones(second), 0.5)


def test_one_image_has_no_negatives() -> None:
    with pytest.raises(NtXentError, match="one image alone has no negatives; give the decoupled loss a batch of two"):
        decoupled(*views(1, 2), 0.5)


@pytest.mark.parametrize("counts", [[2], [3, 3], []])
def test_counts_must_be_those_of_the_ranks(counts: list[int]) -> None:
    with pytest.raises(NtXentError, match=r"counts is .*, but there are 1 ranks, and this one, rank 0, holds 3 images"):
        nt_xent(*views(3, 2), 0.5, counts)
    assert torch.equal(nt_xent(*views(3, 2), 0.5, [3]), nt_xent(*views(3, 2), 0.5))


@pytest.mark.parametrize("name", LOSSES)
def test_memory_grows_with_the_rows_and_not_with_their_square(name: str) -> None:
    """Largest tensor ever made, and all that is kept for the backward pass, in elements."""
    n, d = 2048, 32
    first, second = (torch.randn(n, d, requires_grad=True) for _ in range(2))
    kept: list[int] = []
    with LargestTensor() as largest, saved_tensors_hooks(lambda t: (kept.append(t.numel()), t)[1], lambda t: t):
        LOSSES[name](first, second, 0.5).backward()
    assert largest.numel <= (2 * n) ** 2 / 30
    assert sum(kept) <= 5 * (2 * n * d)  # all N x N similarities would be 128 times N x d


@pytest.mark.seconds
@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_ranks_on_their_shares_equal_one_process_on_the_whole_batch(
    world: int, on_ranks: Callable[..., list[Any]]
) -> None:
    """Loss and weight gradients under DistributedDataParallel with BatchNorm in the network, on asymmetric data, in
    shares that are even, and in shares that are not."""
    ranks = on_ranks(world, train_steps, world)
    for case in CASES:
        name, dtype, _, groups = case
        one_process = partial(LOSSES[name], groups=None if groups is None else torch.tensor(groups))
        loss, gradients = step(network(dtype), *asymmetric_images(dtype), one_process)
        for results in ranks:
            assert results[case]["collectives"] == {"forward": 2, "backward": 0}
            torch.testing.assert_close(results[case]["loss"], loss, rtol=CLOSE[dtype], atol=CLOSE[dtype])
            for weight, gradient in gradients.items():
                mine = results[case]["gradients"][weight]
                torch.testing.assert_close(mine, gradient, rtol=CLOSE[dtype], atol=CLOSE[dtype])
    for results in ranks:
        assert results["sent"] <= 0.35 * results["a gather with gradient"]


ACROSS = (0, 1, 0, -4, 1, 0, -7, 1)  # groups with images on every rank
CASES = [
    (name, dtype, even, groups)
    for name in LOSSES
    for dtype in CLOSE
    for even in (True, False)
    for groups in (None, ACROSS)
]
UNEVEN = {2: [5, 3], 4: [3, 1, 2, 2]}  # images of each rank


def train_steps(rank: int, world: int) -> dict[Any, Any]:
    """What rank ``rank`` gets from its share of the batch."""
    results: dict[Any, Any] = {}
    for name, dtype, even, groups in CASES:
        counts = [8 // world] * world if even else UNEVEN[world]
        share = (view.split(counts)[rank] for view in asymmetric_images(dtype))
        model = DistributedDataParallel(synchronize(network(dtype)))

        given = {"counts": None if len(set(counts)) == 1 else counts}
        loss = partial(LOSSES[name], **given, groups=None if groups is None else torch.tensor(groups))
        value, gradients = step(model, *share, loss)
        own = {weight.removeprefix("module."): gradient for weight, gradient in gradients.items()}
        talk = {direction: len(sent) for direction, sent in collectives(loss, counts[rank]).items()}
        results[name, dtype, even, groups] = {"loss": value, "gradients": own, "collectives": talk}
    n, d = 16, 128
    results["sent"] = sum(size for sent in collectives(nt_xent, n, d).values() for _, size in sent)
    # What libraries do: gather the z of both views, and add up the gradients of all that was gathered.
    gathers, reductions = 2 * (world - 1) * n * d * 4, 2 * 2 * (world - 1) * n * d * 4
    results["a gather with gradient"] = gathers + reductions
    return results


def step(model: nn.Module, first: Tensor, second: Tensor, loss: Any = nt_xent) -> tuple[Tensor, dict[str, Tensor]]:
    """One forward of both views, as pretraining does it; the loss and each weight's gradient."""
    value = loss(*model(torch.cat([first, second])).chunk(2), 0.2)
    value.backward()
    return value.detach(), {
        name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None
    }


def collectives(loss: Any, n: int, d: int = 4) -> dict[str, list[tuple[str, int]]]:
    """The operations in which the loss alone makes the ranks talk, and the bytes that this one sends."""
    first, second = (torch.randn(n, d, requires_grad=True) for _ in range(2))
    with Collectives() as forward:
        value = loss(first, second, 0.2)
    with Collectives() as backward:
        value.backward()
    return {"forward": forward.sent, "backward": backward.sent}


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


def paper(
    first: Tensor, second: Tensor, temperature: float, name: str = "nt_xent", groups: list[int] | None = None
) -> float:
    """Equation 1 and algorithm 1 of Chen et al. 2020, one number at a time; views 2k and 2k + 1 are of image k. Of the
    other losses the same with fewer keys: Yeh et al. 2022, equation 6; van den Oord et al. 2018, equation 4."""
    z = [row.tolist() for pair in zip(first, second, strict=True) for row in pair]

    def similarity(i: int, j: int) -> float:
        dot = sum(a * b for a, b in zip(z[i], z[j], strict=True))
        return dot / (math.hypot(*z[i]) * math.hypot(*z[j]))

    def is_key(i: int, k: int) -> bool:
        if groups is not None and groups[i // 2] == groups[k // 2] and i // 2 != k // 2:
            return False
        return {"nt_xent": k != i, "dcl": k // 2 != i // 2, "info_nce": k % 2 != i % 2}[name]

    def loss(i: int, j: int) -> float:
        terms = [similarity(i, k) / temperature for k in range(len(z)) if is_key(i, k)]
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
