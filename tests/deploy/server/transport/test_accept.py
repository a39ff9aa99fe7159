"""The limit of open files bounds the connections, and running out of files is one line in the log."""

import json
import resource
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

import pytest

from deploy.errors import ArgumentError
from deploy.server.transport.accept import MOST_CONNECTIONS, RESERVED_FILES, choose, most_connections
from tests.deploy.server.conftest import HOST, IMAGE, wait_for
from tests.deploy.server.test_drain import connect, served


@contextmanager
def open_files(most: int) -> Iterator[None]:
    """Limit the open files of this process and of those that it starts meanwhile."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def status(port: int) -> int:
    connection = HTTPConnection(HOST, port, timeout=60)
    connection.request("POST", "/v1/embed", IMAGE, {"Content-Type": "image/png"})
    answered = connection.getresponse().status
    connection.close()
    return answered


def test_the_limit_of_open_files_decides() -> None:
    with open_files(1024):
        assert most_connections(None) == 1024 - RESERVED_FILES == MOST_CONNECTIONS
        assert most_connections(800) == 800
        with pytest.raises(
            ArgumentError, match=r"--max-connections 2000 needs 2,124 open files, and `ulimit -n` is 1,024"
        ):
            most_connections(2000)
    with open_files(400):
        assert most_connections(None) == 400 - RESERVED_FILES
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resource, "getrlimit", lambda _: (100, 100))
        with pytest.raises(ArgumentError, match="set it to 125 or more"):
            most_connections(None)


@pytest.mark.seconds
@dataclass
class Waiting:
    peer: str
    idle: bool
    waiting_since: float | None

    def drop(self) -> None: ...


IDLE, LATE = Waiting("a", True, 9.9), Waiting("a", True, 5.0)
STALLED, FRESH = Waiting("a", False, 7.0), Waiting("a", False, 9.9)
SERVED, NEWCOMER = Waiting("a", False, None), Waiting("b", True, 9.95)


def test_idle_connections_make_room_before_stalled_ones() -> None:
    connections = [SERVED, FRESH, STALLED, IDLE, LATE]
    assert choose(connections, 10.0, 5) == [LATE, IDLE, STALLED]
    assert choose(connections, 10.0, 1) == [LATE]
    assert choose([SERVED, FRESH], 10.0, 5) == []


def test_a_client_that_holds_most_makes_room_before_the_newcomer() -> None:
    """It begins a request on each connection, so that none is idle, and none has stalled yet."""
    assert choose([FRESH, STALLED, SERVED, NEWCOMER], 10.0, 9) == [STALLED, FRESH, NEWCOMER]
    assert choose([FRESH, NEWCOMER], 10.0, 9) == [NEWCOMER]


@pytest.mark.seconds
def test_idle_connections_beyond_the_limit_deny_no_one_and_write_no_log(bundle: Path) -> None:
    with ExitStack() as stack:
        with open_files(200):
            process, port, lines = stack.enter_context(served(bundle))
        with ExitStack() as idle:
            for _ in range(400):
                idle.enter_context(connect(port, b""))
            assert [status(port) for _ in range(5)] == [200] * 5
        process.terminate()
        assert process.wait(30) == 0
    assert [line["event"] for line in lines] == [*["request"] * 5, "draining", "ended"]


@pytest.mark.seconds
def test_running_out_of_files_is_one_line_in_the_log(bundle: Path) -> None:
    with served(bundle) as (process, port, lines):
        before = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
        used = len(list(Path(f"/proc/{process.pid}/fd").iterdir()))
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (used, before[1]))
        with ExitStack() as waiting:
            for _ in range(50):
                waiting.enter_context(connect(port, b""))
            wait_for(lambda: any("cannot accept" in json.dumps(line) for line in lines), "the line in the log")
            resource.prlimit(process.pid, resource.RLIMIT_NOFILE, before)
            assert status(port) == 200
        process.terminate()
        assert process.wait(30) == 0
    assert [line["event"] for line in lines] == ["log", "request", "draining", "ended"]
