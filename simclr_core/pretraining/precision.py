"""Reduced precision that is tested before it is used: autocast's type, chosen at the start of a run.

    precision = choose_precision("bfloat16", network, views, member, backward)

Wrong and slow half-precision kernels exist for single shapes on single processors (pytorch#163347, #169688, #183815).
So every kind of layer is computed in both precisions on a real batch, forwards and backwards, and compared. The whole
network's gradient would not be a test: behind fifty batch normalizations with fresh weights and a small batch, the
gradient of a ResNet-50 in healthy bfloat16 has a cosine of 0.1 with that in float32, for rounding is amplified, not
wrong.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from simclr_core.launch import Member
from simclr_core.loss.objective import buffers_kept
from simclr_core.machine.devices import resolve_precision
from simclr_core.pretraining.choices import Choice, first_fault

LAYER_TOLERANCE = 0.02  # relative error of a layer's output and gradients; 0.007 in nine families of torchvision
LOSS_TOLERANCE = 0.25  # relative; a gross check of what is not a layer: attention, pooling, normalization
TEST_IMAGES = 64  # of the batch: float32 may have no room for all of it

logger = logging.getLogger(__name__)


def choose_precision(
    name: str, network: nn.Module, views: Tensor, member: Member, backward: Callable[[Tensor, torch.dtype], Tensor]
) -> Choice:
    """The self-test: ``name`` resolved, or "float32" and why.

    A wrong result on any process makes all of them fall back. Slowness never does, so that nothing depends on how busy
    the machine was: on a processor it is worth a warning, and on a GPU these few images do not tell. ``network`` is
    left as it was.

    Args:
        views: a real batch, float32 [2n, 3, s, s]; at most 64 images of it are used.
        backward: runs the forward and backward pass over such views in a type, and returns the loss.
    """
    wanted = resolve_precision(name, member.device, scales_loss=True)
    if wanted == torch.float32:
        return Choice("float32")
    short = str(wanted).removeprefix("torch.")
    few = torch.cat([half[:TEST_IMAGES] for half in views.chunk(2)]).contiguous(memory_format=torch.channels_last)
    with unchanged(network):
        loss, seconds = _timed(backward, few, torch.float32)
        reduced, reduced_seconds = _timed(backward, few, wanted)
        fault = _loss_fault(loss, reduced) or layer_fault(network, few, wanted)
    fault = first_fault(fault, member)
    if fault is not None:
        return Choice("float32", f"{short} gives wrong numbers here: {fault}")
    if reduced_seconds >= seconds and member.device.type == "cpu":
        logger.warning("%s takes %.1f times as long as float32 here", short, reduced_seconds / seconds)
    return Choice(short)


def layer_fault(network: nn.Module, views: Tensor, dtype: torch.dtype) -> str | None:
    """The first convolution or linear layer that ``dtype`` computes wrongly; None when all are within the tolerance.

    Each kind of layer (equal settings, equal input shape) is tried once, on what reaches it of ``views`` in float32.
    """
    faults: list[str] = []
    tried: set[str] = set()

    def compare(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        kind = f"{layer} on {list(inputs[0].shape)}"
        if kind not in tried:
            tried.add(kind)
            error = _layer_error(layer, inputs[0], dtype)
            if not error <= LAYER_TOLERANCE:  # written so that NaN is a fault
                faults.append(f"{kind} is off by {error:.2g} of its norm")

    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_pre_hook(compare) for layer in layers]
    try:
        with torch.no_grad():
            network(views)
    finally:
        for hook in hooks:
            hook.remove()
    return faults[0] if faults else None


class LossScaler:
    """For float16, whose gradients vanish below 6e-8: a multiple of the loss is back-propagated, doubled while it can
    be, halved when a gradient overflows (Micikevicius et al. 2018). That step is left out. Other types pass through.

    ``skipped`` counts the steps left out.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        self.skipped = 0

    def scaled(self, loss: Tensor) -> Tensor:
        """What is back-propagated in its place."""
        multiple: Tensor = self._scaler.scale(loss)
        return multiple

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """The gradients become those of the loss itself; an overflow stays infinite."""
        self._scaler.unscale_(optimizer)

    def multiple(self, loss: Tensor) -> Tensor:
        """By what ``scaled`` multiplies now: a number on the device, in the type of ``loss``."""
        return self.scaled(torch.ones_like(loss))

    def skips(self, gradient_norm: float, multiple: float) -> bool:
        """Whether ``step`` leaves out a step with this norm and multiple: an overflow that a smaller multiple may cure.
        Counts it."""
        skipped = not math.isfinite(gradient_norm) and multiple > 1
        self.skipped += skipped
        return skipped

    def step(self, optimizer: torch.optim.Optimizer, left_out: Tensor | None = None) -> None:
        """``left_out``, for fused optimizers on a GPU: 1 for a step that is to change no weight; never read back.
        Of float16 the scaler itself has it."""
        if left_out is not None and not self._scaler.is_enabled():
            optimizer.found_inf = left_out  # type: ignore[attr-defined]
        self._scaler.step(optimizer)
        self._scaler.update()

    def state(self) -> dict[str, float]:
        return {**self._scaler.state_dict(), "skipped": self.skipped}

    def restore(self, state: Mapping[str, float]) -> None:
        """Take over what ``state`` gave; nothing at all at the start of a run."""
        if state:
            self.skipped = int(state["skipped"])
            self._scaler.load_state_dict({name: value for name, value in state.items() if name != "skipped"})


@contextmanager
def unchanged(network: nn.Module) -> Iterator[None]:
    """Inside, ``network`` may be run and back-propagated; after, buffers are as before, and gradients are gone."""
    with buffers_kept(network):
        try:
            yield
        finally:
            network.zero_grad()


def _timed(backward: Callable[[Tensor, torch.dtype], Tensor], views: Tensor, dtype: torch.dtype) -> tuple[float, float]:
    """The loss, and the seconds of the second pass: the first one loads and chooses kernels."""
    loss = float(backward(views, dtype))
    began = time.perf_counter()
    float(backward(views, dtype))  # a number: a GPU has finished
    return loss, time.perf_counter() - began


def _loss_fault(loss: float, reduced: float) -> str | None:
    if math.isfinite(loss) and not abs(reduced - loss) <= LOSS_TOLERANCE * abs(loss):
        return f"the loss of a batch is {reduced:.4g}, in float32 {loss:.4g}"
    return None


def _layer_error(layer: nn.Module, inputs: Tensor, dtype: torch.dtype) -> float:
    """Largest relative error of output, input gradient and weight gradient."""
    exact = _output_and_gradients(layer, inputs, torch.float32)
    reduced = _output_and_gradients(layer, inputs, dtype)
    pairs = zip(exact, reduced, strict=True)
    errors = [(found.float() - right).norm() / right.norm().clamp_min(1e-30) for right, found in pairs]
    return float(torch.stack(errors).nan_to_num(math.inf).max())


def _output_and_gradients(layer: nn.Module, inputs: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """The gradients are those of half the output's squared norm over the root of its rows, which fits in float16."""
    leaf = inputs.detach().float().requires_grad_()
    with torch.enable_grad(), torch.autocast(inputs.device.type, dtype, enabled=dtype != torch.float32):
        output: Tensor = layer.forward(leaf)  # not the call: it would run the hook that asks
    weight: Tensor = layer.weight  # type: ignore[assignment]
    rows = output.numel() / len(weight)
    return output.detach(), *torch.autograd.grad(output, (leaf, weight), output.detach() / math.sqrt(rows))
