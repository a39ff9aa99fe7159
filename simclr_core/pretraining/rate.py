"""What the parts of a run cost on this machine: a few real steps of each on random pixels. Nothing is written.

python -m simclr_core rate --images 5000 --classes 10        in a folder with a params.yaml
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch
from torch import Tensor, nn

from deploy.images.full_depth import Samples
from simclr_core import launch
from simclr_core.augmentation.augmentations import MAIN_VIEWS, Augmentation
from simclr_core.config import FinetuneConfig, PretrainConfig
from simclr_core.evaluation.features import encode
from simclr_core.evaluation.logistic_regression import principal_axes
from simclr_core.evaluation.regression.lbfgs import Point, minimize
from simclr_core.launch import Member
from simclr_core.machine.devices import resolve_precision
from simclr_core.model.encoder import Encoder
from simclr_core.monitoring.diagnostics import Monitor
from simclr_core.monitoring.throughput import peak_bytes
from simclr_core.monitoring.unit_costs import TrainingSet, UnitCosts
from simclr_core.params import flatten, read_block
from simclr_core.pretraining.initial import Start
from simclr_core.pretraining.precision import LossScaler
from simclr_core.pretraining.pretrain import build_network, build_optimizer, choose_objective

LEAST_STEPS = 3
SECONDS = 4.0  # after the first step, which allocates and tunes; of pretraining. The others take a quarter of it
LEARNING_RATE = 1e-6  # costs as much as any other
CLASSES = 10  # of the random labels of a probe
FORWARD_IMAGES = 256  # a batch of ``encode``
SIDE = 512  # features and images of the larger measured probe
FEW_IMAGES = 16  # of the smaller batch of fine-tuning
FEW = 20  # images of the smaller one
WEAK = 1e-4  # penalty of the measured probe
ROUNDS = 40  # steps at most of the measured probe
MEAN, STD = 0.5, 0.25


def run(
    workspace: Path, images: int, classes: int, channels: int | None = None, sizes: Sequence[tuple[int, int]] = ()
) -> None:
    """Print the ``UnitCosts`` for the blocks ``pretrain`` and ``finetune`` of params.yaml, in JSON.

    The start of the process is not among them: who starts it takes ``measured_seconds`` off the time that it took.
    The other arguments are those of ``TrainingSet``.
    """
    started = perf_counter()
    data = TrainingSet(images, classes, channels, tuple(sizes))
    with launch.member("rate", lambda _: read_inputs(workspace, data)) as (member, inputs):
        costs = asdict(measure(inputs.config, inputs.tuning, data, member))
    print(json.dumps({**costs, "measured_seconds": perf_counter() - started}))


@dataclass(frozen=True)
class Inputs:
    """What is measured."""

    config: PretrainConfig
    tuning: FinetuneConfig
    facts: Mapping[str, object]  # what every process of a group has to have alike


def read_inputs(workspace: Path, data: TrainingSet) -> Inputs:
    config = read_block(workspace / "params.yaml", "pretrain", PretrainConfig)
    tuning = read_block(workspace / "params.yaml", "finetune", FinetuneConfig)
    blocks = {"pretrain": config.model_dump(), "finetune": tuning.model_dump(), "rate": asdict(data)}
    return Inputs(config, tuning, dict(flatten(blocks)))


def measure(config: PretrainConfig, tuning: FinetuneConfig, data: TrainingSet, member: Member) -> UnitCosts:
    """Measure each part; the start of the process is not known here."""
    rate = measure_rate(config, data, member, SECONDS)
    bands = data.channels or 3
    encoder, head = build_network(config, Start("scratch"), member, bands)
    assert isinstance(encoder, Encoder)
    watched = max(2, min(config.monitor_images, data.images))
    pixels, normalized = (
        _pixels(max(FORWARD_IMAGES, watched), config.image_size, data),
        ((MEAN,) * bands, (STD,) * bands),
    )
    forward = _middle(lambda: encode(encoder, pixels[:FORWARD_IMAGES], *normalized), SECONDS / 4) / FORWARD_IMAGES
    names = [str(one) for one in range(max(1, data.classes))]
    monitor = Monitor(pixels[:watched], np.arange(watched) % len(names), *normalized, names)
    views = torch.randn(2, config.batch_size, encoder.feature_dim)
    look = _middle(lambda: monitor.measure(monitor.features(encoder), nn.Identity(), *views), 0.0)
    return UnitCosts(
        images_per_second=rate,
        start_seconds=0.0,
        monitor_seconds=max(0.0, look / watched - forward),
        forward_seconds=forward,
        tuning_seconds=_line(
            {
                batch: measure_tuning(encoder, config, batch, data, member)
                for batch in (FEW_IMAGES, max(tuning.batch_size, 2 * FEW_IMAGES))
            }
        ),
        axes_seconds=_middle(lambda: principal_axes(torch.randn(SIDE, SIDE)), 0.0),
        descent_seconds=(measure_descent(FEW, FEW), measure_descent(SIDE, SIDE)),
        memory_bytes=peak_bytes(member.device),
        encoder_parameters=sum(one.numel() for one in encoder.parameters()),
        head_parameters=sum(one.numel() for one in head.parameters()),
        feature_dim=encoder.feature_dim,
    )


def measure_rate(config: PretrainConfig, data: TrainingSet, member: Member, seconds: float) -> float:
    """Images a second over all steps but the first: augmentation, forward, loss, backward and update, without reading
    or decoding. The batch is the configuration's."""
    device = member.device
    network = build_network(config, Start("scratch"), member, data.channels or 3)
    optimizer = build_optimizer(config.optimizer, network, config.momentum, config.weight_decay)
    precision = resolve_precision(config.precision, device, scales_loss=True)
    objective = choose_objective(config, network, LossScaler(precision, device), precision, member)
    augmentation = Augmentation(config.image_size, **config.augmentation.model_dump())
    images, sizes = _batch(config, config.batch_size, data, device)
    samples = torch.arange(config.batch_size)
    for group in optimizer.param_groups:
        group["lr"] = LEARNING_RATE
    number = 0

    def step() -> None:
        nonlocal number
        views = [augmentation.view(images, sizes, 0, number, samples, view) for view in range(augmentation.views)]
        groups = (views[:MAIN_VIEWS], views[MAIN_VIEWS:]) if augmentation.is_of_two_sizes else (views,)
        inputs = tuple(
            torch.cat(group).sub_(0.5).div_(0.25).contiguous(memory_format=torch.channels_last) for group in groups
        )
        optimizer.zero_grad(set_to_none=True)
        objective.backward(network, inputs if len(inputs) > 1 else inputs[0])
        optimizer.step()
        objective.update()
        number += 1
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return config.batch_size / _middle(step, seconds)


def measure_tuning(encoder: Encoder, config: PretrainConfig, batch: int, data: TrainingSet, member: Member) -> float:
    """Seconds of a step of fine-tuning on ``batch`` images; ``encoder`` is changed."""
    head = nn.Linear(encoder.feature_dim, CLASSES)
    network = nn.Sequential(encoder, head).to(member.device).train()
    optimizer = torch.optim.SGD(network.parameters(), LEARNING_RATE, momentum=0.9, nesterov=True)
    crops = Augmentation(config.image_size, flip=0.5, jitter_probability=0, grayscale=0, blur=0)
    images, sizes = _batch(config, batch, data, member.device)
    samples, labels = torch.arange(batch), torch.arange(batch) % CLASSES

    def step() -> None:
        views = crops.view(images, sizes, 0, 0, samples, view=0).sub(0.5).div(0.25)
        loss = nn.functional.cross_entropy(
            network(views.contiguous(memory_format=torch.channels_last)), labels.to(member.device)
        )
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        loss.item()

    return _middle(step, SECONDS / 4)


def _line(seconds: Mapping[int, float]) -> tuple[float, float]:
    """What two batches cost, as a part of any batch and a part for each image; neither is negative."""
    (few, of_few), (many, of_many) = seconds.items()
    each = max(0.0, (of_many - of_few) / (many - few))
    return max(0.0, of_many - each * many), each


def measure_descent(images: int, features: int) -> float:
    """Seconds of one evaluation of the loss of a linear probe, its part of the search for the next one included."""
    random = torch.Generator().manual_seed(0)
    design, labels = torch.randn(features, images, generator=random), torch.arange(images) % CLASSES
    evaluations = 0

    def loss(at: Tensor) -> tuple[float, Tensor]:
        nonlocal evaluations
        evaluations += 1
        weights = at.detach().requires_grad_()
        value = nn.functional.cross_entropy((weights @ design).T, labels) + WEAK * weights.square().sum()
        (slope,) = torch.autograd.grad(value, weights)
        return value.item(), slope

    zeros = torch.zeros(CLASSES, features)
    start = Point(zeros, *loss(zeros))
    started = perf_counter()
    minimize(loss, start, 0.0, ROUNDS)
    return (perf_counter() - started) / (evaluations - 1)


def _middle(step: Callable[[], object], seconds: float) -> float:
    """Median seconds of a step after the first one: of three steps, and of more until they take ``seconds``."""
    step()
    times: list[float] = []
    while len(times) < LEAST_STEPS or sum(times) < seconds:
        started = perf_counter()
        step()
        times.append(perf_counter() - started)
    return median(times)


def _batch(config: PretrainConfig, images: int, data: TrainingSet, device: torch.device) -> tuple[Tensor, Tensor]:
    """Random pixels as ``TrainingImages.batch`` gives them, of images with the sizes of the others, in turn."""
    side = config.resize or config.image_size
    sizes = np.array([*islice(cycle(data.sizes or ((side, side),)), images)], np.int64)
    shape, kind = (images, data.channels or 3, *sizes.max(axis=0)), np.uint16 if data.channels else np.uint8
    pixels = np.random.default_rng(0).integers(0, np.iinfo(kind).max, shape, dtype=kind)
    return torch.from_numpy(pixels).to(device), torch.from_numpy(sizes)


def _pixels(images: int, side: int, data: TrainingSet) -> Samples:
    """Random squares as ``evaluation_images`` gives them."""
    kind = np.uint16 if data.channels else np.uint8
    return np.random.default_rng(0).integers(
        0, np.iinfo(kind).max, (images, side, side, data.channels or 3), dtype=kind
    )
