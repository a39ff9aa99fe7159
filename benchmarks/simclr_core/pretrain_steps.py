"""Where one pretraining step spends its time: milliseconds of each part, measured apart, one after the other."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from simclr_core.augmentation.augmentations import Augmentation
from simclr_core.config import PretrainConfig
from simclr_core.loss.nt_xent import nt_xent
from simclr_core.model.encoder import build_encoder
from simclr_core.model.projection_head import build_projection_head
from simclr_core.pretraining.pretrain import build_optimizer

ROUNDS = 5


def split(model: dict[str, Any], common: dict[str, Any]) -> dict[str, dict[str, float]]:
    """By precision, for a batch of gray noise: augmentation, forward, loss, backward, optimizer."""
    config = PretrainConfig.model_validate(common | model)
    return {name: _split(config, precision) for name, precision in PRECISIONS.items()}


PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def _split(config: PretrainConfig, precision: torch.dtype) -> dict[str, float]:
    torch.manual_seed(0)
    encoder = build_encoder(**config.encoder.model_dump(), image_size=config.image_size)
    head = build_projection_head(encoder.feature_dim, **config.projection_head.model_dump())
    network = nn.Sequential(encoder, head).to(memory_format=torch.channels_last)
    optimizer = build_optimizer(config.optimizer, network, config.momentum, config.weight_decay)
    augmentation = Augmentation(config.image_size, **config.augmentation.model_dump())
    n, side = config.batch_size, 28
    images = torch.randint(256, (n, 1, side, side), dtype=torch.uint8).expand(-1, 3, -1, -1).contiguous()
    sizes, samples = torch.full((n, 2), side), torch.arange(n)
    taken: dict[str, list[float]] = {}

    def timed(name: str, part: Callable[..., Any], *arguments: Any) -> Any:
        began = time.perf_counter()
        result = part(*arguments)
        taken.setdefault(name, []).append(1000 * (time.perf_counter() - began))
        return result

    def views(epoch: int) -> torch.Tensor:
        both = [augmentation.view(images, sizes, 0, epoch, samples, view) for view in (0, 1)]
        return torch.cat(both).contiguous(memory_format=torch.channels_last)

    def forward(inputs: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            projections: torch.Tensor = network(inputs)
        return projections

    for number in range(ROUNDS + 1):
        inputs = timed("augmentation", views, number)
        projections = timed("forward", forward, inputs)
        loss = timed("loss", nt_xent, projections[:n], projections[n:], config.temperature)
        timed("backward", loss.backward)  # with the loss's own, a few per cent of it
        timed("optimizer", optimizer.step)
        optimizer.zero_grad()
    return {name: round(statistics.median(values[1:]), 2) for name, values in taken.items()}
