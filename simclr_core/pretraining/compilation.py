"""torch.compile for the training step, where there is a compiler and it works.

The weights stay in the network that was given, under their own names. Fused kernels round differently: the last digits
of a compiled run are not those of an eager one. Its own are the same after every interruption, for the same graph is
compiled for the same shape of batch. Never run on a GPU here.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from simclr_core.errors import CompileError
from simclr_core.launch import Member
from simclr_core.pretraining.choices import Choice, first_fault, settle
from simclr_core.pretraining.precision import unchanged


def compile_model(
    model: nn.Module, folder: Path, member: Member, backward: Callable[[nn.Module], Tensor]
) -> tuple[nn.Module, Choice]:
    """``model`` compiled and warmed up, or as it is, with the reason; no weight or statistic has changed.

    Args:
        folder: the run directory. A run that began compiled continues compiled.
        backward: a forward and backward pass over a batch such as they all will be.

    Raises:
        CompileError: the run was compiled before it was interrupted, and compiling fails now.
    """
    candidate = torch_compile(model)
    fault = first_fault(_fault(candidate, backward), member)
    now = Choice("compiled") if fault is None else Choice("eager", f"torch.compile failed: {fault}")
    choice = settle(folder, "compile", member, lambda: now)
    if choice.value == "eager":
        return model, choice
    if fault is not None:
        raise CompileError(
            f"{folder}: this run was compiled until it was interrupted, and torch.compile fails now: {fault}; fix "
            "that, or set pretrain.compile: false and begin again"
        )
    return candidate, choice


def torch_compile(model: nn.Module) -> nn.Module:
    module: nn.Module = torch.compile(model)  # type: ignore[assignment]  # of a module it makes a module
    return module


def _fault(candidate: nn.Module, backward: Callable[[nn.Module], Tensor]) -> str | None:
    with unchanged(candidate):
        try:
            backward(candidate)
        except RuntimeError as error:  # root of what torch's compilers raise
            return " ".join(str(error).split("\n")[:2]) or type(error).__name__  # the backend, and what it said
    return None
