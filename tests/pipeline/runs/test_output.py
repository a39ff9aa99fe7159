"""What a process prints arrives in a file, and who prints never stands still for a reader that has stopped."""

import io
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from deploy.failure import Outlet
from pipeline.runs.output import copy, started


def full_pipe() -> tuple[int, int]:
    """A pipe that is full, since it is not read."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with suppress(BlockingIOError):
        while os.write(writing, bytes(4096)):
            pass
    os.set_blocking(writing, True)
    return reading, writing


@pytest.mark.seconds
@pytest.mark.timeout(20)
def test_a_file_gets_every_line_also_where_the_echo_is_not_read(tmp_path: Path) -> None:
    reading, writing = full_pipe()
    lines = [f"line {number}\n".encode() for number in range(20_000)]
    copy(io.BytesIO(b"".join(lines)), tmp_path, tmp_path / "log", Outlet(writing, patience=0.01))
    assert (tmp_path / "log").read_bytes() == b"".join(lines)
    os.close(reading)
    os.close(writing)


@pytest.mark.seconds
@pytest.mark.timeout(60)
def test_a_process_whose_echo_is_not_read_ends(tmp_path: Path) -> None:
    """With an echo that waits, its pipe would be full after 64 kB, and it would wait forever."""
    reading, writing = full_pipe()
    with started(tmp_path, tmp_path / "log", echo=writing) as log:
        command = [sys.executable, "-c", "for number in range(100_000): print('line', number)"]
        assert subprocess.run(command, stdout=log.stdin, timeout=50, check=False).returncode == 0
    log.wait(30)
    assert (tmp_path / "log").read_bytes().endswith(b"line 99999\n")
    os.close(reading)
    os.close(writing)
