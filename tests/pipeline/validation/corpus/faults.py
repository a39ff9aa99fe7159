"""Functions that a worker runs in the place of the probe: what they do depends on the bytes they are given."""

import json
import os
import signal
from pathlib import Path
from typing import Any

from pipeline.validation.probe.probe import probe


class Latin(str):
    """Text whose characters are the bytes that are sent."""

    def encode(self, *_: Any) -> bytes:
        return super().encode("latin-1")


def fault(data: bytes, folder: str = "") -> str:  # noqa: C901  # one branch for each way to fail
    command, _, argument = data.decode().partition(" ")
    if command == "kill":
        os.kill(os.getpid(), getattr(signal, argument))
    if command == "exit":
        os._exit(int(argument))
    if command == "hang":
        signal.pause()
    if command == "spin":
        while True:
            pass
    if command == "allocate":
        return str(len(bytearray(int(argument))))
    if command == "raise":
        raise ZeroDivisionError(argument)
    if command == "flood":
        return "x" * int(argument)
    if command == "once":  # dies the first time only, like a worker that something else killed
        marker = Path(folder) / argument
        if not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    if command == "say":  # as a damaged file that has taken over the worker
        json.dumps = lambda _: Latin(argument)
    if command == "speak":
        os.write(1, b"a codec prints\n")
        os.write(2, b"a codec complains\n")
    return data.decode().upper()


def nothing(data: bytes) -> None:
    """A marker: None is not the lack of one."""


def process(data: bytes) -> list[int]:
    """The worker's process and its number of open files."""
    return [os.getpid(), sum(1 for _ in Path("/proc/self/fd").iterdir())]


def hang_after_telling(data: bytes) -> None:
    """Write the process id into the named pipe at the path ``data``, then hang."""
    Path(data.decode()).write_text(str(os.getpid()))
    signal.pause()


def probe_that_dies_of_killers(data: bytes, **options: float) -> dict[str, Any]:
    if data.endswith(b"liar"):
        return probe(data, **options) | {"width": "\ud800", "luma_mean": None}
    if data.endswith(b"killer"):
        os.kill(os.getpid(), signal.SIGSEGV)
    if data.endswith(b"hang"):
        signal.pause()
    return probe(data, **options)
