"""Clients that are slow, silent, too many, or send what is not HTTP are cut off in time, and cost others nothing."""

import json
import re
import socket
import threading
from collections.abc import Collection
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from deploy.server.limits import Limits
from deploy.server.transport import connection
from tests.deploy.server.conftest import HOST, IMAGE, Running, head, read_all, running, wait_for
from tests.processes.busy import stretched

CHUNKED = b"POST /v1/embed HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n"
QUICK = Limits(receive_seconds=0.3, head_seconds=0.3, send_seconds=0.3)


# Slow clients


@pytest.mark.seconds
def test_a_slow_body_gets_408(bundle: Path) -> None:
    with running(bundle, QUICK) as server, server.connect(head(1000) + b"slow") as connection:
        answer = read_all(connection)
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"receive_timeout" in answer
        assert server.metric('simclr_requests_total{route="/v1/embed",status="4xx"}') == 1


def test_a_slow_head_gets_408_and_silence_is_closed(bundle: Path) -> None:
    with running(bundle, QUICK) as server:
        with server.connect(b"POST /v1/embed HTTP/1.1\r\nHo") as slow, server.connect() as silent:
            assert read_all(slow).startswith(b"HTTP/1.1 408")
            assert read_all(silent) == b""
        assert server.metric('simclr_connections_refused_total{reason="head_timeout"}') == 1


def test_a_head_that_arrives_byte_by_byte_gets_no_extra_time(bundle: Path) -> None:
    with running(bundle, QUICK) as server, server.connect(head(len(IMAGE)) + IMAGE) as connection:
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        stopped = threading.Event()

        def drip() -> None:
            while not stopped.wait(0.02):
                try:
                    connection.sendall(b"G")
                except OSError:
                    return

        thread = threading.Thread(target=drip)
        thread.start()
        rest = read_all(connection)
        stopped.set()
        thread.join()
        assert rest == b"" or b"408" in rest


@pytest.mark.seconds
def test_a_client_that_does_not_read_is_cut_off(bundle: Path) -> None:
    """Many small requests on one connection, whose answers fill every buffer."""
    requests = 1_000_000 * b"GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\n"
    with running(bundle, QUICK) as server, server.connect() as connection:
        connection.settimeout(0.2)
        with pytest.raises((TimeoutError, ConnectionError)):  # a full buffer, or the reset
            connection.sendall(requests)
        wait_for(lambda: not server.server.server_state.connections, "the connection to end")
        assert server.post("/v1/embed", IMAGE).status == 200


@pytest.mark.seconds
def test_a_client_that_never_reads_and_asks_again_is_cut_off(bundle: Path) -> None:
    """One request after the other: the last one arrives when its answer has to wait for the buffers."""
    with running(bundle, Limits(send_seconds=1)) as server, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((HOST, server.port))
        state = server.server.server_state
        request, asked, waits = b"GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\n", 0, False
        while not waits:
            connection.sendall(request)
            asked += 1
            wait_for(lambda asked=asked: state.total_requests == asked or paused(state.connections), "the answer")
            waits = paused(state.connections)
        with suppress(ConnectionError):
            connection.sendall(request)
        wait_for(lambda: not state.connections and not state.tasks, "the connection to end")


def paused(connections: Collection[Any]) -> bool:
    return any(connection.flow.write_paused for connection in {*connections})


@pytest.mark.seconds
def test_a_client_that_reads_late_gets_every_answer(bundle: Path) -> None:
    request = b"GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\n"
    with running(bundle) as server, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((HOST, server.port))
        connection.settimeout(60)
        connection.sendall(200 * request)
        wait_for(lambda: paused(server.server.server_state.connections), "full buffers")
        received = 0
        while received < 200:
            received += connection.recv(1_000_000).count(b"HTTP/1.1 200")


def test_a_connection_takes_no_long_turn_with_what_is_slow_to_parse(
    shared: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quarter of a megabyte of tiny chunks took the event loop a second, in which no one else was served."""
    taken: list[int] = []
    real = connection.LimitedProtocol.data_received

    def data_received(self: connection.LimitedProtocol, data: bytes) -> None:
        taken.append(len(data))
        real(self, data)

    monkeypatch.setattr(connection.LimitedProtocol, "data_received", data_received)
    image = IMAGE + b"\0" * 300_000
    chunks = b"".join(b"10\r\n%s\r\n" % image[start : start + 16].ljust(16) for start in range(0, len(image), 16))
    with shared.connect(CHUNKED + chunks + b"0\r\n\r\n") as client:
        assert client.recv(12) == b"HTTP/1.1 200"
    assert max(taken) <= 2_048
    assert shared.post("/v1/embed", image).status == 200
    assert max(taken) > 20_000


def test_when_connections_run_out_the_one_that_is_idle_longest_makes_room(bundle: Path) -> None:
    with running(bundle, Limits(connections=3)) as server:
        with ExitStack() as stack:
            first, *_ = [stack.enter_context(server.connect()) for _ in range(3)]
            wait_for(lambda: len(server.server.server_state.connections) == 3, "three connections")
            assert server.post("/v1/embed", IMAGE).status == 200
            assert read_all(first) == b""
        wait_for(lambda: not server.server.server_state.connections, "their end")
        assert server.metric('simclr_connections_refused_total{reason="too_many_connections"}') == 1


@pytest.mark.seconds
def test_connections_in_the_middle_of_a_request_make_room_when_they_stall(bundle: Path) -> None:
    with running(bundle, Limits(connections=3)) as server, ExitStack() as stack:
        for sent in (b"POST /v1/em", head(len(IMAGE)) + IMAGE[:50], head(len(IMAGE)) + IMAGE[:-1]):
            stack.enter_context(server.connect(sent))
        wait_for(lambda: len(server.server.server_state.connections) == 3, "three connections")
        assert server.post("/v1/embed", IMAGE).status == 200


def test_two_hundred_slow_clients_do_not_delay_a_fast_one(bundle: Path) -> None:
    with running(bundle, Limits(receive_seconds=20, head_seconds=20)) as server, ExitStack() as stack:
        for number in range(200):
            sent = (b"", b"POST /v1/em", head(len(IMAGE)) + IMAGE[:50], head(len(IMAGE)) + IMAGE)[number % 4]
            stack.enter_context(server.connect(sent))
        wait_for(lambda: len(server.server.server_state.connections) == 200, "all of them")
        answers = [server.post("/v1/embed", IMAGE) for _ in range(20)]
        assert {answer.status for answer in answers} == {200}
        assert sorted(answer.seconds for answer in answers)[10] < stretched(0.1)


# Invalid HTTP


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/embed HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        b"POST /v1/embed HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 20_000,
        b"GET / HTTP/1.1\r\nHost: a\r\nX\x00: b\r\n\r\n",
    ],
)
def test_invalid_http_gets_4xx_and_is_counted(shared: Running, sent: bytes) -> None:
    before = shared.metric('simclr_connections_refused_total{reason="invalid_http"}')
    with shared.connect(sent) as connection:
        assert re.match(rb"HTTP/1.1 (400|501|411)", read_all(connection))
    assert shared.metric('simclr_connections_refused_total{reason="invalid_http"}') == before + 1


def test_an_invalid_chunk_ends_the_request(shared: Running) -> None:
    with shared.connect(CHUNKED + b"5\r\nabcde\r\nzz\r\n") as connection:
        assert read_all(connection).startswith(b"HTTP/1.1 400")
    assert shared.post("/v1/embed", IMAGE).status == 200


def test_json_in_pieces_of_one_byte(shared: Running) -> None:
    body = json.dumps({"images": []}).encode()
    with shared.connect(head(len(body)).replace(b"image/png", b"application/json")) as connection:
        for byte in body:
            connection.sendall(bytes([byte]))
        assert connection.recv(100).startswith(b"HTTP/1.1 422")
