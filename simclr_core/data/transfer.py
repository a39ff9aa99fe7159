"""From the memory of the host to a device: nothing here waits for a copy."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ALIGNMENT = 8  # bytes
DTYPES = {np.dtype(np.int64): torch.int64, np.dtype(np.float32): torch.float32}


def host_buffer(count: int, dtype: torch.dtype, pinned: bool) -> Tensor:
    """Memory of the host for ``count`` numbers; ``pinned``: where a GPU can copy from without the CPU.

    torch keeps pinned memory for a later buffer, once the copies from it are done.
    """
    return torch.empty(count, dtype=dtype, pin_memory=pinned)


def choose(device: torch.device) -> None:
    """What a thread calls first that works for a GPU: its pinned memory and its streams are then for this one. Every
    thread begins with the first GPU, where each process would otherwise take memory."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def send(arrays: Mapping[str, NDArray[Any]], device: torch.device) -> dict[str, Tensor]:
    """Arrays of int64 and float32 on the device, by name, in one copy."""
    sizes = [-(-array.nbytes // ALIGNMENT) * ALIGNMENT for array in arrays.values()]
    starts = dict(zip(arrays, (np.cumsum(sizes) - sizes).tolist(), strict=True))
    buffer = np.empty(sum(sizes), np.uint8)
    for name, array in arrays.items():
        buffer[starts[name] : starts[name] + array.nbytes].view(array.dtype)[:] = array.reshape(-1)
    here = torch.from_numpy(buffer)
    there = (here.pin_memory() if device.type == "cuda" else here).to(device, non_blocking=True)
    return {
        name: there[starts[name] : starts[name] + array.nbytes].view(DTYPES[array.dtype]).view(array.shape)
        for name, array in arrays.items()
    }
