"""A server under mixed traffic for a long time.

    python -m benchmarks.deploy.serve_soak BUNDLE [--minutes N] [--json FILE]

Clients send images in every form that the server takes, damaged images and requests, and leave in the midst of a body
or before the answer, while the model changes every half minute. Prints the answers that were not as they should
be, p50 and p99 of the good ones, and the memory of the server: at the start, when all has been used for a while, and at
the end.
"""

import asyncio
import base64
import gzip
import io
import json
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from benchmarks.deploy.load import HOST, Answer, Client, embed_request, mixed_requests, percentile, post, served
from benchmarks.deploy.serve import make_registry, photo
from benchmarks.measure import parser, write
from deploy.artifact import write_atomically

CLIENTS, CHANGE_SECONDS, SAMPLE_SECONDS = 6, 30.0, 5.0
SHARES = {"good": 0.6, "bad": 0.3, "leaves": 0.1}


def good_requests(name: str) -> list[bytes]:
    jpeg, pixels = photo(), np.random.default_rng(1).integers(0, 256, (200, 300, 4), dtype=np.uint8)
    files = [jpeg]
    for kind in ("PNG", "WEBP", "TIFF"):
        content = io.BytesIO()
        Image.fromarray(pixels).save(content, kind)
        files.append(content.getvalue())
    large = io.BytesIO()
    Image.fromarray(pixels[..., :3]).resize((2000, 1500)).save(large, "JPEG")
    part = b'--b\r\nContent-Disposition: form-data; name="f"; filename="a.jpg"\r\n\r\n' + jpeg + b"\r\n"
    uri = "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
    openai = {"model": name, "input": [uri, uri], "encoding_format": "base64"}
    return [
        *(request.replace(b"/resnet18/", f"/{name}/".encode()) for request in mixed_requests(jpeg)),
        *(post("/v1/embed", "application/octet-stream", file) for file in (*files, large.getvalue())),
        post("/v1/embed", "multipart/form-data; boundary=b", 8 * part + b"--b--\r\n"),
        post("/v1/embed", "image/png", gzip.compress(files[1]), "Content-Encoding: gzip"),
        post("/v1/embeddings", "application/json", json.dumps(openai).encode()),
    ]


def bad_requests() -> list[bytes]:
    jpeg, bomb = photo(), io.BytesIO()
    Image.new("L", (10_000, 10_000)).save(bomb, "PNG")
    return [
        embed_request(b""),
        embed_request(b"<html>"),
        embed_request(jpeg[: len(jpeg) // 2]),
        embed_request(bomb.getvalue()),
        post("/v1/embed", "text/plain", b"?"),
        post("/v1/embed", "application/json", b'{"images": [{"b64": "' + b"x" * 1_000_001),
        post("/v1/embed", "multipart/form-data; boundary=b", b"--b\r\n\r\n"),
        post("/v1/embed", "image/png", gzip.compress(bytes(50_000_000)), "Content-Encoding: gzip"),
        post("/v1/embed?normalize=maybe", "image/jpeg", jpeg),
        post("/v2/models/none/infer", "application/json", b"{}"),
    ]


async def leave(port: int, request: bytes, size: int) -> None:
    """Send the first ``size`` bytes of a request and go away."""
    with suppress(ConnectionError):
        _, writer = await asyncio.open_connection(HOST, port)
        writer.write(request[:size])
        await writer.drain()
        writer.close()


@dataclass
class Tally:
    requests: Counter[str] = field(default_factory=Counter)
    unexpected: Counter[str] = field(default_factory=Counter)
    good: list[Answer] = field(default_factory=list)


async def keep_asking(
    port: int, requests: dict[str, list[bytes]], end: float, chance: random.Random, to: Tally
) -> None:
    client = Client(port, [b""])
    while time.monotonic() < end:
        kind = chance.choices(list(SHARES), list(SHARES.values()))[0]
        which = chance.randrange(len(requests[kind]))
        request = requests[kind][which]
        to.requests[kind] += 1
        if kind == "leaves":
            await leave(port, request, chance.randint(1, len(request)))
            continue
        answer = await client.ask_for(request)
        if kind == "good":
            to.good.append(answer)
        if answer.status // 100 != (2 if kind == "good" else 4):
            to.unexpected[f"{kind} {which}: {answer.status}"] += 1


async def soak(port: int, registry: Path, server: psutil.Process, seconds: float) -> dict[str, Any]:
    name = json.loads((registry / "v0.0.1" / "bundle.json").read_bytes())["name"]
    requests = {"good": good_requests(name), "bad": bad_requests()}
    requests["leaves"] = requests["good"]
    tally, end, memory = Tally(), time.monotonic() + seconds, list[float]()

    async def change() -> None:
        for number in range(1 << 30):
            await asyncio.sleep(CHANGE_SECONDS)
            write_atomically(registry / "CURRENT", f"v0.0.{1 + (number + 1) % 2}\n")

    async def sample() -> None:
        while True:
            await asyncio.sleep(SAMPLE_SECONDS)
            memory.append(server.memory_info().rss / 1e6)

    start = server.memory_info().rss / 1e6
    others = [asyncio.create_task(change()), asyncio.create_task(sample())]
    await asyncio.gather(*(keep_asking(port, requests, end, random.Random(number), tally) for number in range(CLIENTS)))
    for task in others:
        task.cancel()
    tenth = max(1, len(memory) // 10)
    return {
        "minutes": seconds / 60,
        "requests": dict(tally.requests),
        "unexpected": dict(tally.unexpected),
        "p50_ms": percentile(tally.good, 50),
        "p99_ms": percentile(tally.good, 99),
        "start_mb": start,
        "second_tenth_mb": statistics.median(memory[tenth : 2 * tenth] or memory),
        "last_tenth_mb": statistics.median(memory[-tenth:]),
        "most_mb": max(memory),
    }


def main() -> int:
    options = parser(__doc__)
    options.add_argument("bundle", type=Path)
    options.add_argument("--minutes", type=float, default=30.0)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        registry = Path(folder) / "registry"
        make_registry(given.bundle, registry)
        with served(registry) as port:
            (server,) = psutil.Process().children()
            results = asyncio.run(soak(port, registry, server, 60 * given.minutes))
    print(json.dumps(results, indent=1))
    write(results, given.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
