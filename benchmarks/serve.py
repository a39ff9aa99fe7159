"""What the server costs and what it withstands: ``python -m benchmarks.serve --bundle DIR [--seconds N] [--out FILE]``.

    direct       p50 of one client over p50 of ``Encoder.embed`` on the same bytes, taking turns
    load         p99 over p50 of an open loop at 70 % of capacity
    batching     images/s of 32 clients with micro-batching over without, taking turns
    overload     an open loop at 4 times the capacity: p99 of what is accepted over p99 at rest, images/s over capacity,
                 and how soon the others are refused
    slow         p99 of one client beside 500 slow ones over p99 alone, taking turns
    soak         80 % of capacity while the model changes: failed requests

The server runs in a process of its own, the clients in this one. In an open loop requests start when they are due,
whether or not earlier ones are answered, and their time counts from then.
"""

import argparse
import asyncio
import io
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

import deploy
from deploy.artifact import publish, write_atomically
from deploy.bundle import read_bundle, write_bundle

HOST = "127.0.0.1"
CLIENTS = 32
SLOW_CLIENTS = 500
ROUNDS = 3


class Answer(NamedTuple):
    status: int
    seconds: float
    """From when it was due to the end of the answer."""
    wait: float
    """From when it was sent."""


class Client:
    """One connection that is kept, and made again when the server ends it."""

    def __init__(self, port: int, image: bytes) -> None:
        self._port = port
        self._request = (
            f"POST /v1/embed HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: image/jpeg\r\nAccept: application/x-npy\r\n"
            f"Content-Length: {len(image)}\r\n\r\n"
        ).encode() + image
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, due: float | None = None) -> Answer:
        sent = time.perf_counter()
        for attempt in (1, 2):  # a kept connection may have ended meanwhile
            fresh = self._streams is None
            if fresh:
                self._streams = await asyncio.open_connection(HOST, self._port)
            try:
                status = await self._exchange()
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

    async def _exchange(self) -> int:
        assert self._streams
        reader, writer = self._streams
        writer.write(self._request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(length)
        return int(head[9:12])


async def closed_loop(port: int, image: bytes, clients: int, seconds: float) -> tuple[float, list[Answer]]:
    """Images/s of clients that each wait for their answer, and the answers."""
    end = time.perf_counter() + seconds

    async def one() -> list[Answer]:
        client, answers = Client(port, image), []
        while time.perf_counter() < end:
            answers.append(await client.ask())
            if answers[-1].status == 503:
                await asyncio.sleep(0.01)
        client.close()
        return answers

    answers = [answer for part in await asyncio.gather(*(one() for _ in range(clients))) for answer in part]
    return sum(answer.status == 200 for answer in answers) / seconds, answers


async def open_loop(port: int, image: bytes, rate: float, seconds: float, seed: int = 0) -> list[Answer]:
    """Requests that arrive at random (Poisson) with a mean ``rate`` per second."""
    chance = random.Random(seed)  # noqa: S311  repeatable, not secret
    idle: list[Client] = []
    tasks: list[asyncio.Task[Answer]] = []

    async def one(due: float) -> Answer:
        client = idle.pop() if idle else Client(port, image)
        answer = await client.ask(due)
        idle.append(client)
        return answer

    due = time.perf_counter()
    end = due + seconds
    while due < end:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(one(due)))
        due += chance.expovariate(rate)
    answers = await asyncio.gather(*tasks)
    for client in idle:
        client.close()
    return list(answers)


def percentile(answers: Sequence[Answer], q: float, status: int = 200) -> float:
    """Milliseconds, of the answers with this status."""
    return float(np.percentile([answer.seconds for answer in answers if answer.status == status], q)) * 1000


@contextmanager
def served(root: Path, *options: object) -> Iterator[int]:
    """`simclr-deploy serve` in a process of its own; gives the port."""
    program = "import sys; from deploy.cli import main; sys.exit(main())"
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


@asynccontextmanager
async def slow_clients(port: int, image: bytes) -> AsyncIterator[None]:
    """A third send half a head, a third half a body, a third do not read; each begins anew when it is cut off."""
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


def direct(root: Path, image: bytes, seconds: float) -> dict[str, float]:
    encoder = deploy.load(root)
    encoder.embed(image)
    ours, theirs = [], []
    with served(root) as port:

        async def turns() -> None:
            client = Client(port, image)
            for _ in range(5):
                await client.ask()
            end = time.perf_counter() + seconds
            while time.perf_counter() < end:
                ours.extend([(await client.ask()).wait for _ in range(5)])
                for _ in range(5):
                    began = time.perf_counter()
                    encoder.embed(image)
                    theirs.append(time.perf_counter() - began)

        asyncio.run(turns())
    served_p50, direct_p50 = statistics.median(ours) * 1000, statistics.median(theirs) * 1000
    return {"served_p50_ms": served_p50, "direct_p50_ms": direct_p50, "ratio": served_p50 / direct_p50}


async def load_and_overload(port: int, image: bytes, seconds: float) -> dict[str, dict[str, float]]:
    await closed_loop(port, image, 2, 1.0)
    capacity, _ = await closed_loop(port, image, 4, seconds / 2)
    _, rest = await closed_loop(port, image, 1, seconds / 2)
    busy = await open_loop(port, image, 0.7 * capacity, seconds)
    flood = await open_loop(port, image, 4 * capacity, seconds)
    accepted, refused = ([one for one in flood if one.status == status] for status in (200, 503))
    p99 = percentile(flood, 99)
    return {
        "load": {
            "capacity": capacity,
            "p50_ms": percentile(busy, 50),
            "p99_ms": percentile(busy, 99),
            "p99_over_p50": percentile(busy, 99) / percentile(busy, 50),
            "refused": sum(one.status != 200 for one in busy) / len(busy),
        },
        "overload": {
            "p50_ms": percentile(flood, 50),
            "p95_ms": percentile(flood, 95),
            "p99_ms": p99,
            "p99_over_rest": p99 / percentile(rest, 99),
            "goodput_over_capacity": len(accepted) / seconds / capacity,
            "refusal_p50_ms": float(np.percentile([one.wait for one in refused], 50)) * 1000,
            "refusal_p99_ms": float(np.percentile([one.wait for one in refused], 99)) * 1000,
            "other": len(flood) - len(accepted) - len(refused),
        },
    }


def batching(root: Path, image: bytes, seconds: float) -> dict[str, float]:
    rates: dict[int, list[float]] = {1: [], 8: []}
    with served(root, "--max-batch", 1) as off, served(root, "--max-batch", 8) as on:
        for _ in range(ROUNDS):
            for size, port in ((1, off), (8, on)):
                rates[size].append(asyncio.run(closed_loop(port, image, CLIENTS, seconds / ROUNDS))[0])
    off_rate, on_rate = statistics.median(rates[1]), statistics.median(rates[8])
    return {"off": off_rate, "on": on_rate, "ratio": on_rate / off_rate}


async def slow(port: int, image: bytes, seconds: float) -> dict[str, float]:
    alone: list[Answer] = []
    beside: list[Answer] = []
    for _ in range(ROUNDS):
        alone += (await closed_loop(port, image, 1, seconds / ROUNDS))[1]
        async with slow_clients(port, image):
            beside += (await closed_loop(port, image, 1, seconds / ROUNDS))[1]
        await asyncio.sleep(1)
    failed = sum(one.status != 200 for one in beside)
    p99 = percentile(alone, 99), percentile(beside, 99)
    return {"alone_p99_ms": p99[0], "beside_p99_ms": p99[1], "ratio": p99[1] / p99[0], "failed": failed}


async def soak(port: int, registry: Path, image: bytes, seconds: float, every: float) -> dict[str, float]:
    """At 80 % of capacity the queue may be full for a moment; that is a refusal, which a client repeats."""
    capacity, _ = await closed_loop(port, image, 4, 3.0)
    requests = asyncio.create_task(open_loop(port, image, 0.8 * capacity, seconds))
    changes = 0
    while not requests.done():
        await asyncio.wait({requests}, timeout=every)
        changes += 1
        write_atomically(registry / "CURRENT", f"v0.0.{1 + changes % 2}\n")
    answers = await requests
    good, refused = (sum(one.status == status for one in answers) for status in (200, 503))
    return {"requests": len(answers), "changes": changes, "refused": refused, "failed": len(answers) - good - refused}


def make_registry(bundle: Path, registry: Path) -> None:
    """Two versions that differ in their name alone."""
    content = read_bundle(bundle)
    for number in (1, 2):
        card = content.card | {"release": number}
        with publish(registry / f"v0.0.{number}") as work:
            write_bundle(work, type(content)(**{**content.__dict__, "card": card}))
    write_atomically(registry / "CURRENT", "v0.0.1\n")


def photo() -> bytes:
    """A JPEG of 640 x 480, smooth as photos are."""
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC).save(content, "JPEG", quality=90)
    return content.getvalue()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each measurement")
    parser.add_argument("--change-seconds", type=float, default=60.0, help="between changes of the model in the soak")
    parser.add_argument("--only", nargs="*", default=["direct", "load", "batching", "slow", "soak"])
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    image, results = photo(), dict[str, Any]()
    with tempfile.TemporaryDirectory() as folder:
        registry = Path(folder) / "registry"
        make_registry(given.bundle, registry)
        if "direct" in given.only:
            results["direct"] = direct(registry, image, given.seconds)
        if "load" in given.only:
            with served(registry) as port:
                results |= asyncio.run(load_and_overload(port, image, given.seconds))
        if "batching" in given.only:
            results["batching"] = batching(registry, image, given.seconds)
        if "slow" in given.only:
            with served(registry) as port:
                results["slow"] = asyncio.run(slow(port, image, given.seconds))
        if "soak" in given.only:
            with served(registry) as port:
                results["soak"] = asyncio.run(soak(port, registry, image, given.seconds, given.change_seconds))
    text = json.dumps(
        {name: {key: round(value, 3) for key, value in part.items()} for name, part in results.items()}, indent=2
    )
    print(text)
    if given.out:
        given.out.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
