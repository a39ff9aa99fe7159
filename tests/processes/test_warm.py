"""A warm program is what a cold one is: to its caller, in /proc and for what it starts."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from pipeline.dvc.client import DVC
from tests.processes import warm
from tests.processes.alive import is_alive

pytestmark = pytest.mark.skipif(
    any(name.startswith("COVERAGE") for name in os.environ), reason="programs start cold while coverage is measured"
)


@pytest.fixture(autouse=True)
def _environment_as_at_the_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Ray cluster in this process leaves variables behind, with which programs start cold."""
    began = warm.nursery.environment if warm.nursery else {}
    for name in os.environb:
        if warm.READ_AT_IMPORT.match(name) and name not in began:
            monkeypatch.delenv(os.fsdecode(name))


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A DVC repository with a stage that shows a variable, waits for a line, and exits with it."""
    subprocess.run([*DVC, "init", "--no-scm", "--quiet"], cwd=tmp_path, check=True)
    (tmp_path / "dvc.yaml").write_text("stages: {s: {cmd: 'echo $MARK; read line < line; exit $line', outs: [out]}}")
    os.mkfifo(tmp_path / "line")
    (tmp_path / "kept").touch()
    return tmp_path


@pytest.mark.seconds
@pytest.mark.parametrize("start", [warm.cold, warm._start], ids=["cold", "warm"])
def test_a_program_is_what_was_asked_for(
    repository: Path, start: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "_fork_exec", start)
    limits = psutil.Process().rlimit(psutil.RLIMIT_NOFILE)
    with (repository / "kept").open() as kept:
        process = subprocess.Popen(
            [*DVC, "repro"],
            cwd=repository,
            env={**os.environ, "MARK": "the mark", "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=[kept.fileno()],
            text=True,
        )
    assert process.stdout is not None
    assert "the mark\n" in iter(process.stdout.readline, "")
    seen = psutil.Process(process.pid)
    assert [part for part in seen.cmdline() if part] == [*DVC, "repro"]
    assert seen.environ()["MARK"] == "the mark"
    assert (seen.ppid(), seen.cwd(), os.getsid(seen.pid), os.getpgid(seen.pid)) == (
        os.getpid(), str(repository), seen.pid, seen.pid,
    )  # fmt: skip
    assert str(repository / "kept") in [file.path for file in seen.open_files()]
    assert seen.rlimit(psutil.RLIMIT_NOFILE) == limits
    (stage,) = (child for child in seen.children() if child.cmdline()[-2:-1] == ["-c"])
    assert (stage.environ()["MARK"], stage.cwd(), os.getpgid(stage.pid)) == ("the mark", str(repository), seen.pid)
    assert any("warm.py" in " ".join(child.cmdline()) for child in seen.children()) == (start is warm._start)
    (repository / "line").write_text("3\n")
    assert "exited with 3\n" in process.stdout.read()
    assert process.wait(60) == 255
    process.stdout.close()


@pytest.mark.seconds
@pytest.mark.parametrize("start", [warm.cold, warm._start], ids=["cold", "warm"])
def test_a_killed_program_says_so_and_leaves_nothing(
    repository: Path, start: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "_fork_exec", start)
    process = subprocess.Popen([*DVC, "repro"], cwd=repository, start_new_session=True, stdout=subprocess.PIPE)
    assert process.stdout is not None
    while b">" not in process.stdout.readline():
        pass
    children = psutil.Process(process.pid).children()
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    process.stdout.close()
    deadline = time.monotonic() + 60
    while any(is_alive(child.pid) for child in children):
        assert time.monotonic() < deadline


@pytest.mark.parametrize(
    "command",
    [
        [*DVC, "version"],
        [DVC[0], "-m", "dvc", "version"],
        [DVC[0], "-u", "-P", "-m", "simclr_core", "--help"],
        [DVC[0], "-m", "pipeline", "run"],
        ["/bin/bash", "--noprofile", "--norc", "-c", "python -m simclr_core finetune --fraction 0.1"],
    ],
)
def test_these_start_warm(command: list[str]) -> None:
    assert warm._program(command, str(Path(DVC[0]).parent))


@pytest.mark.parametrize(
    "command",
    [
        [DVC[0], "-c", "import dvc"],
        [DVC[0], "-X", "importtime", "-m", "dvc"],
        [DVC[0], "-m", "deploy.candidate"],
        ["/usr/bin/python3", "-m", "dvc"],
        ["dvc", "version"],
        ["/bin/sh", "-c", "python -m simclr_core initial && echo done"],
        ["/bin/sh", "-c", "python -m simclr_core initial > log"],
        ["/bin/sh", "-c", "MARK=1 python -m simclr_core initial"],
    ],
)
def test_these_start_cold(command: list[str]) -> None:
    assert warm._program(command, str(Path(DVC[0]).parent)) is None


IMPORT_ALL = """
import os
from tests.processes import warm
before = warm._read_at_import(os.environb)
warm._import(set(warm.IMPORTS))
print(warm._read_at_import(os.environb) == before)
"""


@pytest.mark.slow
def test_what_is_imported_exists_starts_no_thread_and_leaves_the_variables_as_they_are() -> None:
    """With other variables, what a warm program starts in turn would start cold without a word.

    In the folder of a nursery, which is not in a workspace.
    """
    command = [DVC[0], "-W", "ignore", "-c", IMPORT_ALL]
    variables = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    imported = subprocess.run(command, cwd="/", env=variables, capture_output=True, text=True, check=False, timeout=240)
    assert (imported.stdout, imported.stderr) == ("True\n", "")
