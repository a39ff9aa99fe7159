"""The memory of a process counts with that of all that it has started, also of threads' children."""

import os
import subprocess
import sys

from pipeline.dvc.memory import resident_bytes

CHILD = "import sys; held = bytearray(80_000_000); print('ready', flush=True); sys.stdin.read()"
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {CHILD!r}])"


def test_the_peaks_of_all_processes_add_up() -> None:
    process = subprocess.Popen([sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with process:
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.readline()
        both = resident_bytes(process.pid)
        process.stdin.close()
    assert 85_000_000 < both < 200_000_000
    assert resident_bytes(process.pid) == 0
    assert resident_bytes(os.getpid()) > 10_000_000
