"""Run one function over many files in worker processes that are allowed to die.

A damaged image can crash its decoder with a signal, hang it, or make it ask for all memory. Each worker holds one file
at a time, under an address-space limit and a deadline that the parent enforces with SIGKILL: whatever happens costs one
file and a new worker. A file is blamed only when it fails twice, so that a worker killed by chance costs nothing.

The worker answers in JSON, never in pickle: a file that takes over its decoder must not reach the parent.

    for key, answer in isolated_map(probe, files, options={}, workers=2, memory_megabytes=2048, timeout_seconds=20): ...
"""

import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any, TypeVar

from pipeline.errors import ValidationError

Key = TypeVar("Key")

ATTEMPTS = 2
START_SECONDS = 120.0  # to import the function; generous, since a busy disk is not the fault of a file
MAX_ANSWER_BYTES = 1 << 20
READY = b"ready"
STARTED = object()


@dataclass(frozen=True)
class Failure:
    """A file that its worker did not survive; ``reason`` is ``worker_crash`` or ``timeout``."""

    reason: str
    message: str


def isolated_map(
    function: Callable[..., Any],
    files: Iterable[tuple[Key, bytes]],
    *,
    options: Mapping[str, Any],
    workers: int,
    memory_megabytes: int,
    timeout_seconds: float,
) -> Iterator[tuple[Key, Any | Failure]]:
    """Yield ``(key, function(data, **options))`` for every ``(key, data)``, as they are done, in any order.

    Args:
        function: of a module's top level; the worker imports it by name. It returns what JSON can hold.
        files: read only as fast as workers become free.

    Raises:
        ValidationError: a worker cannot start at all.
    """
    arguments = [f"{function.__module__}:{function.__qualname__}", json.dumps(dict(options))]
    arguments += [str(memory_megabytes), str(timeout_seconds)]
    waiting = ((key, data, 1) for key, data in files)
    again: list[tuple[Key, bytes, int]] = []
    idle: list[_Worker] = []
    busy: dict[_Worker, tuple[Key, bytes, int]] = {}
    try:
        while True:
            while len(busy) < workers and (task := again.pop() if again else next(waiting, None)):
                worker = idle.pop() if idle else _Worker(arguments, timeout_seconds)
                worker.send(task[1])
                busy[worker] = task
            if not busy:
                return
            for worker in _ready(busy):
                answer = worker.receive()
                if answer is STARTED:
                    continue
                key, data, attempt = busy.pop(worker)
                if isinstance(answer, Failure):
                    worker.stop()
                    if attempt < ATTEMPTS:
                        again.append((key, data, attempt + 1))
                        continue
                else:
                    idle.append(worker)
                yield key, answer
    finally:
        for worker in (*idle, *busy):
            worker.stop()


class _Worker:
    """A child process, the connection to it, and until when it must say something."""

    def __init__(self, arguments: list[str], timeout_seconds: float):
        self.timeout_seconds = timeout_seconds
        self.started = False
        self.deadline = time.monotonic() + START_SECONDS
        self.connection, theirs = Pipe()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__, str(theirs.fileno()), *arguments],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},  # the workers are the threads
            )

    def send(self, data: bytes) -> None:
        if self.started:
            self.deadline = time.monotonic() + self.timeout_seconds
        with suppress(BrokenPipeError, ConnectionResetError):  # it is dead, and receive() will say how it died
            self.connection.send_bytes(data)

    def receive(self) -> Any:
        """What the worker says about its file; STARTED when it only says that it has started."""
        if not self.connection.poll():
            message = None if self.started else b""
        else:
            try:
                message = self.connection.recv_bytes(MAX_ANSWER_BYTES)
            except (EOFError, OSError):  # OSError: longer than any honest answer
                message = b""
        if message == READY and not self.started:
            self.started = True
            self.deadline = time.monotonic() + self.timeout_seconds
            return STARTED
        if not self.started:
            raise ValidationError("a validation worker does not start; see its message above; `simclr doctor` may help")
        if message is None:
            return Failure("timeout", f"not done after {self.timeout_seconds:g} s")
        if not message:
            self.stop()
            return Failure("worker_crash", f"its worker {_death(self.process.returncode)}")
        return _answer(message)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self.connection.close()


def _ready(busy: Iterable[_Worker]) -> list[_Worker]:
    """Wait until workers have something to say or are late, and return those."""
    workers = list(busy)
    wait(
        [worker.connection for worker in workers],
        max(0.0, min(worker.deadline for worker in workers) - time.monotonic()),
    )
    now = time.monotonic()
    return [worker for worker in workers if worker.connection.poll() or worker.deadline <= now]


def _answer(message: bytes) -> Any:
    """What a worker says, or a Failure when that is an error or makes no sense."""
    try:
        answer = json.loads(message)
    except (ValueError, RecursionError):  # no UTF-8, no JSON, too long a number, too deep
        answer = None
    match answer:
        case {"value": value}:
            return value
        case {"error": str(error)}:
            return Failure("worker_crash", error)
    return Failure("worker_crash", "its worker gave an invalid answer")


def _death(returncode: int) -> str:
    return f"was killed by {signal.Signals(-returncode).name}" if returncode < 0 else f"exited with {returncode}"


def _serve(descriptor: str, target: str, options: str, memory_megabytes: str, timeout_seconds: str) -> None:
    """The worker: answer file after file until the parent closes the connection."""
    module, _, name = target.partition(":")
    function = partial(getattr(importlib.import_module(module), name), **json.loads(options))
    _limit(resource.RLIMIT_AS, int(memory_megabytes) << 20)
    _limit(resource.RLIMIT_CORE, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends its workers
    with Connection(int(descriptor)) as connection:
        connection.send_bytes(READY)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # the codecs' remarks on damaged files
        while True:
            try:
                data = connection.recv_bytes()
            except EOFError:
                return
            # If the parent is killed, nothing else ends a hang: SIGALRM's default action does.
            signal.setitimer(signal.ITIMER_REAL, 2 * float(timeout_seconds))
            try:
                answer = {"value": function(data)}
            except Exception as error:  # noqa: BLE001  # whatever it is, it is reported with this file
                answer = {"error": f"{type(error).__name__}: {error}"}
            signal.setitimer(signal.ITIMER_REAL, 0)
            connection.send_bytes(json.dumps(answer).encode())


def _limit(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


if __name__ == "__main__":
    _serve(*sys.argv[1:])
