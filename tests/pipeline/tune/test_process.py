"""The search as Dagster starts it: its lines, its errors, and nothing that is left after a cancel."""

import sys

import psutil
import pytest

from pipeline.errors import StageFailedError
from pipeline.tune import process
from pipeline.workspace import Workspace


@pytest.mark.seconds
def test_an_error_of_the_search_is_said(workspace: Workspace) -> None:
    lines: list[str] = []
    with pytest.raises(StageFailedError, match="simclr tune: --budget 'soon': must be a time"):
        process.run(workspace, ["--budget", "soon"], lines.append)
    assert any("soon" in line for line in lines)


def test_a_cancel_leaves_no_process(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in prints its number and waits for a signal."""
    code = "import os, signal; print(os.getpid(), flush=True); signal.pause()"
    monkeypatch.setattr(process, "command", lambda *_: [sys.executable, "-c", code])
    found: list[int] = []

    def cancel(line: str) -> None:
        found.append(int(line))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        process.run(workspace, [], cancel)
    assert not psutil.pid_exists(found[0])
