"""The processes that come from a run or from a stage, found by the environment variable that they have inherited.

A process group or a session does not hold them: torchrun starts each worker in a separate session.
"""

import os
import time
from contextlib import suppress

import psutil

POLL_SECONDS = 0.1


def descendants(variable: str, value: str, group: int | None = None) -> list[psutil.Process]:
    """The processes of this user, but for this one, whose environment has ``variable=value``.

    Args:
        group: only those of this process group.
    """
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):  # it is gone meanwhile, or another user's
            if process.pid == os.getpid() or process.environ().get(variable) != value:
                continue
            if group in (None, os.getpgid(process.pid)):
                found.append(process)
    return found


def kill_descendants(variable: str, value: str, seconds: float) -> None:
    """Kill them, and those that they start meanwhile, until none is left or ``seconds`` are over."""
    deadline = time.monotonic() + seconds
    while (left := descendants(variable, value)) and time.monotonic() < deadline:
        for process in left:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=POLL_SECONDS)
