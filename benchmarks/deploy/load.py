"""Clients that load a server: closed and open loops, slow clients, and the server itself in its own process.

In a closed loop a client sends its next request when it has its answer. In an open loop requests start when they are
due, whether or not earlier ones are answered, and their time counts from then.
"""

import asyncio
import base64
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import numpy as np

HOST = "127.0.0.1"
SLOW_CLIENTS = 500


RETRY_SECONDS = 1.0


class Answer(NamedTuple):
    status: int
    seconds: float
    """From when it was due to the end of the answer."""
    wait: float
    """From when it was sent."""


def post(path: str, content_type: str, body: bytes, *headers: str) -> bytes:
    head = (f"POST {path} HTTP/1.1", f"Host: {HOST}", f"Content-Type: {content_type}", *headers)
    return "\r\n".join((*head, f"Content-Length: {len(body)}", "\r\n")).encode() + body


def embed_request(image: bytes) -> bytes:
    return post("/v1/embed", "image/jpeg", image, "Accept: application/x-npy")


def mixed_requests(image: bytes) -> tuple[bytes, ...]:
    """One image in all ways that need no index: embedded or classified, as it is, in JSON, or as a tensor."""
    text = base64.b64encode(image).decode()
    tensor = {"name": "images", "datatype": "BYTES", "shape": [1], "data": [text]}
    return (
        embed_request(image),
        post("/v1/classify", "image/jpeg", image),
        post("/v1/embed", "application/json", json.dumps({"images": [{"b64": text}]}).encode()),
        post("/v2/models/resnet18/infer", "application/json", json.dumps({"inputs": [tensor]}).encode()),
    )


class Client:
    """One connection that is kept, and made again when the server ends it."""

    def __init__(self, port: int, requests: Sequence[bytes]) -> None:
        """It sends the ``requests`` in turn, again and again."""
        self._port, self._requests = port, cycle(requests)
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, due: float | None = None) -> Answer:
        return await self.ask_for(next(self._requests), due)

    async def ask_for(self, request: bytes, due: float | None = None) -> Answer:
        sent = time.perf_counter()
        for attempt in (1, 2):  # a kept connection may have ended meanwhile
            fresh = self._streams is None
            if fresh:
                self._streams = await asyncio.open_connection(HOST, self._port)
            try:
                status = await self._exchange(request)
            except (ConnectionError, asyncio.IncompleteReadError):
                self.close()
                if fresh or attempt == 2:
                    return Answer(0, time.perf_counter() - (due or sent), time.perf_counter() - sent)
            else:
                return Answer(status, time.perf_counter() - (due or sent), time.perf_counter() - sent)
        raise AssertionError("unreachable")

    def close(self) -> None:
        if self._streams:
            self._streams[1].close()
        self._streams = None

    async def _exchange(self, request: bytes) -> int:
        assert self._streams
        reader, writer = self._streams
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(length)
        return int(head[9:12])


async def closed_loop(port: int, requests: Sequence[bytes], clients: int, seconds: float) -> tuple[float, list[Answer]]:
    """Images/s of clients that each wait for their answer, and the answers."""
    by_client = await closed_loop_by_client(port, requests, clients, seconds, retry_seconds=0.01)
    answers = [answer for part in by_client for answer in part]
    return sum(answer.status == 200 for answer in answers) / seconds, answers


async def closed_loop_by_client(
    port: int, requests: Sequence[bytes], clients: int, seconds: float, retry_seconds: float = RETRY_SECONDS
) -> list[list[Answer]]:
    """The answers of each client. What is refused is asked again after ``retry_seconds``; 1 is what the server asks."""
    end = time.perf_counter() + seconds

    async def one() -> list[Answer]:
        client, answers = Client(port, requests), []
        while time.perf_counter() < end:
            answers.append(await client.ask())
            if answers[-1].status == 503:
                await asyncio.sleep(min(retry_seconds, max(0.0, end - time.perf_counter())))
        client.close()
        return answers

    return list(await asyncio.gather(*(one() for _ in range(clients))))


async def open_loop(
    port: int, requests: Sequence[bytes], rate: float, seconds: float, random_arrivals: bool = False, repeats: int = 0
) -> list[Answer]:
    """``rate`` requests a second, evenly spaced as those of wrk2 and vegeta, or at random times (Poisson).

    What is refused is asked again after a second, as the server wishes, up to ``repeats`` times.
    """
    chance = random.Random(0)
    idle: list[Client] = []
    tasks: list[asyncio.Task[Answer]] = []

    async def one(due: float) -> Answer:
        client = idle.pop() if idle else Client(port, requests)
        answer = await client.ask(due)
        for _ in range(repeats):
            if answer.status != 503:
                break
            await asyncio.sleep(RETRY_SECONDS)
            answer = await client.ask(due)
        idle.append(client)
        return answer

    due = time.perf_counter()
    end = due + seconds
    while due < end:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(one(due)))
        due += chance.expovariate(rate) if random_arrivals else 1 / rate
    answers = await asyncio.gather(*tasks)
    for client in idle:
        client.close()
    return list(answers)


def percentile(answers: Sequence[Answer], q: float, status: int = 200) -> float:
    """Milliseconds, of the answers with this status."""
    return float(np.percentile([answer.seconds for answer in answers if answer.status == status], q)) * 1000


@contextmanager
def served(root: Path, *options: object) -> Iterator[int]:
    """`simclr-deploy serve` in its own process; gives the port."""
    program = "import sys; from deploy.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "serve", str(root), "--port", "0", *map(str, options)]
    log = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed below
    process = subprocess.Popen(command, stderr=log, env=os.environ | {"PYTHONPATH": str(Path.cwd())})
    try:
        while "\n" not in (text := os.pread(log.fileno(), 4096, 0).decode()):
            assert process.poll() is None, text
            time.sleep(0.05)
        yield int(json.loads(text.splitlines()[0])["address"].rpartition(":")[2])
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(15)
        log.close()


@contextmanager
def served_by_peer(bundle: Path, python: str) -> Iterator[int]:
    """The plain FastAPI application of `benchmarks.deploy.fastapi_peer` in its own process; gives the port."""
    with socket.create_server((HOST, 0)) as free:
        port = free.getsockname()[1]
    script = str(Path(__file__).with_name("fastapi_peer.py"))
    paths = os.pathsep.join(filter(None, (str(Path.cwd()), os.environ.get("PYTHONPATH"))))
    process = subprocess.Popen([python, "-P", script, str(bundle), str(port)], env=os.environ | {"PYTHONPATH": paths})
    try:
        while not answers(port):
            assert process.poll() is None, f"{python} cannot run {script}; give --fastapi-python"
            time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait(15)


def answers(port: int) -> bool:
    try:
        socket.create_connection((HOST, port)).close()
    except ConnectionError:
        return False
    return True


@asynccontextmanager
async def slow_clients(port: int, image: bytes) -> AsyncIterator[None]:
    """A third send half a head, a third half a body, a third do not read; each begins again when it is cut off."""
    head = (
        f"POST /v1/embed HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(image)}\r\n\r\n"
    )
    parts = (
        head[:40].encode(),
        head.encode() + image[: len(image) // 2],
        f"GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode(),
    )

    async def one(number: int) -> None:
        while True:
            _, writer = await asyncio.open_connection(HOST, port)
            writer.write(parts[number % 3])
            while not writer.is_closing():
                await asyncio.sleep(1)

    tasks = [asyncio.create_task(one(number)) for number in range(SLOW_CLIENTS)]
    await asyncio.sleep(2)
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
