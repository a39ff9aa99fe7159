"""How fast a training is, next to what its GPUs could do (MFU: Chowdhery et al. 2022, arXiv 2204.02311, appendix B)."""

import resource
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from simclr_core.evaluation.features import evaluating
from simclr_core.launch import Member

FORWARD_AND_BACKWARD = 3  # forward passes that a step of training costs


class Peaks(NamedTuple):
    """TFLOP/s of products of matrices without sparsity, from the data sheets: of 16 bits, TF32, and float32."""

    half: float
    tf32: float
    single: float


PEAKS = {
    "B200": Peaks(2250, 1125, 75),
    "H200": Peaks(989, 495, 67),
    "H100": Peaks(989, 495, 67),
    "A100": Peaks(312, 156, 19.5),
    "L40S": Peaks(362, 183, 91.6),
    "L4": Peaks(121, 60, 30.3),
    "A10": Peaks(125, 62.5, 31.2),
    "A10G": Peaks(70, 35, 35),
    "V100": Peaks(125, 15.7, 15.7),
    "T4": Peaks(65, 8.1, 8.1),
}
"""Of other GPUs there is no MFU."""


class Reading(NamedTuple):
    """What is known of a step once its numbers were read. ``spread`` is effective rank and spread of z over the images
    of this process, of a step that has a record."""

    step: int
    loss: float
    gradient_norm: float
    spread: tuple[float, float] | None = None


@dataclass(frozen=True)
class Pace:
    """Every ``every``-th step of ``batch_size`` images has a record, 0: none has. ``flops`` are those of an image in
    it, ``peak`` what all GPUs together could do in a second; None: that is not known."""

    device: torch.device
    batch_size: int
    every: int = 0
    flops: float = 0.0
    peak: float | None = None

    def shows(self, step: int) -> bool:
        """Whether a record has the numbers of ``step``, counted from 0: on a GPU they are read a step late."""
        late = 1 if self.device.type == "cuda" else 0
        return self.every > 0 and (step + 1 + late) % self.every == 0

    def numbers(self, images_per_second: float) -> dict[str, float]:
        """Speed, share of the peak, and the most memory so far: of this GPU, or of this process."""
        share = {} if self.peak is None else {"mfu": images_per_second * self.flops / self.peak}
        memory = peak_bytes(self.device) / 1e9
        return {"images_per_second": round(images_per_second, 1), **share, "memory_gigabytes": round(memory, 3)}


def choose_pace(
    network: nn.Module,
    passes: Mapping[tuple[int, ...], int],
    arithmetic: tuple[torch.dtype, bool],
    member: Member,
    batch_size: int,
    every: int,
) -> Pace:
    """``passes`` are those of an image, forward and backward, as a number of forward ones, by the shape of the view,
    (channels, side, side); ``arithmetic``: the type to compute in, and whether TF32 is allowed."""
    peak = peak_flops(member.device, *arithmetic) if every and member.rank == 0 else None
    if peak is None:
        return Pace(member.device, batch_size, every)
    flops = sum(number * forward_flops(network, shape) for shape, number in passes.items())
    return Pace(member.device, batch_size, every, flops, peak * member.size)


def forward_flops(network: nn.Module, shape: Sequence[int]) -> int:
    """Floating-point operations of one input of ``shape`` in evaluation; only shapes are computed."""
    state = dict(network.named_parameters()) | dict(network.named_buffers())
    shapes = {name: torch.empty_like(value, device="meta") for name, value in state.items()}
    with evaluating(network), FlopCounterMode(display=False) as counted:
        functional_call(network, shapes, (torch.empty(1, *shape, device="meta"),))
    return int(counted.get_total_flops())


def peak_flops(device: torch.device, precision: torch.dtype, tf32: bool = False) -> float | None:
    """What a GPU can do in a second; None of one that is not in ``PEAKS``, and of processors."""
    if device.type != "cuda":
        return None
    named = torch.cuda.get_device_name(device).replace("-", " ").split()
    peaks = next((PEAKS[part] for part in named if part in PEAKS), None)
    if peaks is None:
        return None
    return 1e12 * (peaks.half if precision != torch.float32 else peaks.tf32 if tf32 else peaks.single)


def peak_bytes(device: torch.device) -> int:
    """The most memory so far: of tensors on a GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
