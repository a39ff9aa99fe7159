"""The search as a process, for Dagster: a run that is canceled leaves no process."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import closing, suppress

from pipeline.dvc.client import GRACE_SECONDS
from pipeline.dvc.logs import Log
from pipeline.dvc.processes import supervised
from pipeline.errors import StageFailedError
from pipeline.redact import redactor
from pipeline.runs.descendants import POLL_SECONDS
from pipeline.workspace import Workspace


def run(workspace: Workspace, arguments: Sequence[str], on_output: Callable[[str], None] = print) -> None:
    """`simclr tune ARGUMENTS` in the workspace; what it prints goes to ``on_output`` and .simclr/logs/tune.log.

    Raises:
        StageFailedError: it ended with an error, which the message has.
    """
    path = workspace.scratch / "logs" / "tune.log"
    lines: list[str] = []
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with (
        closing(Log(path, redactor(workspace.root))) as log,
        supervised(command(workspace, arguments), workspace.root, environment, log.source, GRACE_SECONDS) as process,
    ):
        log.source.unlink()

        def forward() -> None:
            for line in log.lines():
                lines.append(line)
                on_output(line)

        while process.poll() is None:
            forward()
            with suppress(subprocess.TimeoutExpired):
                process.wait(POLL_SECONDS)
        forward()
    if process.returncode:
        said = next((line for line in reversed(lines) if line.startswith("error: ")), f"exit code {process.returncode}")
        raise StageFailedError(f"simclr tune: {said.removeprefix('error: ')} (full output: .simclr/logs/tune.log)")


def command(workspace: Workspace, arguments: Sequence[str]) -> list[str]:
    """What is started."""
    return [sys.executable, "-P", "-m", "pipeline", "--workspace", str(workspace.root), "tune", *arguments]
