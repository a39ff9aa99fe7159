import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ValidationError
from pipeline.validation.probe import pool
from pipeline.validation.probe.pool import Failure, isolated_map
from tests.pipeline.validation.corpus import faults

MEMORY = 1024  # megabytes


@pytest.fixture(autouse=True)
def _workers_find_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[4]))


def answers(commands: list[str], timeout_seconds: float = 30.0, **options: Any) -> dict[str, Any]:
    files = [(command, command.encode()) for command in commands]
    done = isolated_map(
        faults.fault, files, options=options, workers=2, memory_megabytes=MEMORY, timeout_seconds=timeout_seconds
    )
    return dict(done)


@pytest.mark.seconds
def test_every_file_gets_one_answer_from_few_workers() -> None:
    files = [(number, str(number).encode()) for number in range(300)]
    done = list(isolated_map(faults.process, files, options={}, workers=2, memory_megabytes=MEMORY, timeout_seconds=30))
    assert sorted(key for key, _ in done) == list(range(300))
    assert len({process for _, (process, _) in done}) <= 2
    assert len({open_files for _, (_, open_files) in done}) == 1  # no worker holds another's connection
    for _, (process, _) in done:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


def test_a_large_file_arrives_whole() -> None:
    data = bytes(40_000_000)
    [(_, answer)] = isolated_map(
        len, [("zeros", data)], options={}, workers=1, memory_megabytes=MEMORY, timeout_seconds=60
    )
    assert answer == len(data)


NONSENSE = ["{", "", "null", "3", "[]", "{}", '{"error": 1}', "ready", "\xff\xfe", "[" * 100_000, "9" * 5000]


@pytest.mark.seconds
@pytest.mark.parametrize("answer", NONSENSE, ids=range(len(NONSENSE)))
def test_a_nonsensical_answer_costs_one_file(answer: str) -> None:
    found = answers([f"say {answer}", "one", "two"])
    blamed = found.pop(f"say {answer}")
    assert isinstance(blamed, Failure)
    assert blamed.reason == "worker_crash"
    assert found == {"one": "ONE", "two": "TWO"}


def test_none_is_a_valid_answer() -> None:
    files = [(number, b"") for number in range(3)]
    done = isolated_map(faults.nothing, files, options={}, workers=1, memory_megabytes=MEMORY, timeout_seconds=30)
    assert list(done) == [(0, None), (1, None), (2, None)]


@pytest.mark.seconds
@pytest.mark.parametrize(
    ("command", "reason", "message"),
    [
        ("kill SIGKILL", "worker_crash", "killed by SIGKILL"),
        ("kill SIGSEGV", "worker_crash", "killed by SIGSEGV"),
        ("kill SIGABRT", "worker_crash", "killed by SIGABRT"),
        ("exit 0", "worker_crash", "exited with 0"),
        ("exit 3", "worker_crash", "exited with 3"),
        ("raise boom", "worker_crash", "ZeroDivisionError: boom"),
        (f"allocate {MEMORY << 20}", "worker_crash", "MemoryError"),
        ("flood 2000000", "worker_crash", "its worker"),
    ],
)
def test_a_fault_costs_its_own_file_only(command: str, reason: str, message: str) -> None:
    found = answers(["one", "two", command, "three", "four"])
    failure = found.pop(command)
    assert isinstance(failure, Failure)
    assert failure.reason == reason
    assert message in failure.message
    assert found == {"one": "ONE", "two": "TWO", "three": "THREE", "four": "FOUR"}


@pytest.mark.seconds
@pytest.mark.parametrize("command", ["hang", pytest.param("spin", marks=pytest.mark.slow)])
def test_a_hang_costs_its_own_file_only(command: str) -> None:
    found = answers(["one", command, "two"], timeout_seconds=1.0)
    assert found == {"one": "ONE", command: Failure("timeout", "not done after 1 s"), "two": "TWO"}


@pytest.mark.seconds
def test_a_file_is_tried_again_when_its_worker_died_by_accident(tmp_path: Path) -> None:
    assert answers(["once a", "b", "once c"], folder=str(tmp_path)) == {
        "once a": "ONCE A",
        "b": "B",
        "once c": "ONCE C",
    }


@pytest.mark.seconds
def test_a_worker_killed_while_idle_costs_nothing() -> None:
    def files() -> Iterator[tuple[int, bytes]]:
        yield 0, b""
        yield 1, b""
        os.kill(seen[0], signal.SIGKILL)
        yield 2, b""

    seen: list[int] = []
    done = isolated_map(faults.process, files(), options={}, workers=1, memory_megabytes=MEMORY, timeout_seconds=30)
    for _, (process, _) in done:
        seen.append(process)
    assert len(seen) == 3
    assert seen[0] == seen[1] != seen[2]


def test_output_of_codecs_is_discarded(capfd: pytest.CaptureFixture[str]) -> None:
    assert answers(["speak"]) == {"speak": "SPEAK"}
    assert capfd.readouterr() == ("", "")


@pytest.mark.seconds
def test_workers_end_with_their_parent() -> None:
    files = ((number, b"") for number in range(10))
    done = isolated_map(faults.process, files, options={}, workers=1, memory_megabytes=MEMORY, timeout_seconds=30)
    _, (process, _) = next(done)
    done.close()  # as an exception or Ctrl-C in the parent does
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


@pytest.mark.seconds
def test_a_hanging_worker_ends_though_its_parent_was_killed(tmp_path: Path) -> None:
    pipe = tmp_path / "process"
    os.mkfifo(pipe)
    script = (
        "from pipeline.validation.probe.pool import isolated_map; from tests.pipeline.validation.corpus import faults; "
        f"list(isolated_map(faults.hang_after_telling, [(0, {os.fsencode(pipe)!r})], options={{}}, workers=1, "
        f"memory_megabytes={MEMORY}, timeout_seconds=1.0))"
    )
    with subprocess.Popen([sys.executable, "-c", script]) as parent:
        worker = os.pidfd_open(int(pipe.read_text()))
        parent.kill()
    ended, _, _ = select.select([worker], [], [], 60)
    os.close(worker)
    assert ended


def test_a_worker_that_cannot_start_is_not_a_fault_of_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool.sys, "executable", "/bin/false")
    with pytest.raises(ValidationError, match="does not start"):
        answers(["one"])


def test_without_files_no_worker_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool.subprocess, "Popen", None)
    assert answers([]) == {}
