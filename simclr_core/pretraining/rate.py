"""How fast this machine trains a configuration: a few real steps on random pixels. Nothing is written.

python -m simclr_core rate        in a folder with a params.yaml
"""

import json
import resource
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from torch import Tensor

from simclr_core import launch
from simclr_core.augmentation.augmentations import Augmentation
from simclr_core.config import PretrainConfig
from simclr_core.launch import Member
from simclr_core.params import read_block
from simclr_core.pretraining.initial import Start
from simclr_core.pretraining.precision import LossScaler, resolve_precision
from simclr_core.pretraining.pretrain import build_network, build_optimizer, choose_objective

LEAST_STEPS = 3
SECONDS = 4.0  # after the first step, which allocates and tunes
LEARNING_RATE = 1e-6  # costs as much as any other


def run(workspace: Path) -> None:
    """Print ``{"images_per_second": ..., "memory_gigabytes": ...}`` of the ``pretrain`` block of params.yaml."""
    config = read_block(workspace / "params.yaml", "pretrain", PretrainConfig)
    with launch.member() as member:
        rate = measure_rate(config, member, SECONDS)
        peak = _peak_bytes(member.device) / 1e9
    print(json.dumps({"images_per_second": round(rate, 2), "memory_gigabytes": round(peak, 3)}))


def measure_rate(config: PretrainConfig, member: Member, seconds: float) -> float:
    """Images a second over all steps but the first: augmentation, forward, loss, backward and update, without reading
    or decoding. The batch is the configuration's."""
    device = member.device
    network = build_network(config, Start("scratch"), member)
    optimizer = build_optimizer(config.optimizer, network, config.momentum, config.weight_decay)
    precision = resolve_precision(config.precision, device)
    objective = choose_objective(config, network, LossScaler(precision, device), precision, member)
    augmentation = Augmentation(config.image_size, **config.augmentation.model_dump())
    side = config.resize or config.image_size
    images = torch.randint(0, 256, (config.batch_size, 3, side, side), dtype=torch.uint8, device=device)
    sizes, samples = torch.full((config.batch_size, 2), side), torch.arange(config.batch_size)
    for group in optimizer.param_groups:
        group["lr"] = LEARNING_RATE

    def step(number: int) -> float:
        started = perf_counter()
        views: Tensor = torch.cat(
            [augmentation.view(images, sizes, 0, number, samples, view) for view in range(augmentation.views)]
        )
        optimizer.zero_grad(set_to_none=True)
        objective.backward(network, views.sub_(0.5).div_(0.25).contiguous(memory_format=torch.channels_last))
        optimizer.step()
        objective.update()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return perf_counter() - started

    step(0)
    times: list[float] = []
    while len(times) < LEAST_STEPS or sum(times) < seconds:
        times.append(step(len(times) + 1))
    return config.batch_size / median(times)


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
