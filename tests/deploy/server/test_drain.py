"""After SIGTERM the server answers every accepted request, and exits in time regardless of its clients."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from deploy.server.limits import Limits
from deploy.server.transport import draining
from tests.deploy.server.conftest import HOST, IMAGE, Gate, head, read_all, running, wait_for
from tests.processes.busy import stretched

PROGRAM = """
import argparse, sys
from deploy.cli.serve import register
parser = argparse.ArgumentParser()
register(parser.add_subparsers())
options = parser.parse_args(["serve", *sys.argv[1:]])
sys.exit(options.run(options))
"""


@contextmanager
def served(*arguments: object) -> Iterator[tuple[subprocess.Popen[str], int, list[dict[str, object]]]]:
    """Run the command in a separate process; yield it, its port, and its log, which is complete after its exit."""
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *map(str, arguments), "--port", "0"],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stderr
    lines: list[dict[str, object]] = []
    first = json.loads(process.stderr.readline())
    rest = threading.Thread(target=lambda: lines.extend(json.loads(line) for line in process.stderr or ()))
    rest.start()
    try:
        yield process, int(str(first["address"]).rpartition(":")[2]), lines
    finally:
        process.kill()
        process.wait()
        rest.join()
        process.stderr.close()


def connect(port: int, sent: bytes) -> socket.socket:
    connection = socket.create_connection((HOST, port), timeout=30)
    connection.sendall(sent)
    return connection


def listens(port: int) -> bool:
    try:
        connect(port, b"").close()
    except ConnectionError:
        return False
    return True


@pytest.mark.seconds
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_an_idle_server_stops_immediately(bundle: Path, number: int) -> None:
    with served(bundle) as (process, port, lines), connect(port, b""):
        began = time.monotonic()
        process.send_signal(number)
        assert process.wait(60) == 0
        assert time.monotonic() - began < stretched(5)
    assert lines[-1]["event"] == "ended"


WHOLE = head(len(IMAGE)) + IMAGE
STUCK = (b"", b"POST /v1/em", head(len(IMAGE)), head(len(IMAGE)) + IMAGE[:99])


@pytest.mark.seconds
def test_stuck_clients_do_not_outlast_the_drain(bundle: Path) -> None:
    with running(bundle, Limits(drain_seconds=1)) as server, ExitStack() as stack:
        for number in range(20):
            stack.enter_context(server.connect(STUCK[number % 4]))
        good = [stack.enter_context(server.connect(WHOLE)) for _ in range(10)]
        server.server.should_exit = True
        assert all(read_all(connection).startswith(b"HTTP/1.1 200") for connection in good)
        server.thread.join(10)
        assert not server.thread.is_alive()


@pytest.mark.seconds
def test_requests_that_wait_to_be_accepted_are_answered_however_busy_the_server_is(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event loop is held while they arrive, and gets no time for them but what they need."""
    monkeypatch.setattr(draining, "DRAIN_NOTICE_SECONDS", 0)
    held, opened = threading.Event(), threading.Event()

    def hold() -> bool:
        held.set()
        assert opened.wait(60)
        return False

    with running(bundle) as server, ExitStack() as stack:
        server.server.is_reachable = hold
        assert held.wait(60)
        good = [stack.enter_context(server.connect(WHOLE)) for _ in range(30)]
        opened.set()
        assert all(read_all(connection).startswith(b"HTTP/1.1 200") for connection in good)
        server.thread.join(60)
        assert not server.thread.is_alive()


@pytest.mark.slow
def test_stuck_clients_neither_cost_answers_nor_delay_the_shutdown(bundle: Path) -> None:
    with served(bundle) as (process, port, lines), ExitStack() as stack:
        for number in range(100):
            stack.enter_context(connect(port, STUCK[number % 4]))
        good = [stack.enter_context(connect(port, WHOLE)) for _ in range(10)]
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        answers = [read_all(connection) for connection in good]
        assert process.wait(60) == 0
        assert time.monotonic() - began < stretched(10)
        assert all(answer.startswith(b"HTTP/1.1 200") for answer in answers), answers
        with pytest.raises(ConnectionRefusedError):
            connect(port, b"")
    assert lines[-1]["event"] == "ended"


def test_a_draining_server_is_not_ready_and_answers_accepted_requests(bundle: Path) -> None:
    models: list[Gate] = []

    def load(path: Path) -> Gate:
        models.append(Gate(path))
        return models[0]

    with running(bundle, load=load) as server, ThreadPoolExecutor(1) as pool, server.connect() as watcher:
        wait_for(lambda: len(server.server.server_state.connections) == 1, "the watcher")
        waiting = pool.submit(server.post, "/v1/embed", IMAGE)
        assert models[0].arrived.acquire(timeout=30)
        server.server.should_exit = True
        wait_for(lambda: server.service.draining, "the shutdown to begin")
        watcher.sendall(b"GET /v2/health/ready HTTP/1.1\r\nHost: a\r\n\r\n")
        assert watcher.recv(1000).startswith(b"HTTP/1.1 503")
        wait_for(lambda: not listens(server.port), "the port to close")
        models[0].opened.set()
        assert waiting.result().status == 200
