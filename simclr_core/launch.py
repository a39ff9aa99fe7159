"""One command, any number of processes: a stage runs alone, or once per visible GPU under torch's elastic launcher.

    python -m simclr_core pretrain                        one process, or one per GPU
    SIMCLR_PROCESSES=2 python -m simclr_core pretrain     two processes, gloo on a machine without GPUs
    torchrun --nnodes 4 ... -m simclr_core pretrain       several machines: this module only joins the group

A failed rank ends all of them; to continue is a fresh start of the same command, from the last checkpoint. (torch's
restart in place can hang on gloo.)
"""

import logging
import os
import re
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any, Self, TypeVar

import torch
import torch.distributed
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from deploy.failpoint import failpoint
from deploy.failure import fail
from simclr_core.errors import LaunchError
from simclr_core.parent import die_with
from simclr_core.torch_calls import shutdown_within

PROCESSES = "SIMCLR_PROCESSES"
START_TIMEOUT = 60  # seconds for all processes to find each other
# A dead rank is seen by the launcher within a second; this bounds a hang. The first rank evaluates while others wait.
COLLECTIVE_TIMEOUT = timedelta(minutes=10)
GRACE = 5  # seconds
SHUTDOWN_TIMEOUT = 30  # seconds from SIGTERM to SIGKILL: a step and a checkpoint
RUN_ID = "simclr-"  # and the launcher's process; torch hands it to every process that it starts

Item = TypeVar("Item")


@dataclass(frozen=True)
class Member:
    """This process's place in the group."""

    rank: int
    size: int
    device: torch.device

    def gathered(self, value: Item) -> list[Item]:
        """What every process gives, in the order of the ranks; all of them call this at once."""
        values = [value] * self.size
        if self.size > 1:
            torch.distributed.all_gather_object(values, value)
        return values

    def from_first(self, value: Item) -> Item:
        """What the first process gives, on every process; all of them call this at once."""
        values = [value]
        if self.size > 1:
            torch.distributed.broadcast_object_list(values)
        return values[0]


def processes() -> int:
    """How many processes the stage wants on this machine; 1 for one that was itself started by a launcher."""
    if "RANK" in os.environ:
        return 1
    given = os.environ.get(PROCESSES)
    if given is None:
        return max(1, torch.cuda.device_count())
    if not given.isdecimal() or int(given) < 1:
        raise LaunchError(f"{PROCESSES}={given!r} is not a number of processes; give 1 or more, or leave it out")
    gpus = torch.cuda.device_count()
    if 0 < gpus < int(given):
        raise LaunchError(f"{PROCESSES}={given}, but {gpus} GPUs are visible; give at most {gpus}, or hide the GPUs")
    return int(given)


def launch(count: int, arguments: Sequence[str]) -> int:
    """Run ``python -m simclr_core ARGUMENTS`` in ``count`` processes; returns the exit code for this process.

    Signals are passed on to the processes, which save and end; none outlives this call. What a failed process gave to
    ``reporter.fail`` is printed once.
    """
    logging.disable()  # torch's launcher says in many lines what the failed process says in one; this process ends here
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // count)))
    with TemporaryDirectory(prefix="simclr-launch-") as folder:  # torch would leave its own folder behind
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            logs_specs=DefaultLogsSpecs(log_dir=folder),
            run_id=f"{RUN_ID}{os.getpid()}",
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            rdzv_configs={"timeout": START_TIMEOUT},
            local_addr="localhost",
            max_restarts=0,
            **shutdown_within(SHUTDOWN_TIMEOUT),
        )
        try:
            elastic_launch(config, sys.executable)("-P", "-m", "simclr_core", *arguments)
        except SignalException as stopped:
            return 128 + int(stopped.sigval)
        except ChildFailedError as failed:
            return _exit_code(*failed.get_first_failure())
    return 0


def _exit_code(rank: int, failure: ProcessFailure) -> int:
    """Print why the first process failed, unless it did so itself in a traceback; its exit code as a shell has it."""
    if failure.exitcode < 0:
        name = signal.Signals(-failure.exitcode).name
        message = f"process {rank} was killed by {name}; the same command continues from the last checkpoint"
        return fail(message, 128 - int(failure.exitcode))
    if failure.error_file_data.get("message"):
        return fail(failure.message, int(failure.exitcode))
    return int(failure.exitcode)


@contextmanager
def member() -> Iterator[Member]:
    """Join the group that a launcher started, if one did: NCCL on GPUs, gloo on CPUs."""
    if "RANK" not in os.environ:
        yield Member(0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        return
    die_with(_launcher())
    local_rank = int(os.environ["LOCAL_RANK"])
    device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT)
    failpoint("launch.joined")
    try:
        yield Member(torch.distributed.get_rank(), torch.distributed.get_world_size(), device)
    except RuntimeError:
        # Most often because another process died. Then the launcher ends this one within a second, and the cause is
        # reported by the one that died; only our own error is still there after the wait.
        time.sleep(GRACE)
        raise
    finally:
        torch.distributed.destroy_process_group()


class StopRequest:
    """SIGTERM or Ctrl-C asks the loop to finish its step, save and end; the second one ends the process at once.

    The handler only takes a note: nothing may talk to other processes, or to the disk, inside a signal handler.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def agreed(self, member: Member) -> int:
        """The signal that any process of the group has been sent, 0 for none: all of them stop after the same step."""
        if member.size == 1:
            return self.signal
        number = torch.tensor(self.signal, device=member.device)
        torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX)
        return int(number)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.signal = number
        signal.signal(number, signal.SIG_DFL)


def _launcher() -> int:
    """The process that started this one. Ours may have been killed since, while this process was importing torch.

    Each process has its own session: SIGKILL for the launcher, or for its group, would leave orphans.
    """
    ours = re.fullmatch(rf"{RUN_ID}(\d+)", os.environ.get("TORCHELASTIC_RUN_ID", ""))
    return int(ours[1]) if ours else os.getppid()
