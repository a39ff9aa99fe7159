"""What a command costs: CPU seconds, memory, what it adds to the disk, and the processes that it starts."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.maintenance.disk import files_below, measure_occupied
from pipeline.workspace import Workspace

# Python imports a module of this name when it starts. Each process that it starts leaves a byte in the file.
COUNTING = """
import os, sys
file = os.open(os.environ["STARTED_PROCESSES"], os.O_WRONLY | os.O_APPEND)
def count(event, arguments):
    if event in ("subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn"):
        os.write(file, b".")
sys.addaudithook(count)
"""


# A process counts as large as the one that started it was. This one is small, and knows its child's usage.
WAITING = """
import json, os, sys
used, command = sys.argv[1], sys.argv[2:]
_, status, usage = os.wait4(os.spawnvp(os.P_NOWAIT, command[0], command), 0)
with open(used, "w") as file:
    json.dump([os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime, usage.ru_maxrss], file)
"""


@dataclass(frozen=True)
class Cost:
    """``cpu_seconds`` are those of all processes, ``peak_megabytes`` those of the largest one. ``megabytes`` and
    ``files`` are what the workspace has more than before, ``processes`` those that Python has started."""

    cpu_seconds: float
    peak_megabytes: float
    megabytes: float
    files: int
    processes: int


def measure_command(command: Sequence[str], workspace: Workspace) -> tuple[Cost, str]:
    """Run a command in the workspace; what it has cost, and what it has printed.

    Raises:
        RuntimeError: it failed.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "sitecustomize.py").write_text(COUNTING, encoding="utf-8")
        started, printed, used = (folder / one for one in ("started", "printed", "used"))
        started.touch()
        before = _occupied(workspace)
        with printed.open("wb") as output:
            subprocess.run(
                [sys.executable, "-I", "-S", "-c", WAITING, used, *command],
                cwd=workspace.root,
                env=_environment(PYTHONPATH=name, STARTED_PROCESSES=str(started)),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                check=True,
            )
        text, after = printed.read_text(encoding="utf-8", errors="replace"), _occupied(workspace)
        code, seconds, kilobytes = json.loads(used.read_text())
        if code != 0:
            raise RuntimeError(f"{' '.join(command)} failed: {text[-2000:]}")
        cost = Cost(
            cpu_seconds=round(seconds, 3),
            peak_megabytes=round(kilobytes / 1024, 1),
            megabytes=round((after[0] - before[0]) / 1e6, 3),
            files=after[1] - before[1],
            processes=started.stat().st_size,
        )
    return cost, text


def _occupied(workspace: Workspace) -> tuple[int, int]:
    return measure_occupied(workspace), sum(1 for _ in files_below(workspace.root, workspace.inbox))


def _environment(**variables: str) -> Mapping[str, str]:
    """``python`` is this Python, here and in dvc.yaml, and finds the package wherever it starts."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {**os.environ, "PATH": path, "DVC_NO_ANALYTICS": "1", **variables}
