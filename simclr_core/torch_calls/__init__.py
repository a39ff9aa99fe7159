"""Calls that torch named otherwise in one of the versions that we support, from 2.8 on: one name for all of them.

A call that all of these versions have does not belong here, nor does anything that knows a network or a stage.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from inspect import signature
from types import FrameType
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.elastic.multiprocessing import api
from torch.distributed.launcher.api import LaunchConfig
from torch.nn.parallel import DistributedDataParallel

HANDLER = "_terminate_process_handler"
SYNC_BUFFERS = "forward_sync_buffers"  # broadcast_buffers before 2.14, which warns of that name


def all_gather_single(output: Tensor, given: Tensor) -> None:
    """Gather the tensors of all ranks, along the first dimension, into one; all ranks call this at once."""
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    gather(output, given)


def data_parallel(network: nn.Module) -> DistributedDataParallel:
    """The network with averaged gradients, whose buffers each rank keeps as they are."""
    named = SYNC_BUFFERS in signature(DistributedDataParallel).parameters
    buffers: dict[str, Any] = {SYNC_BUFFERS if named else "broadcast_buffers": False}
    return DistributedDataParallel(network, gradient_as_bucket_view=True, **buffers)


def shutdown_within(seconds: int) -> dict[str, Any]:
    """The option of ``LaunchConfig`` for the time from SIGTERM to SIGKILL; older launchers wait 30 seconds, always."""
    return {"shutdown_timeout": seconds} if "shutdown_timeout" in {field.name for field in fields(LaunchConfig)} else {}


@contextmanager
def handling_signals_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Inside, torch's launcher has this handler for signals, in place of one that raises at each of them.

    No version has a public way; it installs the handler when it starts the processes, over any that is there. A version
    without this name keeps its own handler.
    """
    own = getattr(api, HANDLER, None)
    if own is not None:
        setattr(api, HANDLER, handler)
    try:
        yield
    finally:
        if own is not None:
            setattr(api, HANDLER, own)
