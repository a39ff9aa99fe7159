"""Runs a command so that nothing of it is left when it ends or is interrupted.

To signal one process is not enough: DVC ignores SIGINT while a stage runs, and torchrun starts each worker in a
separate session. So the command gets a process group, to be asked to stop, and an environment variable that all of its
descendants inherit, to find those that are left.
"""

import os
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.environment import STAGE_RUN
from pipeline.runs.descendants import POLL_SECONDS, descendants, kill_descendants

TERMINATE_SECONDS = 10.0
KILL_SECONDS = 5.0


@contextmanager
def supervised(
    command: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    output: Path,
    grace_seconds: float,
    pass_fds: Sequence[int] = (),
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a command in a separate process group; at the end of the block no process that came from it is left.

    An exception in the block, such as an interrupt, first sends SIGINT to the group, and SIGTERM after
    ``grace_seconds``. A second interrupt skips that. What is left after either is killed.

    Args:
        output: file that gets everything it prints.
        pass_fds: open files that the command itself inherits.
    """
    mark = uuid.uuid4().hex
    with output.open("wb") as file:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**environment, STAGE_RUN: mark},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=pass_fds,
        )
    try:
        yield process
    except BaseException:
        _interrupt(process, mark, grace_seconds)
        raise
    finally:
        _kill(process, mark)


def _interrupt(process: subprocess.Popen[bytes], mark: str, grace_seconds: float) -> None:
    for request, patience in ((signal.SIGINT, grace_seconds), (signal.SIGTERM, TERMINATE_SECONDS)):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, request)
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            if process.poll() is not None and not descendants(STAGE_RUN, mark, group=process.pid):
                return
            time.sleep(POLL_SECONDS)


def _kill(process: subprocess.Popen[bytes], mark: str) -> None:
    kill_descendants(STAGE_RUN, mark, KILL_SECONDS)
    with suppress(subprocess.TimeoutExpired):
        process.wait(KILL_SECONDS)
