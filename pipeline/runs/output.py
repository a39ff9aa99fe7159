"""Copies what a process prints into a file, without the secrets: ``python -m pipeline.runs.output ROOT FILE``.

A separate process does it, which imports next to nothing: so the last words of a process that is killed
arrive too, and the process that started both may end before them. It ends when no process can write to it any more.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from deploy.failure import Outlet
from pipeline.environment import RUN, STAGE_RUN
from pipeline.redact import current_redactor

LONGEST_LINE = 2**20  # bytes
ROTATE_BYTES, ROTATED = 10_000_000, 5  # a log of a service, and how many there are of it with the present one
RUN_LOG_DAYS, RUN_LOGS = 30, 200
PATIENCE = 5.0  # seconds for the last lines
MARKS = {RUN, STAGE_RUN}  # by which what a run or a stage has left behind is found, and killed


@contextmanager
def started(root: Path, file: Path, echo: int | None = None) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that appends to ``file`` what is written to its ``stdin``, which is closed at the end of the block.

    It continues for the processes that inherited it in the block.

    Args:
        root: the workspace, whose secrets are left out, as are those of the environment.
        echo: a file descriptor that gets the same lines.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", __name__, str(root), str(file)],
        cwd="/",
        env={name: value for name, value in os.environ.items() if name not in MARKS},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL if echo is None else echo,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for those who write to it
    )
    assert process.stdin is not None
    with process.stdin:
        yield process


def rotate(file: Path) -> None:
    """Begin a new file when it has grown: ``web.log`` becomes ``web.log.1``, and so on."""
    if not file.exists() or file.stat().st_size < ROTATE_BYTES:
        return
    names = [file, *(file.with_name(f"{file.name}.{number}") for number in range(1, ROTATED))]
    for older, newer in zip(reversed(names), list(reversed(names))[1:], strict=False):
        if newer.exists():
            newer.replace(older)


def list_outdated(folder: Path) -> list[Path]:
    """Logs of runs that are old, or more than a person looks through."""
    found = []
    for file in folder.glob("*.log"):
        with suppress(FileNotFoundError):
            found.append((file.stat().st_mtime, file))
    oldest = time.time() - RUN_LOG_DAYS * 24 * 3600
    newest_first = sorted(found, reverse=True)
    return [file for place, (changed, file) in enumerate(newest_first) if place >= RUN_LOGS or changed < oldest]


def copy(source: IO[bytes], root: Path, file: Path, echo: Outlet) -> None:
    hide = current_redactor(root)
    with file.open("ab") as target:
        while line := source.readline(LONGEST_LINE):
            clean = hide(line.decode(errors="replace")).encode()
            with suppress(OSError):  # the disk is full: the process that prints must not stop for it
                target.write(clean)
                target.flush()
            echo.write(clean)


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    copy(sys.stdin.buffer, Path(sys.argv[1]), Path(sys.argv[2]), Outlet(sys.stdout.fileno(), PATIENCE))


if __name__ == "__main__":
    main()
