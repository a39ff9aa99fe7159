"""Where the checks run and how large they are, and how two results are compared."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Result = dict[str, Any]


class WrongError(Exception):
    """A number is not what it has to be."""


@dataclass(frozen=True)
class Scale:
    """``tiny`` is for a test of the checks themselves."""

    device: torch.device
    tiny: bool = False

    def choose(self, full: int, tiny: int) -> int:
        return tiny if self.tiny else full

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def require(holds: bool, said: str) -> None:
    if not holds:
        raise WrongError(said)


def error(found: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    """The largest relative error of the tensors, each by its norm, in float64."""
    pairs = [
        (one.detach().double().cpu(), other.detach().double().cpu()) for one, other in zip(found, right, strict=True)
    ]
    errors = [float((one - other).norm() / other.norm().clamp_min(1e-30)) for one, other in pairs]
    return max(errors) if all(torch.isfinite(one).all() for one, _ in pairs) else float("inf")


def seconds_of(step: Callable[[], object], scale: Scale, least: float, warm_up: int = 2) -> list[float]:
    """Of each call, until three of them and ``least`` seconds are over."""
    for _ in range(warm_up):
        step()
    scale.wait()
    times: list[float] = []
    while len(times) < 3 or sum(times) < least:
        began = time.perf_counter()
        step()
        scale.wait()
        times.append(time.perf_counter() - began)
    return times
