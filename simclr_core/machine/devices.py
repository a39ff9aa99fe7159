"""Where a process computes. A machine that has a GPU which cannot be used is refused, rather than its processors taken.

What this page calls CUDA is also ROCm, which torch gives the same names.
"""

import ctypes
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from simclr_core.errors import DeviceError, DeviceMemoryError, LaunchError
from simclr_core.machine.settings import DEVICE, wanted_device

DEVICE_FILES = Path("/dev")
DRIVER_FILE = Path("/proc/driver/nvidia/version")
LIBRARY = "libnvidia-ml.so.1"
# CUDA 11 to 13: the first driver for the toolkit's major version, from NVIDIA's notes on compatibility.
LEAST_DRIVER = {"11": "450", "12": "525", "13": "580"}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TENSOR_CORES = (7, 0)  # the compute capability since which GPUs have them; before it float16 is seldom faster
HIDDEN = ("", "-1", "NoDevFiles")  # what hides all GPUs: the last is Slurm's


def choose_device(local_rank: int = 0) -> torch.device:
    """What ``SIMCLR_DEVICE`` asks for; ``auto`` is a GPU if there is one. Of several, the one of this local rank.

    Raises:
        DeviceError: a GPU is there, or asked for, and CUDA does not start.
        LaunchError: there are more processes on this machine than GPUs.
    """
    wanted = wanted_device()
    if wanted == "cpu" or (wanted == "auto" and os.environ.get("CUDA_VISIBLE_DEVICES") in HIDDEN):
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda", _index(local_rank, torch.cuda.device_count()))
    gpu = find_gpu()
    if gpu is not None:
        raise DeviceError(f"{gpu} is there, but CUDA does not start: {describe_versions()}; {_advice()}")
    if wanted == "cuda":
        raise DeviceError(
            f"{DEVICE}=cuda, but this machine has no GPU that can be seen: {describe_versions()}; "
            f"give the process a GPU, or set {DEVICE}=auto"
        )
    return torch.device("cpu")


def own_device() -> torch.device:
    """Where this process computes: on the GPU with which it has joined a group, or as ``choose_device`` says.

    Raises:
        DeviceError, LaunchError: as ``choose_device``.
    """
    device = choose_device()
    if device.type == "cuda" and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return torch.device("cuda", torch.cuda.current_device())
    return device


def resolve_precision(name: str, device: torch.device, scales_loss: bool = False) -> torch.dtype:
    """What autocast computes in: "auto" is bfloat16 on GPUs that have it, and float32 on CPUs, where it rarely pays.

    Where the loss is scaled, without which gradients of float16 vanish, "auto" is float16 on older GPUs whose tensor
    cores have it and not bfloat16 (V100, T4).
    """
    if name != "auto":
        return DTYPES[name]
    if device.type != "cuda":
        return torch.float32
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    is_fast = scales_loss and torch.cuda.get_device_capability(device) >= TENSOR_CORES
    return torch.float16 if is_fast else torch.float32


def usable_gpus() -> int:
    """How many processes of this machine can have a GPU each; 0 where the processors compute.

    Raises:
        DeviceError: as ``choose_device``.
    """
    return torch.cuda.device_count() if choose_device().type == "cuda" else 0


def describe_versions() -> str:
    """Driver and wheel, as in ``driver 535.104.05, torch 2.14.1+cu130 for CUDA 13.0, which needs driver 580``."""
    if torch.version.hip:
        return f"torch {torch.__version__} for ROCm {torch.version.hip}"
    driver = driver_version()
    shown = f"driver {driver}" if driver else "no driver of NVIDIA"
    if torch.version.cuda is None:
        return f"{shown}, torch {torch.__version__} without CUDA"
    least = LEAST_DRIVER.get(torch.version.cuda.partition(".")[0])
    needs = f", which needs driver {least} or newer" if least else ""
    return f"{shown}, torch {torch.__version__} for CUDA {torch.version.cuda}{needs}"


def find_gpu() -> str | None:
    """What shows that this machine has a GPU of NVIDIA, whether or not torch can use it."""
    files = sorted(path for path in DEVICE_FILES.glob("nvidia*") if path.name.removeprefix("nvidia").isdecimal())
    if files:
        return str(files[0])
    count, _ = _ask_driver()
    return f"a GPU that the driver names ({count} in all)" if count else None


def driver_version() -> str | None:
    """Of NVIDIA's kernel driver, None where it is not loaded."""
    try:
        found = re.search(r"Kernel Module\s+(?:for \S+\s+)?([\d.]+)", DRIVER_FILE.read_text(encoding="utf-8"))
    except OSError:
        found = None
    return found[1] if found else _ask_driver()[1]


@contextmanager
def memory_explained(advice: str) -> Iterator[None]:
    """Inside, a device or machine that has no memory left gives an error that says so, with ``advice``.

    Raises:
        DeviceMemoryError: instead of torch's own error.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DeviceMemoryError(f"the GPU has no memory left ({_memory()}); {advice}") from error
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # of torch's allocator for processors, which has no class
            raise
        raise DeviceMemoryError(f"this machine has no memory left; {advice}") from error


def _index(local_rank: int, visible: int) -> int:
    """A scheduler may show each process its own GPU alone; otherwise all of a machine see all."""
    if visible == 1:
        return 0
    if local_rank < visible:
        return local_rank
    raise LaunchError(
        f"this is process {local_rank + 1} on its machine, but {visible} GPUs are visible; start at most {visible} "
        "processes for each machine, or show each process its own GPU"
    )


def _advice() -> str:
    if torch.version.cuda is None:
        return f"install a torch that is built for CUDA, or set {DEVICE}=cpu to compute on the processors"
    return (
        "update the driver, or install a torch that is built for it, as `nvidia-smi` and pytorch.org say; "
        f"{DEVICE}=cpu computes on the processors"
    )


def _ask_driver() -> tuple[int, str | None]:
    """The number of GPUs and the version of the driver, from NVML; 0 and None where it does not answer."""
    try:
        library = ctypes.CDLL(LIBRARY)
        if library.nvmlInit_v2() != 0:
            return 0, None
    except (OSError, AttributeError):
        return 0, None
    count, version = ctypes.c_uint(), ctypes.create_string_buffer(80)
    library.nvmlDeviceGetCount_v2(ctypes.byref(count))
    library.nvmlSystemGetDriverVersion(version, len(version))
    library.nvmlShutdown()
    return count.value, version.value.decode() or None


def _memory() -> str:
    free, total = torch.cuda.mem_get_info()
    held = torch.cuda.memory_allocated()
    return f"{total / 1e9:.0f} GB, of which {free / 1e9:.1f} are free and {held / 1e9:.1f} are this process's tensors"
