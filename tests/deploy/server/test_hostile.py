"""Thousands of damaged images and requests get 4xx, crash and leak nothing, and do not affect good requests."""

import gc
import io
import random
import socket
import threading
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from tests.deploy.conftest import noise
from tests.deploy.server.conftest import IMAGE, Running, head, read_all, running
from tests.repetitions import repeated, repetitions

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
ALLOWED = {200, 400, 404, 405, 408, 411, 413, 415, 422, 431, 501, 505}


def mutate(chance: random.Random, number: int) -> bytes:
    """Make an image file with bytes changed, removed or repeated."""
    content = io.BytesIO()
    Image.fromarray(noise(number % 7, 24, 24)).save(content, FORMATS[number % len(FORMATS)])
    data = bytearray(content.getvalue())
    for _ in range(chance.randint(1, 8)):
        data[chance.randrange(len(data))] = chance.randrange(256)
    if chance.random() < 0.3:
        del data[chance.randrange(len(data)) :]
    if chance.random() < 0.2:
        place = chance.randrange(len(data) + 1)
        data[place:place] = data[: chance.randrange(200)]
    return bytes(data)


def make_malformed(chance: random.Random) -> bytes:
    """Make a request with a few random bytes."""
    paths = ("/v1/embed", "/v1/classify?top=3", "/v2/models/mean-color/infer", "/", "/v1/model", "/metrics")
    data = bytearray(head(len(IMAGE), chance.choice(paths)) + IMAGE)
    for _ in range(chance.randint(1, 4)):
        data[chance.randrange(120)] = chance.randrange(256)
    return bytes(data)


def status_of(port: int, sent: bytes) -> int | None:
    """Return the status of the answer; None if the server closed without one, or waits for more."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        answer = read_all(connection)
    return int(answer[9:12]) if answer else None


def attack(server: Running, images: int, requests: int, seed: int) -> None:
    chance = random.Random(seed)
    for number in range(images):
        answer = server.post("/v1/embed", mutate(chance, number))
        assert answer.status in (200, 422), answer.body
    for _ in range(requests):
        assert status_of(server.port, make_malformed(chance)) in ALLOWED | {None}


@pytest.mark.seconds
def test_damaged_images_and_requests_do_not_affect_other_clients(bundle: Path) -> None:
    check_survival(bundle, images=150, requests=150, rounds=1)


@repeated
@pytest.mark.slow
def test_thousands_of_damaged_images_and_requests_leave_nothing_behind(bundle: Path) -> None:
    check_survival(bundle, images=(each := repetitions(300, all=1_000)), requests=each, rounds=repetitions(4, all=10))


def check_survival(bundle: Path, images: int, requests: int, rounds: int) -> None:
    with running(bundle) as server:
        good = server.post("/v1/embed", IMAGE).vectors
        ended = threading.Event()
        wrong: list[object] = []

        def ask() -> None:
            while not ended.is_set():
                answer = server.post("/v1/embed", IMAGE)
                if answer.status != 200 or not np.array_equal(answer.vectors, good):
                    wrong.append(answer)

        good_client = threading.Thread(target=ask)
        good_client.start()
        try:
            attack(server, images, requests, seed=0)  # the first round fills caches and the allocator
            before = memory()
            for seed in range(1, rounds):
                attack(server, images, requests, seed)
            growth = memory() - before
        finally:
            ended.set()
            good_client.join()
        assert wrong == []
        assert growth < 50e6, f"{growth:,} bytes"
        assert server.metric('simclr_requests_total{route="/v1/embed",status="5xx"}') == 0
        assert server.metric('simclr_requests_total{route="other",status="5xx"}') == 0
        assert server.metric("simclr_held_bytes") == 0
        assert server.metric("simclr_waiting_images") == 0


def memory() -> int:
    gc.collect()
    return int(psutil.Process().memory_info().rss)
