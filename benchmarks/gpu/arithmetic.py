"""Forward and backward pass of every part of a step, on the device in float32, against float64 on the CPU.

Rounding alone makes an error, which differs from part to part: the same part in float32 on the CPU shows how large. The
device may have ten times that error, since it sums in another order; a wrong kernel has thousands.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Literal

import torch
from torch import Tensor, nn

from benchmarks.gpu.scale import Result, Scale, error, require
from simclr_core.lars import LARS, parameter_groups
from simclr_core.loss.nt_xent import LOSSES
from simclr_core.loss.objective import InBatch

TIMES, LEAST = 10.0, 1e-6  # the error of the CPU in float32, and what is small enough in any case
LEVELS = 1 / 255
TEMPERATURE = 0.1

Computed = list[Tensor]
Part = Callable[[torch.device, torch.dtype], Computed]


def check_losses(scale: Scale) -> Result:
    """Loss and gradient of nt_xent, dcl and info_nce; of the first also by the plain formula over all pairs."""
    n, d = scale.choose(1024, 24), scale.choose(128, 8)
    found: Result = {name: _compared(scale, lambda *where, name=name: _loss(name, n, d, *where)) for name in LOSSES}
    dense = _dense(*_projections(n, d, torch.device("cpu"), torch.float64))
    off = error(_loss("nt_xent", n, d, torch.device("cpu"), torch.float64), dense)
    require(off < 1e-10, f"nt_xent in float64 is off by {off:.2g} from the plain formula")
    return found | {"formula": off}


def check_encoders(scale: Scale) -> Result:
    """Output and gradients of encoder and projection head, in training mode."""
    from simclr_core.model.encoder import build_encoder

    names = {"resnet10": 32} if scale.tiny else {"resnet18": 64, "resnet50": 96, "vit_b_16": 64, "convnext_tiny": 64}
    found: Result = {}
    for name, side in names.items():
        torch.manual_seed(0)
        width = 0.125 if scale.tiny else 1.0
        encoder = build_encoder(name, width, image_size=side)
        found[name] = _compared(scale, _network(_with_head(encoder, encoder.feature_dim), scale.choose(16, 4), side))
    return found


def check_optimizers(scale: Scale) -> Result:
    """Weights after three steps."""
    makers: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
        "lars": lambda network: LARS(parameter_groups([network], 1e-4), lr=0.5),
        "sgd": lambda network: torch.optim.SGD(parameter_groups([network], 1e-4), lr=0.1, momentum=0.9),
        "adamw": lambda network: torch.optim.AdamW(parameter_groups([network], 1e-4), lr=1e-3),
    }
    width = scale.choose(512, 16)
    return {name: _compared(scale, _stepped(make, width)) for name, make in makers.items()}


def check_left_out_steps(scale: Scale) -> Result:
    """Fused optimizers change no weight in a step that is not finite, also in the first one."""
    from simclr_core.pretraining.pretrain import with_velocities

    makers: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
        "lars": lambda network: LARS(parameter_groups([network], 1e-4), lr=0.5, fused=True),
        "sgd": lambda network: with_velocities(torch.optim.SGD(network.parameters(), 0.1, 0.9, fused=True)),
        "adamw": lambda network: torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True),
    }
    for name, make in makers.items():
        with_bad, without = (_fused_steps(make, numbers, scale.device) for numbers in ((torch.nan, 1.0), (1.0,)))
        same = all(map(torch.equal, with_bad, without))
        require(same, f"{name} is not the same with and without a step that is not finite")
    return dict.fromkeys(makers, "same")


def _fused_steps(
    make: Callable[[nn.Module], torch.optim.Optimizer], numbers: Sequence[float], device: torch.device
) -> Computed:
    torch.manual_seed(0)
    network = nn.Linear(64, 64).to(device)
    optimizer = make(network)
    for number in numbers:
        for weight in network.parameters():
            weight.grad = torch.full_like(weight, number)
        optimizer.found_inf = torch.full((), float(number != number), device=device)  # type: ignore[attr-defined]
        optimizer.step()
    return [weight.detach() for weight in network.parameters()]


def check_views(scale: Scale) -> Result:
    """Views of the device against those of the CPU: of ``exact`` none may differ by a level of 255 anywhere."""
    found: Result = {}
    modes: tuple[Literal["exact", "fused"], ...] = ("exact", "fused")
    for mode in modes:
        own, other = (_views(mode, scale, device) for device in (scale.device, torch.device("cpu")))
        difference = (own.cpu() - other).abs()
        found[mode] = {"levels": float(difference.max()) / LEVELS, "mean_levels": float(difference.mean()) / LEVELS}
        require(bool(own.isfinite().all()), f"views of mode {mode} are not finite")
    require(found["exact"]["levels"] < 1, f"exact views differ by {found['exact']['levels']:.2g} levels from the CPU's")
    return found


def check_gradient_caching(scale: Scale) -> Result:
    """Micro-batches give the gradient of the whole batch. Without BatchNorm: its statistics would differ."""
    images, side = scale.choose(64, 8), scale.choose(64, 8)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 16, 3), nn.GroupNorm(4, 16), nn.GELU(), nn.AdaptiveAvgPool2d(4), nn.Flatten())
    network = nn.Sequential(network, nn.Linear(256, 32)).to(scale.device)
    views = torch.randn(2 * images, 3, side, side).to(scale.device)
    gradients = []
    for micro_batch in (None, images // 4):
        network.zero_grad()
        InBatch(LOSSES["nt_xent"], TEMPERATURE, torch.float32, micro_batch).backward(network, views)
        gradients.append([weight.grad.clone() for weight in network.parameters() if weight.grad is not None])
    off = error(*gradients)
    require(off < 1e-4, f"the gradient from micro-batches is off by {off:.2g}")
    return {"error": off}


def _compared(scale: Scale, part: Part) -> Result:
    """The error of the device, and that of the CPU in float32, each against float64."""
    cpu = torch.device("cpu")
    right = part(cpu, torch.float64)
    with _without_tf32():
        found = error(part(scale.device, torch.float32), right)
    rounding = error(part(cpu, torch.float32), right)
    require(
        found <= max(TIMES * rounding, LEAST), f"off by {found:.2g}, where float32 on the CPU is off by {rounding:.2g}"
    )
    return {"error": found, "error_of_cpu": rounding}


def _projections(n: int, d: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    first = torch.randn(n, d, generator=torch.Generator().manual_seed(0))
    second = first + torch.randn(n, d, generator=torch.Generator().manual_seed(1))
    return first.to(device, dtype).requires_grad_(), second.to(device, dtype).requires_grad_()


def _loss(name: str, n: int, d: int, device: torch.device, dtype: torch.dtype) -> Computed:
    first, second = _projections(n, d, device, dtype)
    loss = LOSSES[name](first, second, TEMPERATURE)
    return [loss, *torch.autograd.grad(loss, (first, second))]


def _dense(first: Tensor, second: Tensor) -> Computed:
    """Equation 1 of the paper, over a matrix of all pairs."""
    rows = nn.functional.normalize(torch.cat([first, second]), dim=1)
    scores = (rows @ rows.T / TEMPERATURE).masked_fill(torch.eye(len(rows), dtype=torch.bool), -torch.inf)
    positives = torch.arange(len(rows)).roll(len(first))
    loss = nn.functional.cross_entropy(scores, positives)
    return [loss, *torch.autograd.grad(loss, (first, second))]


def _with_head(encoder: nn.Module, features: int) -> nn.Module:
    from simclr_core.model.projection_head import build_projection_head

    return nn.Sequential(encoder, build_projection_head(features, width=64, dim=16))


def _network(network: nn.Module, images: int, side: int) -> Part:
    views = torch.randn(images, 3, side, side, generator=torch.Generator().manual_seed(2))

    def run(device: torch.device, dtype: torch.dtype) -> Computed:
        own = deepcopy(network).to(device, dtype).train()
        for module in own.modules():  # what draws would draw otherwise on another device
            if isinstance(module, nn.Dropout) or type(module).__name__ == "StochasticDepth":
                module.eval()
        z = own(views.to(device, dtype))
        torch.autograd.backward(z.square().sum() / len(z))
        return [z, torch.cat([weight.grad.flatten() for weight in own.parameters() if weight.grad is not None])]

    return run


def _stepped(make: Callable[[nn.Module], torch.optim.Optimizer], width: int) -> Part:
    def run(device: torch.device, dtype: torch.dtype) -> Computed:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width)).to(device, dtype)
        optimizer, inputs = make(network), torch.randn(8, width).to(device, dtype)
        for _ in range(3):
            optimizer.zero_grad()
            torch.autograd.backward(network(inputs).square().mean())
            optimizer.step()
        return list(network.parameters())

    return run


def _views(mode: Literal["exact", "fused"], scale: Scale, device: torch.device) -> Tensor:
    from simclr_core.augmentation.augmentations import Augmentation

    n, side = scale.choose(32, 6), scale.choose(256, 40)
    images = torch.randint(256, (n, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    smooth = nn.functional.avg_pool2d(images.float(), 5, 1, 2).to(torch.uint8)  # not noise, in which any shift is large
    sizes, samples = torch.full((n, 2), side), torch.arange(n)
    augmentation = Augmentation(scale.choose(224, 32), mode=mode, solarize=0.0)
    return augmentation.view(smooth.to(device), sizes, 0, 0, samples, 0)


@contextmanager
def _without_tf32() -> Iterator[None]:
    """TF32 has 10 bits; what is checked here is float32."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


CHECKS: Sequence[Callable[[Scale], Result]] = (
    check_losses,
    check_optimizers,
    check_left_out_steps,
    check_encoders,
    check_views,
    check_gradient_caching,
)
