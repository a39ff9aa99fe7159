"""Whole runs: an interrupted training continues to the same bytes, other precisions and compiled networks agree, memory
that runs out is explained, and several processes compute what one does."""

import io
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.gpu.scale import Result, Scale, error, require, seconds_of
from simclr_core.errors import DeviceMemoryError
from simclr_core.loss.nt_xent import LOSSES
from simclr_core.loss.objective import InBatch
from simclr_core.machine.devices import memory_explained
from simclr_core.machine.settings import DEVICE

TEMPERATURE = 0.1
HELD = 0.05  # the part of a GPU that is left to a process whose memory is to run out


def check_resume(scale: Scale) -> Result:
    """A training that fails at a step and continues, against one that does not fail: every byte that it publishes."""
    with TemporaryDirectory(prefix="gpu-check-") as folder, _on(scale):
        whole, broken = Path(folder, "whole"), Path(folder, "broken")
        write_workspace(whole, scale)
        shutil.copytree(whole, broken)
        seconds = _pretrain(whole)
        with _failing("pretrain.step:raise@8"):
            require(_pretrain(broken) < 0, "the training did not fail where it had to")
        _pretrain(broken)
        own, other = (_bytes(one) for one in (whole, broken))
        different = [name for name in own if own[name] != other.get(name)]
        require(not different, f"other bytes after an interruption: {', '.join(different)}")
        return {"files": len(own), "seconds": seconds}


def check_precision(scale: Scale) -> Result:
    """The self-test of pretraining, which compares every kind of layer with float32; and the seconds of a pass."""
    from simclr_core.pretraining.precision import LAYER_TOLERANCE, layer_fault

    network, views = network_and_views(scale)
    found: Result = {"float32": _pass(scale, network, views, torch.float32)}
    for dtype in (torch.bfloat16, torch.float16):
        fault = layer_fault(network, views, dtype)
        require(fault is None or scale.device.type == "cpu", f"{dtype} has an error above {LAYER_TOLERANCE}: {fault}")
        found[str(dtype).removeprefix("torch.")] = {**_pass(scale, network, views, dtype), "fault": fault}
    return found


def check_compile(scale: Scale) -> Result:
    """Loss and gradient of the compiled network, and how much faster it is."""
    network, views = network_and_views(scale)
    eager = _gradients(network, network, views)
    backend = "aot_eager" if scale.tiny else "inductor"
    compiled: nn.Module = torch.compile(network, backend=backend)  # type: ignore[assignment]  # of a module one
    off = error(_gradients(network, compiled, views), eager)
    require(off < 0.02, f"loss and gradient of the compiled network are off by {off:.2g}")
    times = {
        name: _pass(scale, one, views, torch.float32) for name, one in (("eager", network), ("compiled", compiled))
    }
    return {"error": off, **times}


def check_memory_message(scale: Scale) -> Result:
    """Memory that runs out in a step is an error with advice."""
    try:
        with memory_explained("lower pretrain.batch_size"):
            if scale.device.type == "cuda":
                torch.cuda.set_per_process_memory_fraction(HELD, scale.device)
            torch.empty(2**60 if scale.device.type == "cpu" else 2**40, dtype=torch.uint8, device=scale.device)
    except DeviceMemoryError as explained:
        return {"message": str(explained)}
    finally:
        if scale.device.type == "cuda":
            torch.cuda.set_per_process_memory_fraction(1.0, scale.device)
            torch.cuda.empty_cache()
    require(False, "memory did not run out")
    return {}


def check_processes(scale: Scale) -> Result:
    """Loss and gradient of all GPUs together, or of two processes, against those of one: the batch is the same."""
    count = torch.cuda.device_count() if scale.device.type == "cuda" else 2
    if count < 2:
        return {"skipped": "one GPU"}
    images = scale.choose(32, 4) * count
    with TemporaryDirectory(prefix="gpu-check-") as folder, _on(scale):
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(count)}
        address["GLOO_SOCKET_IFNAME"] = "lo"
        arguments = [(rank, address, folder, images, scale.tiny) for rank in range(count)]
        with get_context("spawn").Pool(count) as processes:
            processes.starmap(_one_of_several, arguments, chunksize=1)
        together = [torch.load(Path(folder, f"{rank}.pt")) for rank in range(count)]
    alone = _step_of(scale.device, _shared_views(images, scale.tiny), scale.tiny, 1)
    off = max(error(one, alone) for one in together)
    require(off < 1e-3, f"the gradient of {count} processes is off by {off:.2g}")
    return {"processes": count, "error": off}


def network_and_views(scale: Scale) -> tuple[nn.Module, Tensor]:
    from simclr_core.model.encoder import build_encoder
    from simclr_core.model.projection_head import build_projection_head

    torch.manual_seed(0)
    name, width = ("resnet10", 0.125) if scale.tiny else ("resnet50", 1.0)
    encoder = build_encoder(name, width)
    network = nn.Sequential(encoder, build_projection_head(encoder.feature_dim)).to(scale.device)
    side, images = scale.choose(224, 32), scale.choose(32, 4)
    views = torch.randn(2 * images, 3, side, side, device=scale.device)
    return network.to(memory_format=torch.channels_last), views.contiguous(memory_format=torch.channels_last)


def write_workspace(workspace: Path, scale: Scale, extension: str = "png") -> None:
    """Images of random shapes on a ground, prepared, with the parameters of a short training and its start."""
    import numpy as np
    import yaml
    from PIL import Image

    from simclr_core.data.shard_writing import write_shards
    from simclr_core.data.shards import DatasetCard, Sample, write_card
    from simclr_core.pretraining import initial

    side, count = scale.choose(64, 16), scale.choose(512, 64)
    prepared = workspace / "data" / "prepared"
    for split, images in (("train", count), ("test", 16)):
        random = np.random.default_rng(images)
        samples = []
        for number in range(images):
            pixels = random.integers(0, 90, (side, side, 3), np.uint8)
            pixels[side // 4 : side // 2, side // 4 :] = random.integers(140, 255, 3)
            content = io.BytesIO()
            options = {"quality": 95, "subsampling": "4:4:4"} if extension == "jpg" else {}  # as prepare writes them
            Image.fromarray(pixels).save(content, {"jpg": "JPEG"}.get(extension, extension.upper()), **options)
            samples.append(Sample(sha256(content.getvalue()).hexdigest(), extension, content.getvalue(), number % 2))
        write_shards(prepared / split, [samples], max_bytes=2**24)
    counts = {"train": count, "train_labelled": count, "test": 16}
    write_card(prepared, DatasetCard(("a", "b"), (0.4,) * 3, (0.3,) * 3, side, side, counts, "0" * 64))
    (workspace / "params.yaml").write_text(yaml.safe_dump(_parameters(scale, side)), encoding="utf-8")
    initial.run(workspace)


def _parameters(scale: Scale, side: int) -> dict[str, Any]:
    small = {"name": "resnet10", "width": 0.125, "stem": "compact"}
    encoder = small if scale.tiny else {"name": "resnet18", "stem": "cifar"}
    training = {"batch_size": scale.choose(64, 16), "epochs": 3, "warmup_epochs": 0, "checkpoint_every_steps": 3}
    return {"pretrain": {"encoder": encoder, "image_size": side, "monitor_images": 16, **training}, "watch": {}}


def _pretrain(workspace: Path) -> float:
    """Seconds; negative where it failed at a failpoint."""
    from simclr_core.pretraining import pretrain

    began = perf_counter()
    try:
        pretrain.run(workspace)
    except RuntimeError as failed:
        if "failpoint" not in str(failed):
            raise
        return -1.0
    return perf_counter() - began


def _bytes(workspace: Path) -> dict[str, bytes]:
    files = [path for folder in ("models/pretrained", "reports") for path in (workspace / folder).rglob("*")]
    return {path.relative_to(workspace).as_posix(): path.read_bytes() for path in files if path.is_file()}


def _pass(scale: Scale, network: nn.Module, views: Tensor, dtype: torch.dtype) -> Result:
    objective = InBatch(LOSSES["nt_xent"], TEMPERATURE, dtype)
    loss = float(objective.backward(network, views).loss)
    times = seconds_of(lambda: objective.backward(network, views), scale, 0.0 if scale.tiny else 2.0)
    return {"loss": loss, "seconds": sorted(times)[len(times) // 2]}


def _gradients(network: nn.Module, model: nn.Module, views: Tensor) -> list[Tensor]:
    network.zero_grad()
    outcome = InBatch(LOSSES["nt_xent"], TEMPERATURE, torch.float32).backward(model, views)
    parts = [weight.grad.flatten() for weight in network.parameters() if weight.grad is not None]
    return [outcome.loss, torch.cat(parts).clone()]


class Shared(NamedTuple):
    """What all processes are given alike."""

    facts: Mapping[str, object]


def _one_of_several(rank: int, address: dict[str, str], folder: str, images: int, tiny: bool) -> None:
    from simclr_core import launch

    os.environ.update(address, RANK=str(rank), LOCAL_RANK=str(rank))
    with launch.member("gpu_check", lambda _: Shared({"images": images, "tiny": tiny})) as (member, _):
        share = images // member.size
        views = _shared_views(images, tiny)
        own = torch.cat([half[rank * share : (rank + 1) * share] for half in views.chunk(2)])
        found = [tensor.cpu() for tensor in _step_of(member.device, own, tiny, member.size)]
    torch.save(found, Path(folder, f"{rank}.pt"))


def _shared_views(images: int, tiny: bool) -> Tensor:
    side = 8 if tiny else 64
    return torch.randn(2 * images, 3, side, side, generator=torch.Generator().manual_seed(4))


def _step_of(device: torch.device, views: Tensor, tiny: bool, processes: int) -> list[Tensor]:
    """Loss and gradient, with statistics of BatchNorm and negatives of the whole batch."""
    from simclr_core.model.batch_norm import synchronize
    from simclr_core.torch_calls import data_parallel

    torch.manual_seed(0)
    width = 8 if tiny else 64
    body = nn.Sequential(
        nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    network: nn.Module = nn.Sequential(body, nn.Linear(width, 16), nn.BatchNorm1d(16)).to(device)
    model = data_parallel(synchronize(network)) if processes > 1 else network
    outcome = InBatch(LOSSES["nt_xent"], TEMPERATURE, torch.float32).backward(model, views.to(device))
    parts = [weight.grad.flatten() for weight in network.parameters() if weight.grad is not None]
    return [outcome.loss, torch.cat(parts)]


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def _on(scale: Scale) -> Iterator[None]:
    """The stages choose their device by the environment."""
    with _variable(DEVICE, scale.device.type):
        yield


@contextmanager
def _failing(place: str) -> Iterator[None]:
    from deploy.failpoint import VARIABLE

    with _variable(VARIABLE, place):
        yield


@contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


CHECKS: Sequence[Callable[[Scale], Result]] = (
    check_resume,
    check_precision,
    check_compile,
    check_memory_message,
    check_processes,
)
