"""Slow, large and numerous requests stay within limits and do not affect other clients."""

import asyncio
import io
import json
import re
import socket
import threading
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from starlette.datastructures import Headers

from deploy.server.bodies import read_body
from deploy.server.limits import ClientLeftError, HeldBytes, Limits, RefusedError
from deploy.server.transport import connection
from tests.deploy.conftest import encoded, noise
from tests.deploy.server.conftest import HOST, IMAGE, Gate, Running, head, read_all, running, wait_for
from tests.processes.busy import stretched

CHUNKED = b"POST /v1/embed HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n"
QUICK = Limits(receive_seconds=0.3, head_seconds=0.3, send_seconds=0.3)


@contextmanager
def gated(bundle: Path, limits: Limits, decoders: int = 2) -> Iterator[tuple[Running, Gate]]:
    """Run a server whose model waits until the test lets it continue."""
    models: list[Gate] = []

    def load(path: Path) -> Gate:
        models.append(Gate(path))
        return models[0]

    with running(bundle, limits, load=load, decoders=decoders) as server:
        try:
            yield server, models[0]
        finally:
            models[0].opened.set()


# Queue


def test_a_full_queue_refuses_immediately_and_before_the_body(bundle: Path) -> None:
    with gated(bundle, Limits(queue=2)) as (server, gate), ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(server.post, "/v1/embed", IMAGE) for _ in range(2)]
        wait_for(lambda: server.service.admission.waiting == 2, "two requests")
        times = []
        for _ in range(20):
            answer = server.post("/v1/embed", IMAGE)
            assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
            assert answer.json["error"]["reason"] == "busy"
            times.append(answer.seconds)
        assert sorted(times)[10] < 0.02
        with server.connect(head(10_000_000)) as connection:  # no byte of the body is sent
            assert connection.recv(100).startswith(b"HTTP/1.1 503")
        assert server.ask("GET", "/v2/health/ready").status == 200
        gate.opened.set()
        assert [future.result().status for future in waiting] == [200, 200]
        assert server.post("/v1/embed", IMAGE).status == 200
        assert server.metric("simclr_waiting_images") == 0


def test_a_request_has_a_deadline_and_its_work_is_dropped(bundle: Path) -> None:
    with gated(bundle, Limits(deadline_seconds=0.2)) as (server, gate):
        answer = server.post("/v1/embed", IMAGE)
        assert (answer.status, answer.json["error"]["reason"]) == (504, "deadline")
        assert server.post("/v1/embed", IMAGE).status == 504  # waits behind the first until its own deadline
        assert server.metric('simclr_requests_total{route="/v1/embed",status="5xx"}') == 2
        gate.opened.set()
        assert server.post("/v1/embed", IMAGE).status == 200
        runs = server.metric("simclr_batch_images_count")
        assert runs == 2  # the first, which had already started, and the last


def test_a_client_that_leaves_is_counted_and_its_work_is_dropped(bundle: Path) -> None:
    with gated(bundle, Limits()) as (server, gate):
        first = server.connect(head(len(IMAGE)) + IMAGE)
        assert gate.arrived.acquire(timeout=30)
        second = server.connect(head(len(IMAGE)) + IMAGE)
        wait_for(lambda: server.service.admission.waiting == 2, "two requests")
        first.close()
        second.shutdown(socket.SHUT_WR)  # half closed counts as left
        wait_for(lambda: server.service.admission.waiting == 0, "both to leave")
        second.close()
        gate.opened.set()
        assert server.post("/v1/embed", IMAGE).status == 200
        assert server.metric('simclr_requests_total{route="/v1/embed",status="4xx"}') == 2
        assert server.metric("simclr_batch_images_count") == 2


def test_a_large_request_does_not_delay_a_small_one(bundle: Path) -> None:
    """The single image waits at most two turns, while the many wait."""
    import base64

    images = [{"b64": base64.b64encode(encoded(noise(seed))).decode()} for seed in range(40)]
    with gated(bundle, Limits(), decoders=1) as (server, gate), ThreadPoolExecutor(2) as pool:
        large = pool.submit(server.post_json, "/v1/embed", {"images": images})
        assert gate.arrived.acquire(timeout=30)
        wait_for(lambda: server.metric("simclr_decode_seconds_count") == 40, "all decoded")
        small = pool.submit(server.post, "/v1/embed", IMAGE)
        wait_for(lambda: server.metric("simclr_decode_seconds_count") == 41, "the other to be decoded")
        gate.opened.set()
        assert small.result().status == 200
        assert large.result().status == 200
    assert small.result().seconds < large.result().seconds


# Bodies


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_the_limit_is_refused_while_it_arrives(bundle: Path, chunked: bool) -> None:
    with running(bundle, Limits(body_bytes=100_000)) as server:
        assert server.post("/v1/embed", IMAGE + b"\0" * (100_000 - len(IMAGE))).status == 200
        body = iter([b"\0" * 50_000] * 3) if chunked else b"\0" * 100_001
        answer = server.ask("POST", "/v1/embed", body, Content_Type="image/png")
        assert (answer.status, answer.json["error"]["reason"]) == (413, "body_too_large")
        with server.connect(head(10**12)) as connection:  # refused by its announced length
            assert connection.recv(100).startswith(b"HTTP/1.1 413")
        assert server.metric("simclr_held_bytes") == 0


def test_bodies_of_all_clients_share_a_budget(bundle: Path) -> None:
    with running(bundle, Limits(held_bytes=100_000, receive_seconds=30)) as server:
        with server.connect(head(95_000) + b"\0" * 90_000):
            wait_for(lambda: server.service.held.now == 90_000, "the first body")
            answer = server.post("/v1/embed", b"\0" * 20_000)
            assert (answer.status, answer.json["error"]["reason"]) == (503, "busy")
            assert server.post("/v1/embed", IMAGE).status == 200
        wait_for(lambda: server.service.held.now == 0, "its end")
        assert server.post("/v1/embed", b"\0" * 20_000).status == 422


def test_a_body_that_arrives_in_pieces_is_joined_and_counted() -> None:
    messages = iter(
        [{"type": "http.request", "body": b"ab", "more_body": True}, {"type": "http.request", "body": b"c"}]
    )

    async def receive() -> dict[str, object]:
        return next(messages, {"type": "http.disconnect"})

    held = HeldBytes(3)
    with held.counter() as hold:
        assert asyncio.run(read_body(receive, Headers(), Limits(), hold)) == b"abc"
        assert held.now == 3
        with pytest.raises(RefusedError, match="3 bytes are already in memory"):
            hold(1)
        with pytest.raises(ClientLeftError):
            asyncio.run(read_body(receive, Headers(), Limits(), hold))
    assert held.now == 0


def test_bombs_and_endless_scans_are_errors_of_their_image(bundle: Path) -> None:
    content = io.BytesIO()
    Image.new("L", (500, 500), 128).save(content, "JPEG", progressive=True)
    progressive = content.getvalue()
    scan = progressive[progressive.rindex(b"\xff\xda") : -2]
    endless = progressive[:-2] + 1_000 * scan + progressive[-2:]
    large = encoded(noise(0, 1, 1).repeat(2000, 0).repeat(1001, 1))
    with running(bundle, Limits(pixels=2_000_000)) as server:
        for image in (endless, large):
            answer = server.post("/v1/embed", image)
            assert (answer.status, answer.json["results"][0]["error"]["reason"]) == (422, "bomb")
        assert server.post("/v1/embed", progressive).status == 200
        video_behind = progressive + 200 * scan  # a phone appends a video to a photo, which is not part of the image
        assert server.post("/v1/embed", video_behind).status == 200


# Slow clients


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


def test_a_client_that_does_not_read_is_cut_off(bundle: Path) -> None:
    """Many small requests on one connection, whose answers fill every buffer."""
    requests = 1_000_000 * b"GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\n"
    with running(bundle, QUICK) as server, server.connect() as connection:
        connection.settimeout(0.2)
        with pytest.raises((TimeoutError, ConnectionError)):  # a full buffer, or the reset
            connection.sendall(requests)
        wait_for(lambda: not server.server.server_state.connections, "the connection to end")
        assert server.post("/v1/embed", IMAGE).status == 200


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


def test_a_request_that_is_answered_keeps_its_connection(bundle: Path) -> None:
    with gated(bundle, Limits(connections=2)) as (server, gate), ThreadPoolExecutor(3) as pool:
        answers = [pool.submit(server.post, "/v1/embed", IMAGE) for _ in range(2)]
        wait_for(lambda: server.service.admission.waiting == 2, "two requests")
        late = pool.submit(server.post, "/v1/embed", IMAGE)
        gate.opened.set()
        assert [answer.result().status for answer in (*answers, late)] == [200, 200, 200]


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
    start = b"POST /v1/embed HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n"
    with shared.connect(start + b"5\r\nabcde\r\nzz\r\n") as connection:
        assert read_all(connection).startswith(b"HTTP/1.1 400")
    assert shared.post("/v1/embed", IMAGE).status == 200


def test_json_in_pieces_of_one_byte(shared: Running) -> None:
    body = json.dumps({"images": []}).encode()
    with shared.connect(head(len(body)).replace(b"image/png", b"application/json")) as connection:
        for byte in body:
            connection.sendall(bytes([byte]))
        assert connection.recv(100).startswith(b"HTTP/1.1 422")
