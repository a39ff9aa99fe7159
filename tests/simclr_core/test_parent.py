"""No process outlives the one that started it, whenever that one is killed."""

import os
import signal
import subprocess
import sys

import psutil
import pytest

CHILD = (
    "import os, sys, time; from simclr_core.parent import die_with; die_with({parent}); print(os.getpid(), flush=True)"
)
PARENT = f"""
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", {CHILD.format(parent="os.getppid()") + "; time.sleep(600)"!r}])
time.sleep(600)
"""


@pytest.mark.seconds
def test_a_process_is_killed_with_its_parent() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    gone, alive = psutil.wait_procs([child], timeout=60)
    assert (gone, alive) == ([child], [])


def test_a_process_whose_parent_has_already_ended_ends_at_once() -> None:
    done = subprocess.run([sys.executable, "-c", CHILD.format(parent=os.getpid() + 1)], capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, b"")
