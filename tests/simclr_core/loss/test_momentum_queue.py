"""The queue of earlier keys: its loss is MoCo's formula, its copy lags as it should, interruptions cost it nothing."""

import json
import math
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from simclr_core.errors import ConfigError, NtXentError
from simclr_core.loss.momentum_queue import MomentumQueue, random_directions
from simclr_core.model.batch_norm import synchronize
from simclr_core.model.encoder import Encoder
from simclr_core.pretraining import pretrain
from simclr_core.torch_calls import data_parallel
from tests.simclr_core.conftest import configure, interrupt

pytestmark = pytest.mark.usefixtures("pictures_by_digest")

torch.set_num_threads(1)

DIM, SIZE = 4, 10


def network(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, DIM)).to(dtype)


def queue_of(model: nn.Module, momentum: float = 0.9, size: int = SIZE, extra_crops: int = 0) -> MomentumQueue:
    return MomentumQueue(model, random_directions(3, size, DIM), momentum, 0.2, torch.float32, extra_crops)


def views(step: int, count: int = 4, groups: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    image = torch.randn(count, 3, 2, 2, generator=generator, dtype=torch.float64)
    noise = (torch.randn(count, 3, 2, 2, generator=generator, dtype=torch.float64) for _ in range(groups))
    return torch.cat([image + 0.5 * one for one in noise])


def stepped(model: nn.Module, queue: MomentumQueue, batch: Tensor, groups: Tensor | None = None) -> float:
    """A step of gradient descent."""
    model.zero_grad()
    loss = queue.backward(model, batch, groups).loss.item()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.grad is not None:
                weight -= 0.1 * weight.grad
    queue.update()
    return loss


def unit(row: list[float]) -> list[float]:
    return [value / math.hypot(*row) for value in row]


def moco(queries: Tensor, keys: Tensor, queue: Tensor, temperature: float, apart: Tensor | None = None) -> float:
    """Equation 1 of He et al. 2020, one number at a time; ``apart`` bool [queries, queue] are the negatives."""
    apart = torch.ones(len(queries), len(queue), dtype=torch.bool) if apart is None else apart

    def similarity(one: list[float], other: list[float]) -> float:
        return sum(a * b for a, b in zip(unit(one), unit(other), strict=True)) / temperature

    losses = []
    for query, key, negative in zip(queries.tolist(), keys.tolist(), apart, strict=True):
        among = [similarity(query, key), *(similarity(query, old) for old in queue[negative].tolist())]
        losses.append(-math.log(math.exp(among[0]) / sum(map(math.exp, among))))
    return sum(losses) / len(losses)


def test_three_steps_follow_the_paper() -> None:
    """Loss, queue and momentum encoder against a loop that does what the paper's pseudocode says."""
    model = network()
    queue = queue_of(model)
    keys_network, old = network().eval(), random_directions(3, SIZE, DIM)
    place = 0
    for step in range(3):
        first, second = views(step).chunk(2)
        with torch.no_grad():
            keys = keys_network(second)
            probe = network()
            probe.load_state_dict(model.state_dict())
            expected = moco(probe(first), keys, old, 0.2)
        assert stepped(model, queue, views(step)) == pytest.approx(expected, rel=1e-10)
        pace = max(1 - 0.9, 9 / (10 + step))
        with torch.no_grad():
            for name, slow in keys_network.state_dict().items():
                fast = model.state_dict()[name]
                slow.copy_(slow + pace * (fast - slow) if slow.is_floating_point() else fast)
        for key in keys:
            old[place] = torch.tensor(unit(key.tolist()), dtype=torch.float64)
            place = (place + 1) % SIZE
        torch.testing.assert_close(queue.tensors()["queue"], old)
    for name, slow in keys_network.state_dict().items():
        torch.testing.assert_close(queue.tensors()[f"copy.{name}"], slow)
    assert queue.tensors()["updates"] == 3


@pytest.mark.parametrize("normed", [True, False])
def test_the_copy_follows_to_the_bit_as_tensor_by_tensor(normed: bool) -> None:
    model = network(torch.float32)
    if not normed:  # then nothing counts batches
        model[2] = nn.LayerNorm(8)
    queue, by_tensor = queue_of(model), deepcopy(model)
    for step in range(3):
        stepped(model, queue, views(step).float())
        pace = max(1 - 0.9, 9 / (10 + step))
        with torch.no_grad():
            for slow, fast in zip(by_tensor.state_dict().values(), model.state_dict().values(), strict=True):
                slow.lerp_(fast, pace) if slow.is_floating_point() else slow.copy_(fast)
    copied = queue._copy.state_dict()
    assert all(torch.equal(copied[name], slow) for name, slow in by_tensor.state_dict().items())


def groups_of(step: int) -> Tensor:
    return torch.tensor([[0, 1, 0, -4], [1, -9, 2, 0], [2, 2, 0, -4], [1, 0, -9, 3]][step])


def test_keys_of_the_group_that_asks_are_left_out() -> None:
    """Over four steps of 4 in a queue of 10, which is filled more than once."""
    model = network()
    queue = queue_of(model)
    queued = torch.full((SIZE,), -100)
    for step in range(4):
        first, second = views(step).chunk(2)
        keys = queue._copy(second).detach()
        probe = network()
        probe.load_state_dict(model.state_dict())
        apart = groups_of(step)[:, None] != queued
        expected = moco(probe(first).detach(), keys, queue.tensors()["queue"].clone(), 0.2, apart)
        assert step == 0 or not apart.all()
        assert stepped(model, queue, views(step), groups_of(step)) == pytest.approx(expected, rel=1e-10)
        queued[torch.arange(4 * step, 4 * step + 4) % SIZE] = groups_of(step)


def test_a_restored_queue_knows_the_groups_of_its_keys() -> None:
    model = network(torch.float32)
    queue = queue_of(model)
    for step in range(2):
        stepped(model, queue, views(step).float(), groups_of(step))
    later = network(torch.float32)
    later.load_state_dict(model.state_dict())
    restored = queue_of(later)
    restored.restore({name: tensor.clone() for name, tensor in queue.tensors().items()})
    for step in range(2, 4):
        whole = stepped(model, queue, views(step).float(), groups_of(step))
        assert whole == stepped(later, restored, views(step).float(), groups_of(step))


def test_the_gradient_is_that_of_the_loss_and_flows_only_through_queries() -> None:
    model = network()
    queue = queue_of(model)
    weight = model[1].weight
    queue.backward(model, views(0))
    gradient = weight.grad.clone()
    for place in ((0, 0), (3, 7), (7, 11)):
        losses = []
        for shift in (1e-6, -1e-6):
            with torch.no_grad():
                weight[place] += shift
            losses.append(queue.backward(model, views(0)).loss.item())
            with torch.no_grad():
                weight[place] -= shift
        assert (losses[0] - losses[1]) / 2e-6 == pytest.approx(gradient[place].item(), rel=1e-5, abs=1e-8)
    assert all(parameter.grad is None for parameter in queue._copy.parameters())


def test_a_backward_pass_without_a_step_leaves_queue_and_copy_unchanged() -> None:
    model = network()
    queue = queue_of(model)
    before = {name: tensor.clone() for name, tensor in queue.tensors().items()}
    queue.backward(model, views(0))
    assert all(torch.equal(tensor, before[name]) for name, tensor in queue.tensors().items())


def test_extra_crops_are_queries_too() -> None:
    model, reference = network(), network()
    batch = views(0, groups=4)
    outcome = queue_of(model, extra_crops=2).backward(model, batch)
    first, second, *extras = batch.chunk(4)
    queries = reference(torch.cat([first, *extras])).chunk(3)
    keys, old = network().eval()(second), random_directions(3, SIZE, DIM)
    expected = sum(moco(asking, keys, old, 0.2) for asking in queries) / 3
    assert outcome.loss.item() == pytest.approx(expected, rel=1e-10)
    torch.testing.assert_close(outcome.first, queries[0].detach())


def test_extra_crops_of_another_size_are_queries_too() -> None:
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Conv2d(3, 8, 1), nn.GELU(), nn.AdaptiveAvgPool2d(1))
    model = nn.Sequential(Encoder(trunk, 8), nn.Linear(8, DIM)).double()
    batch = views(0, groups=4)
    first, second, *extras = batch.chunk(4)
    smaller = torch.cat(extras)[..., :1]
    outcome = queue_of(model, extra_crops=2).backward(model, (torch.cat([first, second]), smaller))
    keys, old = model(second).detach(), random_directions(3, SIZE, DIM)
    asking = [model(first), *model(smaller).chunk(2)]
    assert outcome.loss.item() == pytest.approx(sum(moco(one, keys, old, 0.2) for one in asking) / 3, rel=1e-10)


def test_the_first_queue_is_random_directions_of_the_seed() -> None:
    rows = random_directions(3, 4000, DIM)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(4000, dtype=torch.float64))
    assert rows.mean(dim=0).abs().max() < 0.05
    assert (rows.T @ rows / 4000 - torch.eye(DIM) / DIM).abs().max() < 0.02
    assert torch.equal(rows[:7], random_directions(3, 7, DIM))
    assert not torch.equal(rows[:7], random_directions(4, 7, DIM))


def test_a_restored_queue_continues_bit_for_bit() -> None:
    model = network(torch.float32)
    queue = queue_of(model)
    for step in range(2):
        stepped(model, queue, views(step).float())
    later = network(torch.float32)
    later.load_state_dict(model.state_dict())
    restored = queue_of(later)
    restored.restore({name: tensor.clone() for name, tensor in queue.tensors().items()})
    for step in range(2, 5):
        assert stepped(model, queue, views(step).float()) == stepped(later, restored, views(step).float())
    assert all(torch.equal(tensor, restored.tensors()[name]) for name, tensor in queue.tensors().items())


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_that_cannot_divide_is_refused(temperature: float) -> None:
    with pytest.raises(NtXentError, match="give a finite number of at least"):
        MomentumQueue(network(), random_directions(0, SIZE, DIM), 0.9, temperature, torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("grouped", [False, True], ids=["images", "groups"])
def test_two_ranks_equal_one(grouped: bool, on_ranks: Callable[..., list[Any]]) -> None:
    whole = three_steps(0, 1, grouped)
    for share in on_ranks(2, three_steps, 2, grouped):
        assert share.keys() == whole.keys()
        for name, expected in whole.items():
            torch.testing.assert_close(share[name], expected, rtol=1e-9, atol=1e-9, msg=name)


def three_steps(rank: int, world: int, grouped: bool) -> dict[str, Tensor]:
    model = network()
    queue = queue_of(model)
    model = synchronize(model)
    distributed = model if world == 1 else data_parallel(model)
    losses = []
    for step in range(3):
        own = torch.cat([group.chunk(world)[rank] for group in views(step).chunk(2)])
        losses.append(stepped(distributed, queue, own, groups_of(step) if grouped else None))
    return {"losses": torch.tensor(losses), **model.state_dict(), **queue.tensors()}


def trained(workspace: Path) -> bytes:
    return (workspace / "models" / "pretrained" / "encoder.safetensors").read_bytes()


@pytest.mark.seconds
def test_a_pretraining_with_a_queue_continues_to_the_same_bytes(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(prepared, loss="info_nce", queue={"size": 40, "momentum": 0.9}, epochs=1)  # 40 is not a multiple of 16
    pretrain.run(prepared)
    undisturbed = trained(prepared)
    metrics = json.loads((prepared / "reports" / "pretrain.json").read_text())
    assert metrics["loss_chance"] == pytest.approx(math.log(41), abs=1e-6)
    interrupt(prepared, monkeypatch, "pretrain.step:raise@6")
    (saved,) = (prepared / ".simclr" / "runs").glob("*/step-00000004/objective.safetensors")
    assert load_file(saved)["updates"] == 4
    pretrain.run(prepared)
    assert trained(prepared) == undisturbed


@pytest.mark.slow
def test_a_pretraining_with_a_queue_learns(prepared: Path) -> None:
    """Neighbors come to share a class, which by chance one of four does."""
    augmentation = {"crop_scale": [0.6, 1.0], "jitter_strength": 0.5, "blur": 0.0}
    queue = {"size": 64, "momentum": 0.9}
    changes = {"loss": "info_nce", "queue": queue, "temperature": 0.2, "epochs": 25, "augmentation": augmentation}
    configure(prepared, **changes)
    pretrain.run(prepared)
    metrics = json.loads((prepared / "reports" / "pretrain.json").read_text())
    assert metrics["loss_last"] < min(metrics["loss_first"] - 1, metrics["loss_chance"])
    assert metrics["knn_top1"] > 60


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"queue": {"size": 8}, "loss": "info_nce"}, r"queue.size of at least batch_size \(16\), not 8"),
        ({"queue": {"size": 64}}, "loss: info_nce, the only one with a queue, not nt_xent, or queue: null"),
        ({"queue": {}, "loss": "info_nce", "micro_batch_size": 4}, "micro_batch_size: null with a queue"),
        ({"queue": {"momentum": 1.0}, "loss": "info_nce"}, r"queue.momentum: given 1.0, allowed: less than 1"),
        ({"queue": {"sizes": 64}, "loss": "info_nce"}, r"queue.sizes: unknown key; did you mean size\?"),
        ({"loss": "moco"}, "loss: given 'moco', allowed: 'nt_xent', 'dcl' or 'info_nce'"),
    ],
)
def test_nonsensical_parameters_are_refused_with_the_reason(
    prepared: Path, changes: dict[str, object], message: str
) -> None:
    configure(prepared, **changes)
    with pytest.raises(ConfigError, match=message):
        pretrain.run(prepared)
