"""Throughput: a step of ResNet-50 on random images, decoding, and NT-Xent next to its plain formula and lightly's."""

import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu.runs import write_workspace
from benchmarks.gpu.scale import Result, Scale, error, require, seconds_of
from simclr_core.errors import DeviceError
from simclr_core.loss.nt_xent import LOSSES, nt_xent
from simclr_core.loss.objective import InBatch

if TYPE_CHECKING:
    from simclr_core.pretraining.batches import Batches

TEMPERATURE = 0.1


def check_step(scale: Scale) -> Result:
    """Images a second of a whole step, its share of the peak (MFU), and of the time that the GPU had nothing to do."""
    batch = scale.choose(512, 8)
    while True:
        try:
            return _measure_step(scale, batch)
        except torch.OutOfMemoryError:
            require(batch > 32, "a batch of 32 images does not fit")
            batch //= 2
            torch.cuda.empty_cache()


def check_decoding(scale: Scale) -> Result:
    """Ready batches of JPEG files a second, on this machine's cores, read, decoded, augmented and on the device; on a
    GPU also decoded by it."""
    from simclr_core.launch import Member
    from simclr_core.pretraining.pretrain import read_inputs

    alone = Member(0, 1, scale.device)
    with TemporaryDirectory(prefix="gpu-check-") as folder:
        write_workspace(Path(folder), scale, "jpg")
        inputs = read_inputs(Path(folder))
        found: Result = {
            "images_per_second": _ready(inputs.batches(alone), scale),
            "cores": len(os.sched_getaffinity(0)),
        }
        if scale.device.type == "cuda":
            by_gpu = replace(inputs, config=inputs.config.model_copy(update={"decode": "gpu"}))
            try:
                found["by_gpu"] = _ready(by_gpu.batches(alone), scale)
            except DeviceError as refused:
                found["by_gpu"] = str(refused)
    return found


def _ready(batches: "Batches", scale: Scale) -> int:
    """Images a second of an epoch."""
    began, images = perf_counter(), 0
    for _ in batches.network_inputs(0, batches.steps_per_epoch):
        images += batches.batch_size
    scale.wait()
    return round(images / (perf_counter() - began))


def check_loss_speed(scale: Scale) -> Result:
    """Median seconds of forward and backward, and the peak memory on a GPU."""
    losses: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "ours": lambda first, second: nt_xent(first, second, TEMPERATURE),
        "dense": _dense,
    }
    if find_spec("lightly") is not None:
        from lightly.loss import NTXentLoss

        losses["lightly"] = NTXentLoss(temperature=TEMPERATURE)
    found: Result = {}
    for views in (64,) if scale.tiny else (1024, 4096, 16384):
        rows = torch.randn(2, views // 2, 128, device=scale.device)
        first, second = (one.requires_grad_() for one in rows.unbind())
        values = {name: loss(first, second) for name, loss in losses.items()}
        off = error(list(values.values()), [values["ours"]] * len(values))
        require(off < 1e-4, f"the losses of {views} views differ by {off:.2g}")
        found[str(views)] = {name: _cost(scale, loss, first, second) for name, loss in losses.items()}
    return found


def _measure_step(scale: Scale, batch: int) -> Result:
    from simclr_core.augmentation.augmentations import Augmentation
    from simclr_core.lars import LARS, parameter_groups
    from simclr_core.model.encoder import build_encoder
    from simclr_core.model.projection_head import build_projection_head
    from simclr_core.monitoring.throughput import peak_flops

    torch.manual_seed(0)
    side, name = scale.choose(224, 32), "resnet10" if scale.tiny else "resnet50"
    encoder = build_encoder(name, 0.125 if scale.tiny else 1.0)
    network = nn.Sequential(encoder, build_projection_head(encoder.feature_dim)).to(scale.device)
    network = network.to(memory_format=torch.channels_last)
    optimizer = LARS(parameter_groups([network], 1e-6), lr=0.1)
    precision = torch.bfloat16 if scale.device.type == "cuda" else torch.float32
    objective, augmentation = InBatch(LOSSES["nt_xent"], TEMPERATURE, precision), Augmentation(side, mode="fused")
    stored = side * 256 // 224
    images = torch.randint(256, (batch, 3, stored, stored), dtype=torch.uint8, device=scale.device)
    sizes, samples = torch.full((batch, 2), stored), torch.arange(batch)

    def views() -> Tensor:
        drawn = torch.cat([augmentation.view(images, sizes, 0, 0, samples, view) for view in range(2)])
        return drawn.sub_(0.5).div_(0.25).contiguous(memory_format=torch.channels_last)

    def step() -> None:
        optimizer.zero_grad()
        objective.backward(network, views())
        optimizer.step()

    times = seconds_of(step, scale, 0.0 if scale.tiny else 15.0)
    seconds = statistics.median(times)
    with FlopCounterMode(display=False) as counted:
        objective.backward(network, views())
    rate, flops = batch / seconds, counted.get_total_flops()
    found: Result = {"batch": batch, "seconds": seconds, "images_per_second": rate, "tflop_of_a_step": flops / 1e12}
    found["deterministic"] = torch.are_deterministic_algorithms_enabled()
    if scale.device.type == "cuda":
        peak = peak_flops(scale.device, precision)
        found["peak_gigabytes"] = torch.cuda.max_memory_allocated(scale.device) / 1e9
        found["mfu"] = None if peak is None else flops / seconds / peak
        found["share_waiting"] = _share_waiting(step, seconds, scale)
    return found


def _share_waiting(step: Callable[[], None], seconds: float, scale: Scale) -> float:
    """One minus the seconds of all kernels and copies over those of a step: they follow each other on one stream."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        step()
        scale.wait()
    busy = float(sum(event.self_device_time_total for event in profiled.key_averages())) / 1e6
    return max(0.0, 1 - busy / seconds)


def _dense(first: Tensor, second: Tensor) -> Tensor:
    rows = nn.functional.normalize(torch.cat([first, second]), dim=1)
    scores = rows @ rows.T / TEMPERATURE
    scores.fill_diagonal_(-torch.inf)
    return nn.functional.cross_entropy(scores, torch.arange(len(rows), device=rows.device).roll(len(first)))


def _cost(scale: Scale, loss: Callable[[Tensor, Tensor], Tensor], first: Tensor, second: Tensor) -> Result:
    def step() -> None:
        torch.autograd.grad(loss(first, second), (first, second))

    if scale.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(scale.device)
    times = seconds_of(step, scale, 0.0 if scale.tiny else 0.5)
    found: Result = {"seconds": statistics.median(times)}
    if scale.device.type == "cuda":
        found["peak_megabytes"] = torch.cuda.max_memory_allocated(scale.device) / 1e6
    return found


CHECKS: Sequence[Callable[[Scale], Result]] = (check_step, check_loss_speed, check_decoding)
