"""The first words of the processes of a group, through torch's store, before anything that could hang on a difference.

A collective between other numbers of processes, other versions or other devices waits, or ends in a traceback of NCCL.
The store is plain TCP: each process writes what it is, and reads what the others are; all of them say the same
sentence.
"""

import json
import os
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from importlib.metadata import version
from time import monotonic
from typing import NamedTuple

import torch
from torch.distributed import PrefixStore, Store, TCPStore, rendezvous  # type: ignore[attr-defined]

from deploy.failure import one_line
from deploy.plural import listed
from simclr_core.errors import GroupError, LaunchError
from simclr_core.machine.place import Place
from simclr_core.machine.settings import START_SECONDS
from simclr_core.reporter import fail

SHOWN = 3  # differences in a message
DIGITS = 12  # of a hash, enough to distinguish two
GRACE = 5.0  # seconds in which a process reports its own error, or reads those of others, before it is ended
LOOK_SECONDS = 1.0
FAILED = "failed"


class Said(NamedTuple):
    """What a process of the group says of itself; ``gpu`` is empty where the processors compute."""

    rank: int
    host: str
    facts: Mapping[str, str]
    gpu: str = ""


def meet(place: Place, seconds: int) -> Store:
    """The store of the group, which its first process or torch's launcher serves.

    Raises:
        LaunchError: it does not answer within ``seconds``, or a process has not come.
    """
    host = f"[{place.host}]" if ":" in place.host else place.host  # an address of IPv6
    url, limit = f"tcp://{host}:{place.port}", timedelta(seconds=seconds)
    try:
        store, _, _ = next(iter(rendezvous(url, place.rank, place.size, timeout=limit)))
    except (RuntimeError, ValueError) as error:  # the roots of what torch's network and store raise
        where = f"at {place.host}:{place.port} within {seconds} s"
        who = f"not all others have come to rank 0 {where}" if place.rank == 0 else f"rank 0 does not answer {where}"
        raise LaunchError(
            f"rank {place.rank} of {place.size} processes, on {socket.gethostname()}: {who} ({one_line(error)[:100]}); "
            "check that every process was started, MASTER_ADDR and MASTER_PORT, and the firewall, or give "
            f"{START_SECONDS} more time"
        ) from error
    return PrefixStore(_prefix(), store)


def greet(store: Store, place: Place, device: torch.device, seconds: int) -> None:
    """Every process says what it is and hears what the others are.

    Raises:
        GroupError: on every process; they are not of one kind.
        LaunchError: one of them does not come within ``seconds``, or two have the same GPU.
    """
    facts = {
        "the number of processes": str(place.size),
        "the device": device.type,
        "simclr-pipeline": version("simclr-pipeline"),
        "torch": torch.__version__,
    }
    store.set(str(place.rank), json.dumps(Said(place.rank, socket.gethostname(), facts, _identity(device))))
    said: dict[int, Said] = {}
    deadline = monotonic() + seconds
    for rank in (place.rank, *range(place.size)):  # all of them hear the first one's word first, and need not wait
        said[rank] = _heard(store, rank, deadline, place)
        fault = describe_difference([said[one] for one in sorted(said)])
        if fault is not None:
            _wait_for_readers(store, place)
            raise GroupError(
                f"the processes do not belong together: {fault}; start all of them by the same command, on machines "
                "with the same packages"
            )
    _require_own_gpus([said[rank] for rank in sorted(said)])


def describe_difference(everyone: Sequence[Said]) -> str | None:
    """Which of the facts differ: ``torch is 2.8.0 on rank 0 (a), 2.14.1 on ranks 1, 2 (b)``. None: they are alike."""
    differing = []
    for name in dict.fromkeys(name for one in everyone for name in one.facts):
        of_value: dict[str, list[Said]] = {}
        for one in everyone:
            of_value.setdefault(one.facts.get(name, "unknown"), []).append(one)
        if len(of_value) > 1:
            values = ", ".join(f"{value} on {_named(those)}" for value, those in of_value.items())
            differing.append(f"{name} is {values}")
    return listed(differing, SHOWN, "; ") if differing else None


def shortened(value: object) -> str:
    """A fact as a message has it: of a hash, the first digits."""
    text = str(value)
    return text[:DIGITS] if len(text) == 64 and all(digit in "0123456789abcdef" for digit in text) else text


@contextmanager
def failing_together(store: Store, place: Place) -> Iterator[None]:
    """While it lasts, an error that ends one process ends all the others within seconds, and they give its sentence.

    They would otherwise wait in a collective until its time is over. Where one is killed, its launcher, or that time,
    ends the others.

    Raises:
        GroupError: instead of an error of torch that follows from that of another process.
    """
    over = threading.Event()
    threading.Thread(target=_end_with_others, args=(place, over), daemon=True, name="failures").start()
    try:
        yield
    except RuntimeError as error:  # of torch; ours are of other classes
        cause = _cause(store, place)
        if cause is not None:
            raise GroupError(cause) from error
        _confess(store, place, error)
        raise
    except Exception as error:
        _confess(store, place, error)
        raise
    finally:
        over.set()


def _confess(store: Store, place: Place, error: Exception) -> None:
    with suppress(RuntimeError):  # the store may be gone with the first process
        store.compare_set(FAILED, "", json.dumps((place.rank, socket.gethostname(), one_line(error))))


def _cause(store: Store, place: Place) -> str | None:
    """What another process says of its end, if it comes to that: both ends may be seen at the same moment."""
    deadline = monotonic() + GRACE
    with suppress(RuntimeError):
        while monotonic() < deadline:
            if store.check([FAILED]):
                return _failure(store, place)
            threading.Event().wait(0.1)
    return None


def _failure(store: Store, place: Place) -> str | None:
    rank, host, error = json.loads(store.get(FAILED))
    return None if rank == place.rank else f"rank {rank} on {host} has failed, and this process with it: {error}"


def _end_with_others(place: Place, over: threading.Event) -> None:
    """In a thread with its own connection, since the main thread may be waiting in its own."""
    failure = None
    with suppress(RuntimeError):  # the store is gone
        store = PrefixStore(_prefix(), TCPStore(place.host, place.port, is_master=False, wait_for_workers=False))
        while not over.wait(LOOK_SECONDS):
            if store.check([FAILED]):
                failure = _failure(store, place)
                break
    if failure is not None and not over.wait(GRACE):
        fail(failure)
        os._exit(2)


def _heard(store: Store, rank: int, deadline: float, place: Place) -> Said:
    try:
        store.wait([str(rank)], timedelta(seconds=max(1.0, deadline - monotonic())))
    except RuntimeError as error:
        raise LaunchError(
            f"rank {rank} of {place.size} processes has not come; see its own message, start all of them at the same "
            f"time, or give {START_SECONDS} more time"
        ) from error
    return Said(*json.loads(store.get(str(rank))))


def _wait_for_readers(store: Store, place: Place) -> None:
    """The store may end with the first process, and others are still to read what is wrong."""
    with suppress(RuntimeError):
        readers, deadline = store.add("readers", 1), monotonic() + GRACE
        while place.rank == 0 and readers < place.size and monotonic() < deadline:
            threading.Event().wait(0.05)
            readers = store.add("readers", 0)


def _require_own_gpus(everyone: Sequence[Said]) -> None:
    owners: dict[tuple[str, str], int] = {}
    for one in everyone:
        first = owners.setdefault((one.host, one.gpu), one.rank)
        if one.gpu and first != one.rank:
            raise LaunchError(
                f"ranks {first} and {one.rank} on {one.host} have the same GPU, {one.gpu}; start one process for each "
                "GPU, and show each process its own, or all of them all"
            )


def _identity(device: torch.device) -> str:
    """Of a GPU, the same in every process that sees it."""
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else ""


def _named(those: Sequence[Said]) -> str:
    """``rank 0 (host a)``, ``ranks 1, 2 (host b, host c)``."""
    ranks = [str(one.rank) for one in those]
    hosts = ", ".join(dict.fromkeys(one.host for one in those))
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(ranks)} ({hosts})"


def _prefix() -> str:
    """Another one for each attempt of torchrun, which keeps its store."""
    return f"simclr/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
