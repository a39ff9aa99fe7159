"""A process takes its share of the cores: what torchrun sets unasked is raised, and what a user sets is kept."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from simclr_core.machine import settings, threads
from simclr_core.machine.threads import choose_threads, own_cores
from tests.sentences import assert_plain

SHELL = shutil.which("sh") or "/bin/sh"


@pytest.fixture(autouse=True)
def eight_of_sixteen_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torchrun starts one of two processes, where the variable is missing."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.delenv(settings.LAUNCHER, raising=False)
    for name, value in ((threads.STARTED_BY_TORCH, "night"), (threads.LOCAL_PROCESSES, "2"), (threads.THREADS, "1")):
        monkeypatch.setenv(name, value)


@pytest.fixture
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What torchrun was started with."""
    monkeypatch.setattr(threads, "PROCESSES", tmp_path)
    file = tmp_path / str(os.getppid()) / "environ"
    file.parent.mkdir()
    file.write_bytes(b"HOME=/root\0NOT_OMP_NUM_THREADS=1\0PATH=/bin\0")
    return file


def test_a_process_has_its_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(threads.LOCAL_PROCESSES)
    for processes, cores in ((None, 16), ("1", 16), ("8", 2), ("500", 1), ("0", 16), ("many", 16)):
        if processes is not None:
            monkeypatch.setenv(threads.LOCAL_PROCESSES, processes)
        assert own_cores() == cores


@pytest.mark.usefixtures("parent")
def test_the_one_thread_that_torchrun_sets_unasked_becomes_a_thread_for_each_core() -> None:
    line = choose_threads()
    assert os.environ[threads.THREADS] == "8"
    assert line == "OMP_NUM_THREADS=8: torchrun set 1 unasked, and this process has 8 cores"
    assert_plain(line)


@pytest.mark.parametrize("is_readable", [True, False])
def test_one_thread_of_the_user_stays_and_is_mentioned(is_readable: bool, parent: Path) -> None:
    """What cannot be looked at counts as the user's."""
    if is_readable:
        parent.write_bytes(b"HOME=/root\0OMP_NUM_THREADS=1\0PATH=/bin\0")
    else:
        parent.unlink()
    line = choose_threads()
    assert os.environ[threads.THREADS] == "1"
    assert line is not None
    assert line.startswith("OMP_NUM_THREADS=1, as the environment says: this process computes on one of its 8 cores;")
    assert_plain(line)


@pytest.mark.usefixtures("parent")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        (threads.THREADS, "4"),
        (threads.THREADS, None),
        (threads.STARTED_BY_TORCH, None),
        (threads.LOCAL_PROCESSES, "16"),
        (settings.LAUNCHER, "1"),
    ],
    ids=["a number of the user", "none", "alone", "a core each", "our launcher"],
)
def test_elsewhere_nothing_changes_and_nothing_is_said(
    name: str, value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    before = os.environ.get(threads.THREADS)
    assert choose_threads() is None
    assert os.environ.get(threads.THREADS) == before


@pytest.mark.parametrize(("given", "raised"), [({}, True), ({threads.THREADS: "1"}, False)])
def test_the_environment_of_the_parent_is_that_of_its_start(given: dict[str, str], raised: bool) -> None:
    """A shell in the place of torchrun, which sets the variable for its children after it has started."""
    child = (
        "import os; os.sched_getaffinity = lambda _: set(range(16));"
        "from simclr_core.machine.threads import choose_threads;"
        "print(choose_threads())"
    )
    environment = {name: value for name, value in os.environ.items() if name != threads.THREADS} | given
    script = f"export OMP_NUM_THREADS=1; {sys.executable} -c '{child}'; true"
    done = subprocess.run([SHELL, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert ("torchrun set 1 unasked" in done.stdout) is raised, done.stdout
    assert ("as the environment says" in done.stdout) is not raised
