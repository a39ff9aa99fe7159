"""A training step as a GPU would see it: it never waits for what it computes now, and its kernels are few.

Views are given: how they come to be has its own tests. The counts are those of a fake GPU; nothing here is a time.
"""

import ast
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from simclr_core import lars, stopwatch
from simclr_core.config import PretrainConfig
from simclr_core.errors import NonFiniteLossError
from simclr_core.lars import LARS, parameter_groups
from simclr_core.launch import Member, StopRequest
from simclr_core.loss import nt_xent, objective
from simclr_core.loss.nt_xent import LOSSES
from simclr_core.model import batch_norm, weight_average
from simclr_core.model.batch_norm import GlobalBatchNorm, synchronize
from simclr_core.model.weight_average import WeightAverage
from simclr_core.pretraining import precision, training
from simclr_core.pretraining.initial import Start
from simclr_core.pretraining.precision import LossScaler, choose_precision
from simclr_core.pretraining.pretrain import build_network, build_optimizer, choose_objective, with_velocities
from simclr_core.pretraining.training import Learner, Readings, gradients, not_finite, update
from simclr_core.stopwatch import Stopwatch
from tests.simclr_core.fake_cuda import Counts, count, fake_cuda

IMAGES, SIDE = 64, 32
BATCH_NORMS = 14  # of a ResNet-10 with a head of two layers
RANKS = 8


@pytest.fixture
def gpu() -> Iterator[torch.device]:
    with fake_cuda() as device:
        yield device


@contextmanager
def group(ranks: int) -> Iterator[None]:
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    try:
        yield
    finally:
        dist.destroy_process_group()


def settings(**changes: Any) -> PretrainConfig:
    encoder = {"name": "resnet10", "width": 0.125, "stem": "compact"}
    return PretrainConfig(**{"encoder": encoder, "image_size": SIDE, "batch_size": RANKS * IMAGES, **changes})


def build(config: PretrainConfig, member: Member, dtype: torch.dtype) -> Learner:
    network = build_network(config, Start("scratch"), member)
    optimizer = build_optimizer(config.optimizer, network, config.momentum, config.weight_decay)
    scaler = LossScaler(dtype, member.device)
    copied = patch.object(weight_average, "deepcopy", lambda _: build_network(config, Start("scratch"), member))
    with copied:  # of a tensor without memory no copy can be made
        trained = choose_objective(config, network, scaler, dtype, member)
        average = None if config.average_decay is None else WeightAverage(network, config.average_decay)
    return Learner(network, synchronize(network), optimizer, trained, scaler, average, config.clip_gradient_norm)


class Steps:
    """Steps of ``training.train``, with what it does to a step's numbers."""

    def __init__(self, device: torch.device, config: PretrainConfig, dtype: torch.dtype, ranks: int = 1) -> None:
        self.member = Member(0, ranks, device)
        self.learner = build(config, self.member, dtype)
        self.read: list[tuple[float, float]] = []
        self.readings = Readings(self.learner.scaler, None, Path(), self.read)  # type: ignore[arg-type]
        self.views = torch.zeros(2 * IMAGES, 3, SIDE, SIDE, device=device)
        self.stop = StopRequest()
        self.number = 0

    def __call__(self) -> None:
        outcome = gradients(self.learner, self.views, self.number)
        numbers = training._numbers(self.learner, outcome.loss, self.stop.agreed(self.member))
        self.readings.add(self.number, numbers)
        update(self.learner, 0.1, not_finite(numbers))
        self.number += 1

    def counted(self) -> Counts:
        """Of the third step: the first two make the optimizer's buffers and fill what is read late."""
        self()
        self()
        return count(self)


def assert_never_stalls(counts: Counts) -> None:
    assert (counts.blocking_copies, counts.read_backs, counts.waits) == (0, 0, 1), counts.names


KINDS: dict[str, tuple[dict[str, Any], torch.dtype]] = {
    "lars": ({}, torch.float32),
    "lars in float16": ({}, torch.float16),
    "sgd": ({"optimizer": "sgd"}, torch.bfloat16),
    "adamw": ({"optimizer": "adamw"}, torch.bfloat16),
    "adamw in float16": ({"optimizer": "adamw"}, torch.float16),
    "dcl in micro-batches": ({"loss": "dcl", "micro_batch_size": IMAGES // 4}, torch.float32),
    "queue": ({"loss": "info_nce", "queue": {"size": RANKS * IMAGES}}, torch.bfloat16),
    "clipped and averaged": ({"optimizer": "sgd", "clip_gradient_norm": 1.0, "average_decay": 0.999}, torch.bfloat16),
}


@pytest.mark.seconds
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_waits_once_for_what_the_step_before_has_left(gpu: torch.device, kind: str) -> None:
    changes, dtype = KINDS[kind]
    steps = Steps(gpu, settings(**changes), dtype)
    assert_never_stalls(steps.counted())
    assert len(steps.read) == steps.number - 1  # and the last one's are read when something is to last
    steps.readings.settle()
    assert steps.read == [(1.0, 1.0)] * steps.number
    left_out: Tensor = steps.learner.optimizer.found_inf if dtype != torch.float16 else torch.ones((), device=gpu)
    assert (left_out.device, left_out.dtype, left_out.numel()) == (gpu, torch.float32, 1)


FUSED: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "lars": lambda network: LARS(parameter_groups([network], 0.1), lr=0.5, fused=True),
    "sgd": lambda network: with_velocities(torch.optim.SGD(network.parameters(), 0.5, 0.9, fused=True)),
    "adamw": lambda network: torch.optim.AdamW(network.parameters(), 0.5, fused=True),
}


def descended(name: str, gradients: Iterable[float], gated: bool) -> list[Tensor]:
    """Weights and state of a small network after steps along constant gradients, by kernels that a CPU has too."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 4)).to(memory_format=torch.channels_last)
    optimizer, scaler = FUSED[name](network), LossScaler(torch.float32, torch.device("cpu"))
    for number in gradients:
        for weight in network.parameters():
            weight.grad = torch.full_like(weight, number)
        scaler.step(optimizer, torch.tensor(float(not math.isfinite(number))) if gated else None)
    state = [value for weight in network.parameters() for value in optimizer.state[weight].values()]
    return [*map(torch.clone, network.parameters()), *map(torch.clone, state)]


@pytest.mark.parametrize("name", FUSED)
def test_a_step_that_is_not_finite_changes_no_weight(name: str) -> None:
    """Nor the optimizer's state, from the very first one on; one that is finite is what it always was."""
    bad = [math.nan, 0.25, math.inf, -math.inf, -0.5, math.nan]
    for got, expected in zip(descended(name, bad, True), descended(name, [0.25, -0.5], False), strict=True):
        assert torch.equal(got, expected)


def test_fused_steps_of_lars_are_its_steps() -> None:
    networks = [nn.Linear(5, 4), nn.Linear(5, 4)]
    networks[1].load_state_dict(networks[0].state_dict())
    optimizers = [LARS(parameter_groups([one], 0.1), 0.5, fused=one is networks[1]) for one in networks]
    for number in (0.5, -2.0, 1.0):
        for network, optimizer in zip(networks, optimizers, strict=True):
            for weight in network.parameters():
                weight.grad = number + weight.detach().square()
            optimizer.step()
    for one, other in zip(*(network.parameters() for network in networks), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("numbers", [(2.5, 1.0), (math.nan, 1.0), (2.5, math.inf)])
def test_what_is_not_finite_is_known(numbers: tuple[float, float]) -> None:
    assert not_finite(torch.tensor([*numbers, 1.0, math.inf])).item() == float(not all(map(math.isfinite, numbers)))


@pytest.mark.seconds
def test_on_several_gpus_each_normalization_exchanges_once_in_each_direction(gpu: torch.device) -> None:
    with group(RANKS):
        steps = Steps(gpu, settings(), torch.bfloat16, RANKS)
        norms = [one for one in steps.learner.network.modules() if isinstance(one, GlobalBatchNorm)]
        counts = steps.counted()
    assert len(norms) == BATCH_NORMS
    assert_never_stalls(counts)
    assert counts.collectives == 2 * BATCH_NORMS + 3, counts.names  # two gathers of the loss, and the stop request


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_of_4096_images_takes_at_most_60_kernels(gpu: torch.device, name: str) -> None:
    z = torch.zeros(2 * 4096, 128, device=gpu, requires_grad=True)
    counts = count(lambda: torch.autograd.backward(LOSSES[name](*z.chunk(2), 0.1)))
    assert counts.kernels <= 60, counts.names
    assert (counts.blocking_copies, counts.read_backs, counts.collectives) == (0, 0, 0)


@pytest.mark.seconds
@pytest.mark.parametrize(("ranks", "images", "most"), [(8, 512, 80), (64, 1024, 500)])
def test_more_gpus_add_only_tiles(gpu: torch.device, ranks: int, images: int, most: int) -> None:
    z = torch.zeros(2 * images, 128, device=gpu, requires_grad=True)
    groups = torch.zeros(ranks * images, dtype=torch.int64, device=gpu)
    with group(ranks):
        counts = count(lambda: torch.autograd.backward(LOSSES["nt_xent"](*z.chunk(2), 0.1)))
        grouped = count(lambda: torch.autograd.backward(LOSSES["dcl"](*z.chunk(2), 0.1, groups=groups)))
    assert counts.kernels <= most, counts.names
    for one in (counts, grouped):
        assert (one.blocking_copies, one.read_backs, one.collectives) == (0, 0, 2), one.names


def test_a_step_that_is_not_finite_is_named_a_step_later(tmp_path: Path) -> None:
    class Batches:
        member = Member(0, 1, torch.device("cuda"))

        def keys(self, step: int) -> list[str]:
            return [f"image of step {step}"]

    numbers = {step: torch.tensor([loss, 1.0, 1.0, 0.0]) for step, loss in ((6, 2.5), (7, float("nan")), (8, 2.5))}
    read: list[tuple[float, float]] = []
    with fake_cuda() as gpu:
        readings = Readings(LossScaler(torch.float32, gpu), Batches(), tmp_path, read)  # type: ignore[arg-type]

        def arrive(step: int) -> None:
            """As if the copy of step ``step`` had these numbers."""
            readings.add(step, torch.zeros(4, device=gpu))
            assert readings._unread is not None
            readings._unread = (step, numbers[step], readings._unread[2])

        arrive(6)
        arrive(7)
        assert read == [(2.5, 1.0)]
        with pytest.raises(NonFiniteLossError, match="step 7: the loss is nan") as caught:
            arrive(8)
    assert caught.value.keys == ["image of step 7"]
    assert (tmp_path / "non-finite-step-7.json").exists()


@pytest.mark.parametrize(("has_bfloat16", "expected"), [(True, "bfloat16"), (False, "float16")])
def test_auto_on_a_gpu_has_16_bits_however_long_a_few_images_take(
    has_bfloat16: bool, expected: str, gpu: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: has_bfloat16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 0))  # V100
    monkeypatch.setattr(precision, "_layer_error", lambda *_: 0.0)  # a fake GPU has no numbers
    passes = iter((1.0, 1.5))
    monkeypatch.setattr(precision, "_timed", lambda *_: (1.0, next(passes)))
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 4)).to(gpu)
    views = torch.zeros(8, 3, 4, 4, device=gpu)
    choice = choose_precision("auto", network, views, Member(0, 1, gpu), lambda *_: torch.ones(()))
    assert (choice.value, choice.reason) == (expected, None)


FOR_GPUS: dict[ModuleType, set[str]] = {
    batch_norm: {"_on_gpu", "_statistics", "_Normalized", "_dense"},
    nt_xent: set(),
    objective: set(),
    precision: set(),
    stopwatch: {"_StreamClock", "mark_stream"},
    training: {"Readings", "not_finite"},
    lars: {"_descend"},
}
"""What only a GPU runs of these modules, besides the branches of ``if`` in which cuda is named."""

OTHERWISE = ("write_atomically", "NonFiniteLossError", "found = ", "keys, listed", "return 0.0", "self.settle()")
"""What a bad step runs, or a processor."""


def statements_for_gpus(module: ModuleType) -> dict[int, str]:
    tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
    bodies = [
        node.body
        for node in ast.walk(tree)
        if (isinstance(node, ast.If) and "cuda" in ast.unparse(node.test))
        or (isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in FOR_GPUS[module])
    ]
    statements = (one for body in bodies for top in body for one in ast.walk(top) if isinstance(one, ast.stmt))
    return {
        one.lineno: ast.unparse(one)
        for one in statements
        if not isinstance(one, ast.FunctionDef)
        and not (isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant))
    }


@contextmanager
def executed() -> Iterator[set[tuple[str, int]]]:
    """Filled with the lines that run in these modules."""
    files, lines, before = {str(module.__file__) for module in FOR_GPUS}, set[tuple[str, int]](), sys.gettrace()

    def trace(frame: FrameType, *_: Any) -> Callable[..., Any] | None:
        if frame.f_code.co_filename not in files:
            return None
        lines.add((frame.f_code.co_filename, frame.f_lineno))
        return trace

    sys.settrace(trace)
    try:
        yield lines
    finally:
        sys.settrace(before)


@pytest.mark.seconds
def test_every_line_for_gpus_runs(gpu: torch.device) -> None:
    with group(RANKS), executed() as lines, Stopwatch(gpu) as watch:
        steps = Steps(gpu, settings(), torch.bfloat16, RANKS)
        steps()
        steps()
        watch.lap()
        synchronize(nn.BatchNorm1d(4, affine=False)).to(gpu)(torch.zeros(8, 4, device=gpu))
    wanted = {
        (str(module.__file__), line): text for module in FOR_GPUS for line, text in statements_for_gpus(module).items()
    }
    missed = {text for place, text in wanted.items() if place not in lines}
    assert {text for text in missed if not any(known in text for known in OTHERWISE)} == set()
