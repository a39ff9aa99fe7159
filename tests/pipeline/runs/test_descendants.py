"""What a run or a stage has started is found by its mark, and killed with all that it starts meanwhile."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress

import psutil
import pytest

from pipeline.runs.descendants import descendants, kill_descendants

MARK, VALUE = "SIMCLR_TEST_MARK", f"test-{os.getpid()}"
SLEEP = "import time; print('here', flush=True); time.sleep(600)"
# Its child has left its group and its session.
FAMILY = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEP!r}], start_new_session=True).wait()"


@pytest.fixture
def family() -> Iterator["subprocess.Popen[bytes]"]:
    environment = os.environ | {MARK: VALUE}
    command = [sys.executable, "-c", FAMILY]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        process.stdout.readline()  # both are there
        yield process
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
        process.kill()


def test_descendants_are_found_in_other_sessions_too(family: "subprocess.Popen[bytes]") -> None:
    assert len(descendants(MARK, VALUE)) == 2
    assert [process.pid for process in descendants(MARK, VALUE, group=family.pid)] == [family.pid]
    assert descendants(MARK, "another") == []


def test_a_process_does_not_find_itself() -> None:
    alone = f"{VALUE}-alone"  # a family that was killed may take a moment to be gone
    program = f"import os; from pipeline.runs.descendants import descendants; print(descendants({MARK!r}, {alone!r}))"
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {MARK: alone}, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_every_descendant_is_killed(family: "subprocess.Popen[bytes]") -> None:
    kill_descendants(MARK, VALUE, seconds=10)
    assert descendants(MARK, VALUE) == []
    family.wait(60)
