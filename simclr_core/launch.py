"""One command, any number of processes: a stage runs alone, or once per visible GPU under torch's elastic launcher.

    python -m simclr_core pretrain                        one process, or one per GPU
    SIMCLR_PROCESSES=2 python -m simclr_core pretrain     two processes, gloo on a machine without GPUs
    torchrun --nnodes 4 ... -m simclr_core pretrain       several machines: this module only joins the group
    srun --ntasks-per-node 8 python -m simclr_core ...    likewise

A failed rank ends all of them; to continue is a fresh start of the same command, from the last checkpoint. (torch's
restart in place can hang on gloo.)
"""

import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any, Protocol, Self, TypeVar

import torch
import torch.distributed
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from deploy.failpoint import failpoint
from deploy.failure import fail, one_line
from simclr_core.errors import GroupError, LaunchError
from simclr_core.machine.devices import choose_device, usable_gpus
from simclr_core.machine.handshake import Said, describe_difference, failing_together, greet, meet, shortened
from simclr_core.machine.place import Place, find_place, leftovers
from simclr_core.machine.settings import (
    EXCHANGE_SECONDS,
    LAUNCHER,
    NODE,
    PROCESSES,
    START_SECONDS,
    STOP_SECONDS,
    seconds,
    wanted_processes,
)
from simclr_core.parent import die_with
from simclr_core.torch_calls import handling_signals_by, shutdown_within

Item = TypeVar("Item")
Result = TypeVar("Result")


class Inputs(Protocol):
    """What a stage works on: ``facts`` name all of it that shapes a result, and what it is on this process's disk."""

    @property
    def facts(self) -> Mapping[str, object]: ...


Read = TypeVar("Read", bound=Inputs)

logger = logging.getLogger(__name__)


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

    def shared(self, items: Sequence[Item], work: Callable[[Item], Result]) -> list[Result]:
        """``work(item)`` of each, done by one process, in turn, and known to all; all of them call this at once."""
        own = {place: work(item) for place, item in enumerate(items) if place % self.size == self.rank}
        done = {place: result for part in self.gathered(own) for place, result in part.items()}
        return [done[place] for place in range(len(items))]

    def from_first(self, value: Item) -> Item:
        """What the first process gives, on every process; all of them call this at once."""
        return self.from_one(0, value)

    def from_one(self, rank: int, value: Item) -> Item:
        """What the process of that rank gives, on every process; all of them call this at once."""
        values = [value]
        if self.size > 1:
            torch.distributed.broadcast_object_list(values, rank)
        return values[0]


@dataclass(frozen=True)
class Nodes:
    """The machines of a group, of which this is number ``number``; they meet at ``address``, host:port of number 0."""

    count: int = 1
    number: int = 0
    address: str = "localhost:0"

    @property
    def meeting(self) -> dict[str, Any]:
        """Options of torch's launcher. With its backend c10d no node is sure to have rank 0."""
        limit: dict[str, Any] = {"timeout": seconds(START_SECONDS)}
        here = {"local_addr": "localhost"} if self.count == 1 else {}
        backend = "c10d" if self.count == 1 else "static"
        configs = limit if self.count == 1 else limit | {"rank": self.number}
        return {"rdzv_backend": backend, "rdzv_endpoint": self.address, "rdzv_configs": configs, **here}


ALONE = Nodes()


def processes() -> int:
    """How many processes the stage wants on this machine; 1 for one that was itself started by a launcher.

    Raises:
        DeviceError, LaunchError: the machine, or the environment, does not allow what the environment asks for.
    """
    if find_place() is not None:
        return 1
    given, gpus = wanted_processes(), usable_gpus()
    if given is None:
        return max(1, gpus)
    if 0 < gpus < given:
        raise LaunchError(f"{PROCESSES}={given}, but {gpus} GPUs are visible; give at most {gpus}, or hide the GPUs")
    return given


def launch(count: int, arguments: Sequence[str], nodes: Nodes = ALONE) -> int:
    """Run ``python -m simclr_core ARGUMENTS`` in ``count`` processes; returns the exit code for this process.

    Each of several nodes calls this with its own number; the first one, at whose address they meet, has rank 0.

    Signals are passed on to the processes, which save and end; none outlives this call. What a failed process gave to
    ``reporter.fail`` is printed once.

    Raises:
        LaunchError: the nodes have not met.
    """
    logging.disable()  # torch's launcher says in many lines what the failed process says in one; this process ends here
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // count)))
    os.environ[LAUNCHER] = str(os.getpid())
    signals = _Signals()
    with TemporaryDirectory(prefix="simclr-launch-") as folder:  # torch would leave its own folder behind
        config = LaunchConfig(
            min_nodes=nodes.count,
            max_nodes=nodes.count,
            nproc_per_node=count,
            logs_specs=DefaultLogsSpecs(log_dir=folder),
            run_id=f"simclr-{os.getpid()}" if nodes.count == 1 else "simclr",
            **nodes.meeting,
            max_restarts=0,
            **shutdown_within(seconds(STOP_SECONDS)),
        )
        try:
            with handling_signals_by(signals.note):
                elastic_launch(config, sys.executable)("-P", "-m", "simclr_core", *arguments)
        except SignalException:
            return 128 + signals.first
        except ChildFailedError as failed:
            return _exit_code(*failed.get_first_failure())
        except torch.distributed.DistError as error:
            if nodes.count == 1:
                raise
            raise LaunchError(
                f"machine {nodes.number} of {nodes.count} has not met the others at {nodes.address} within "
                f"{seconds(START_SECONDS)} s ({one_line(error)}); start the command on each of them with its number in "
                f"{NODE}, 0 to {nodes.count - 1}, where 0 is the machine at that address; {START_SECONDS} is the limit"
            ) from None
    return 0


class _Signals:
    """What the launcher was sent: it asks its processes once to stop, however often it is asked, and with SIGTERM.

    A service manager sends SIGTERM to all processes of a group at once, so each would get it twice. The second Ctrl-C
    ends the launcher, and with it the others.
    """

    def __init__(self) -> None:
        self.first = 0
        self._interrupted = False

    def note(self, number: int, _: FrameType | None) -> None:
        again = self._interrupted and number == signal.SIGINT
        self._interrupted = self._interrupted or number == signal.SIGINT
        if self.first and not again:
            return
        self.first = self.first or number
        raise SignalException(f"signal {number}", signal.SIGTERM)


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
def member(stage: str, read: Callable[[torch.device], Read], patience: int = 1) -> Iterator[tuple[Member, Read]]:
    """Join the group that a launcher started, if one did, with what ``read`` gives for this process's device, as soon
    as every process has read the same. There is no other way into a group.

    Each process reads its own disk, which need not be that of the others. DistributedDataParallel compares the shapes
    of the weights and nothing else: with other images, labels or parameters on one rank it trains to the end. Where
    processes do work of different length, each waits ``patience`` times as long for the others: a failed one ends all
    of them anyway.

    Raises:
        DeviceError: this machine has a GPU that cannot be used.
        LaunchError: the others are not to be found.
        GroupError: on every process; they are of another kind, have other inputs, or one of them has failed. What
            ``read`` raises is what the others say too.
    """
    with _joined(patience) as joined:
        inputs = read(joined.device)
        if joined.size > 1:
            _require_agreement({"the stage": stage, **inputs.facts}, joined)
        yield joined, inputs


def _require_agreement(facts: Mapping[str, object], member: Member) -> None:
    """Every process of the group calls this at once, before any other exchange.

    Raises:
        GroupError: on every process; names what differs, and each rank's value of it.
    """
    own = Said(member.rank, socket.gethostname(), {name: shortened(value) for name, value in facts.items()})
    differing = describe_difference(member.gathered(own))
    if differing is not None:
        raise GroupError(
            f"the {member.size} processes would not work on the same thing: {differing}; give every machine the same "
            "params.yaml, data/prepared, models and packages, and start all processes again by the same command"
        )


@contextmanager
def _joined(patience: int) -> Iterator[Member]:
    """A place in the group: NCCL on GPUs, gloo on CPUs. Raises what ``member`` does."""
    place = find_place()
    if place is None:
        if (left := leftovers()) is not None:
            logger.warning(left)
        yield Member(0, 1, choose_device())
        return
    _end_with_launcher()
    limit = seconds(START_SECONDS)
    store = meet(place, limit)
    try:
        with failing_together(store, place):
            device = choose_device(place.local_rank)
            greet(store, place, device, limit)
            _join(store, place, device, patience * seconds(EXCHANGE_SECONDS))
            failpoint("launch.joined")
            yield Member(place.rank, place.size, device)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _join(store: Any, place: Place, device: torch.device, limit: int) -> None:
    """torch's process group, in which a wait of ``limit`` seconds for another process is an error."""
    bound = None
    if device.type == "cuda":
        torch.cuda.set_device(device)
        bound = device
    torch.distributed.init_process_group(
        "nccl" if bound else "gloo",
        timeout=timedelta(seconds=limit),
        world_size=place.size,
        rank=place.rank,
        store=store,
        device_id=bound,
    )


class StopRequest:
    """SIGTERM or Ctrl-C asks the loop to finish its step, save and end; a second Ctrl-C ends the process at once.

    SIGTERM may come more than once, from a service manager and from the launcher: it is the same request. The handler
    only takes a note: nothing may talk to other processes, or to the disk, inside a signal handler.
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

    def agreed(self, member: Member) -> torch.Tensor:
        """The signal that any process of the group has been sent, 0 for none: all of them stop after the same step.
        It is on the device, so that it can be read with other numbers when a GPU does not have to be waited for."""
        number = torch.full((), self.signal, device=member.device)
        if member.size > 1:
            torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX)
        return number

    def _note(self, number: int, _: FrameType | None) -> None:
        self.signal = self.signal or number
        if number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)


def _end_with_launcher() -> None:
    """The process that started this one may have been killed since, while this process was importing torch.

    Each process has its own session: SIGKILL for the launcher, or for its group, would leave orphans.
    """
    ours = os.environ.get(LAUNCHER)
    launcher = int(ours) if ours else os.getppid()
    if launcher != os.getppid():
        fail(f"process {launcher}, the launcher ({LAUNCHER}), has ended before this process could join; start again")
    die_with(launcher)
