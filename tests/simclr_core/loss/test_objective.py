"""The in-batch objective: gradient caching gives the gradient of the whole batch, and leaves no other trace."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from simclr_core.config import PretrainConfig
from simclr_core.errors import BatchSizeError, ConfigError
from simclr_core.launch import Member
from simclr_core.loss.nt_xent import LOSSES, nt_xent
from simclr_core.loss.objective import InBatch, Outcome, chance_loss
from simclr_core.model.batch_norm import synchronize
from simclr_core.model.encoder import Encoder
from simclr_core.params import read_block
from simclr_core.pretraining import pretrain
from simclr_core.pretraining.precision import LossScaler
from simclr_core.torch_calls import data_parallel
from tests.simclr_core.conftest import configure, interrupt

pytestmark = pytest.mark.usefixtures("pictures_by_digest")

torch.set_num_threads(1)

CPU = torch.device("cpu")


def norm_free(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    trunk = [nn.Conv2d(3, 8, 3, stride=2), nn.GELU(), nn.GroupNorm(2, 8), nn.Flatten()]
    return nn.Sequential(*trunk, nn.Linear(72, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 8)).to(dtype)


def with_batch_norm(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    trunk = [nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*trunk, nn.Linear(72, 8), nn.BatchNorm1d(8)).to(dtype)


def images(count: int, views: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    """Views of images that get brighter and noisier from one to the next: all first views, all second ones, ..."""
    generator = torch.Generator().manual_seed(count)
    image = torch.linspace(0.1, 4, count).view(count, 1, 1, 1)
    return torch.cat([image + image * torch.randn(count, 3, 8, 8, generator=generator) for _ in range(views)]).to(dtype)


def share(views: Tensor, rank: int, world: int, groups: int = 2) -> Tensor:
    return torch.cat([group.chunk(world)[rank] for group in views.chunk(groups)])


def gradients(model: nn.Module) -> dict[str, Tensor]:
    named = {name.removeprefix("module."): weight.grad for name, weight in model.named_parameters()}
    return {name: gradient.clone() for name, gradient in named.items() if gradient is not None}


def assert_equal(mine: Outcome, theirs: Outcome, rtol: float) -> None:
    for part in ("loss", "first", "second"):
        torch.testing.assert_close(getattr(mine, part), getattr(theirs, part), rtol=rtol, atol=rtol)


@pytest.mark.parametrize("groups", [None, [0, 1, 0, 2, 3, 1, 0, 4, 4, 5]], ids=["images", "groups"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("micro_batch_size", [1, 3, 4, 10, 11])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-11), (torch.float32, 2e-5)])
def test_micro_batches_give_the_gradient_of_the_whole_batch(
    loss: str, micro_batch_size: int, dtype: torch.dtype, rtol: float, groups: list[int] | None
) -> None:
    whole, parts, views = norm_free(dtype), norm_free(dtype), images(10, dtype=dtype)
    given = None if groups is None else torch.tensor(groups)
    expected = InBatch(LOSSES[loss], 0.2, torch.float32).backward(whole, views, given)
    outcome = InBatch(LOSSES[loss], 0.2, torch.float32, micro_batch_size).backward(parts, views, given)
    first, second = norm_free(dtype)(views).chunk(2)
    torch.testing.assert_close(
        expected.loss, LOSSES[loss](first, second, 0.2, groups=given).detach(), rtol=rtol, atol=0
    )
    assert_equal(outcome, expected, rtol)
    torch.testing.assert_close(gradients(parts), gradients(whole), rtol=rtol, atol=rtol)


def test_the_network_never_processes_more_than_a_micro_batch() -> None:
    seen: list[tuple[int, bool]] = []
    model = norm_free()
    model.register_forward_hook(lambda _, inputs, __: seen.append((len(inputs[0]), torch.is_grad_enabled())))
    InBatch(nt_xent, 0.2, torch.float32, 4).backward(model, images(10))
    assert seen == [(rows, grad) for grad in (False, True) for rows in (8, 6, 6)]


def test_batch_norm_takes_the_statistics_of_a_micro_batch_and_remembers_each_once() -> None:
    """Against a reference that keeps the graphs of all micro-batches, and one pass over them."""
    model, reference = with_batch_norm(), with_batch_norm()
    InBatch(nt_xent, 0.2, torch.float32, 2).backward(model, images(6))
    projections = [reference(share(images(6), part, 3)) for part in range(3)]
    first, second = (torch.cat([z.chunk(2)[view] for z in projections]) for view in (0, 1))
    nt_xent(first, second, 0.2).backward()
    torch.testing.assert_close(gradients(model), gradients(reference), rtol=1e-10, atol=1e-10)
    for name, buffer in reference.named_buffers():
        assert torch.equal(model.get_buffer(name), buffer), name


def test_a_network_that_draws_draws_the_same_in_both_passes() -> None:
    """The gradient is that of the projections that the loss saw: here of the masks of the first pass."""

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(192, 8).double()
            self.masks: list[Tensor] = []

        def forward(self, x: Tensor) -> Tensor:
            self.masks.append(torch.rand(len(x), 8) > 0.5)
            return self.linear(x.flatten(1)) * self.masks[-1]

    model = Masked()
    torch.manual_seed(5)
    InBatch(nt_xent, 0.2, torch.float32, 2).backward(model, images(6))
    assert all(map(torch.equal, model.masks[:3], model.masks[3:]))
    assert not torch.equal(model.masks[0], model.masks[1])
    again = Masked()
    torch.manual_seed(5)
    InBatch(nt_xent, 0.2, torch.float32, 2).backward(again, images(6))
    assert all(map(torch.equal, model.masks, again.masks))


@pytest.mark.parametrize("micro_batch_size", [None, 2])
def test_extra_crops_are_pairs_of_both_views(micro_batch_size: int | None) -> None:
    views, model, reference = images(5, 4), norm_free(), norm_free()
    outcome = InBatch(nt_xent, 0.2, torch.float32, micro_batch_size, extra_crops=2).backward(model, views)
    a, b, c, d = reference(views).chunk(4)
    expected = sum(nt_xent(*pair, 0.2) for pair in ((a, b), (a, c), (b, c), (a, d), (b, d))) / 5
    expected.backward()
    torch.testing.assert_close(outcome.loss, expected.detach())
    torch.testing.assert_close(outcome.second, b.detach())
    torch.testing.assert_close(gradients(model), gradients(reference))


@pytest.mark.parametrize("micro_batch_size", [None, 2])
def test_extra_crops_of_another_size_are_seen_at_it(micro_batch_size: int | None) -> None:
    pair, extras = images(5), images(5)[..., :6, :6]
    model, reference = of_any_side(), of_any_side()
    sides: list[int] = []
    model[0].backbone[0].register_forward_hook(lambda _, inputs, __: sides.append(inputs[0].shape[-1]))
    outcome = InBatch(nt_xent, 0.2, torch.float32, micro_batch_size, extra_crops=2).backward(model, (pair, extras))
    (a, b), (c, d) = reference(pair).chunk(2), reference(extras).chunk(2)
    expected = sum(nt_xent(*pair, 0.2) for pair in ((a, b), (a, c), (b, c), (a, d), (b, d))) / 5
    expected.backward()
    torch.testing.assert_close(outcome.loss, expected.detach())
    torch.testing.assert_close(outcome.second, b.detach())
    torch.testing.assert_close(gradients(model), gradients(reference))
    assert sides == [8, 6] * (6 if micro_batch_size else 1)


def of_any_side() -> nn.Sequential:
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.GELU(), nn.AdaptiveAvgPool2d(1))
    return nn.Sequential(Encoder(trunk, 8), nn.Linear(8, 8)).double()


def test_bfloat16_computes_the_network_alone_in_bfloat16() -> None:
    model = norm_free(torch.float32)
    seen: list[torch.dtype] = []
    model[-1].register_forward_hook(lambda _, __, output: seen.append(output.dtype))
    outcome = InBatch(nt_xent, 0.2, torch.bfloat16, 2).backward(model, images(4, dtype=torch.float32))
    assert set(seen) == {torch.bfloat16}
    assert outcome.loss.dtype == torch.float32
    assert all(gradient.dtype == torch.float32 for gradient in gradients(model).values())


def test_channels_last_survives_the_parts() -> None:
    layouts: list[bool] = []
    model = norm_free(torch.float32)
    model.register_forward_pre_hook(
        lambda _, inputs: layouts.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
    )
    views = images(6, dtype=torch.float32).contiguous(memory_format=torch.channels_last)
    InBatch(nt_xent, 0.2, torch.float32, 2).backward(model, views)
    assert layouts == [True] * 6


def test_chance_is_the_loss_of_a_collapsed_network() -> None:
    alike = torch.ones(8, 3)
    for name, loss in LOSSES.items():
        assert chance_loss(name, 8, None) == pytest.approx(loss(alike, alike, 0.5).item(), rel=1e-6)
    assert chance_loss("info_nce", 8, 99) == pytest.approx(math.log(100))


@pytest.mark.slow
def test_two_ranks_with_micro_batches_equal_one_whole_batch(on_ranks: Callable[..., list[Any]]) -> None:
    """And with BatchNorm one process whose micro-batches hold the same images as those of the two together."""
    whole, normed = norm_free(), with_batch_norm()
    outcome = InBatch(nt_xent, 0.2, torch.float32).backward(whole, images(8))
    InBatch(nt_xent, 0.2, torch.float32, 4).backward(normed, paired(images(8)))
    for one in on_ranks(2, micro_batches_of_a_rank):
        torch.testing.assert_close(one["loss"], outcome.loss, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(one["norm free"], gradients(whole), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(one["batch norm"], gradients(normed), rtol=1e-9, atol=1e-9)
        for name, buffer in normed.named_buffers():
            torch.testing.assert_close(one["buffers"][name], buffer, rtol=1e-10, atol=1e-10)
        assert one["synchronizations"] == [0, 0]  # the only bucket, once as it is and once compiled


def paired(views: Tensor) -> Tensor:
    """The 8 images in the order in which two ranks with two micro-batches of two see them: 0 1 4 5, then 2 3 6 7."""
    return torch.cat([group[[0, 1, 4, 5, 2, 3, 6, 7]] for group in views.chunk(2)])


def micro_batches_of_a_rank(rank: int) -> dict[str, Any]:
    views = share(images(8), rank, 2)
    free = data_parallel(norm_free())
    synchronizations: list[int] = []

    def counted(_: object, bucket: torch.distributed.GradBucket) -> torch.futures.Future[Tensor]:
        synchronizations.append(bucket.index())
        return allreduce_hook(None, bucket)

    free.register_comm_hook(None, counted)
    outcome = InBatch(nt_xent, 0.2, torch.float32, 2).backward(free, views)
    eager = gradients(free)
    free.zero_grad()
    InBatch(nt_xent, 0.2, torch.float32, 2).backward(torch.compile(free, backend="eager"), views)
    torch.testing.assert_close(gradients(free), eager)
    normed = synchronize(with_batch_norm())
    model = data_parallel(normed)
    InBatch(nt_xent, 0.2, torch.float32, 2).backward(model, views)
    return {
        "loss": outcome.loss,
        "norm free": eager,
        "batch norm": gradients(model),
        "buffers": dict(normed.named_buffers()),
        "synchronizations": synchronizations,
    }


def trained(workspace: Path) -> bytes:
    return (workspace / "models" / "pretrained" / "encoder.safetensors").read_bytes()


@pytest.mark.seconds
@pytest.mark.parametrize("loss", ["dcl", "info_nce"])
def test_pretraining_with_another_loss(prepared: Path, loss: str) -> None:
    configure(prepared, loss=loss, epochs=1)
    pretrain.run(prepared)
    metrics = json.loads((prepared / "reports" / "pretrain.json").read_text())
    assert metrics["loss_chance"] == pytest.approx(math.log({"dcl": 30, "info_nce": 16}[loss]), abs=1e-6)
    assert metrics["loss_last"] < metrics["loss_chance"] + 0.5


@pytest.mark.seconds
def test_a_pretraining_in_micro_batches_continues_to_the_same_bytes(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(prepared, micro_batch_size=6, epochs=1)  # 16 images in parts of 6, 5 and 5
    pretrain.run(prepared)
    undisturbed = trained(prepared)
    interrupt(prepared, monkeypatch, "pretrain.step:raise@4")
    pretrain.run(prepared)
    assert trained(prepared) == undisturbed


@pytest.mark.seconds
@pytest.mark.parametrize("changes", [{}, {"loss": "info_nce", "queue": {"size": 40, "momentum": 0.9}}])
def test_a_pretraining_with_small_extra_crops_continues_to_the_same_bytes(
    prepared: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object]
) -> None:
    configure(prepared, augmentation={"extra_crops": 2, "extra_crop_size": 8}, epochs=1, **changes)
    pretrain.run(prepared)
    undisturbed = trained(prepared)
    interrupt(prepared, monkeypatch, "pretrain.step:raise@4")
    pretrain.run(prepared)
    assert trained(prepared) == undisturbed


@pytest.mark.seconds
def test_a_micro_batch_of_the_whole_share_is_not_a_micro_batch(prepared: Path) -> None:
    configure(prepared, epochs=1)
    pretrain.run(prepared)
    whole = trained(prepared)
    configure(prepared, micro_batch_size=16)
    pretrain.run(prepared)
    assert trained(prepared) == whole


def test_a_micro_batch_larger_than_the_share_is_explained(prepared: Path) -> None:
    configure(prepared, micro_batch_size=17)
    with pytest.raises(ConfigError, match=r"micro_batch_size up to batch_size \(16\), not 17"):
        pretrain.run(prepared)
    configure(prepared, micro_batch_size=9)
    config = read_block(prepared / "params.yaml", "pretrain", PretrainConfig)
    message = "micro_batch_size is 9, but each of 2 processes has 8 of the 16 images of a batch; give at most 8"
    with pytest.raises(BatchSizeError, match=message):
        pretrain.choose_objective(
            config, nn.Sequential(), LossScaler(torch.float32, CPU), torch.float32, Member(0, 2, CPU)
        )
