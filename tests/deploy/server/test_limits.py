"""Large and numerous requests stay within limits and do not affect other clients."""

import asyncio
import io
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image
from starlette.datastructures import Headers

from deploy.server.bodies import read_body
from deploy.server.limits import ClientLeftError, HeldBytes, Limits, RefusedError
from tests.deploy.conftest import encoded, noise
from tests.deploy.server.conftest import IMAGE, Gate, Running, head, running, wait_for


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


# Connections


def test_a_request_that_is_answered_keeps_its_connection(bundle: Path) -> None:
    with gated(bundle, Limits(connections=2)) as (server, gate), ThreadPoolExecutor(3) as pool:
        answers = [pool.submit(server.post, "/v1/embed", IMAGE) for _ in range(2)]
        wait_for(lambda: server.service.admission.waiting == 2, "two requests")
        late = pool.submit(server.post, "/v1/embed", IMAGE)
        gate.opened.set()
        assert [answer.result().status for answer in (*answers, late)] == [200, 200, 200]
