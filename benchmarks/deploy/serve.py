"""What the server costs and withstands.

    python -m benchmarks.deploy.serve [--bundle DIR] [--seconds N] [--json FILE]

    direct       p50 of one client over p50 of ``Encoder.embed`` on the same bytes, taking turns
    load         p99 over p50 at 70 % of capacity, of requests that come evenly and of such that come at random
    overload     4 times the capacity: p99 of what is accepted over p99 of an idle server, images/s over capacity, and
                 how soon the others are refused
    batching     images/s of 32 clients with micro-batching over without, taking turns
    peer         1 to 64 clients: images/s over those of fastapi_peer.py, taking turns, how evenly shared, and the
                 CPU time of an image
    slow         p99 of one client next to 500 slow ones over p99 alone, taking turns
    soak         80 % of capacity while the model changes: failed requests

Without a bundle a ResNet-18 with random weights serves. Server and clients share the machine, so leave it to them.
"""

import argparse
import asyncio
import heapq
import io
import json
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

import deploy
from benchmarks.deploy import random_encoders
from benchmarks.deploy.load import (
    Answer,
    Client,
    closed_loop,
    closed_loop_by_client,
    embed_request,
    mixed_requests,
    open_loop,
    percentile,
    served,
    served_by_peer,
    slow_clients,
)
from benchmarks.measure import write
from deploy.artifact import publish, write_atomically
from deploy.bundle import Head, read_bundle, write_bundle
from deploy.latency import processor
from deploy.registry import resolve
from deploy.session import available_cpus

CLIENTS = 32
CAPACITY_SECONDS = 3.0
ROUNDS = 3
PEER_CLIENTS = (1, 2, 4, 8, 16, 32, 64)


def direct(root: Path, image: bytes, seconds: float) -> dict[str, float]:
    encoder = deploy.load(root)
    encoder.embed(image)
    ours, theirs = [], []
    with served(root) as port:

        async def turns() -> None:
            client = Client(port, [embed_request(image)])
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
    requests = [embed_request(image)]
    await closed_loop(port, requests, 2, 1.0)
    capacity, _ = await closed_loop(port, requests, 4, seconds / 2)
    _, rest = await closed_loop(port, requests, 1, seconds / 2)
    even = await open_loop(port, requests, 0.7 * capacity, seconds)
    at_random = await open_loop(port, requests, 0.7 * capacity, seconds, random_arrivals=True)
    flood = await open_loop(port, requests, 4 * capacity, seconds)
    accepted, refused = ([one for one in flood if one.status == status] for status in (200, 503))
    return {
        "load": {
            "capacity": capacity,
            "rest_p99_ms": percentile(rest, 99),
            **{f"even_{name}": value for name, value in spread(even).items()},
            **{f"random_{name}": value for name, value in spread(at_random).items()},
            "random_p99_over_p50_of_an_ideal_queue": ideal_ratio(0.7),
        },
        "overload": {
            **spread(flood),
            "p99_over_rest": percentile(flood, 99) / percentile(rest, 99),
            "goodput_over_capacity": len(accepted) / seconds / capacity,
            "refusal_p50_ms": float(np.percentile([one.wait for one in refused], 50)) * 1000,
            "refusal_p99_ms": float(np.percentile([one.wait for one in refused], 99)) * 1000,
            "other": len(flood) - len(accepted) - len(refused),
        },
    }


def spread(answers: Sequence[Answer]) -> dict[str, float]:
    p50, p99 = percentile(answers, 50), percentile(answers, 99)
    refused = sum(one.status != 200 for one in answers) / len(answers)
    return {"p50_ms": p50, "p99_ms": p99, "p99_over_p50": p99 / p50, "refused": refused}


def ideal_ratio(load: float, servers: int = 1, requests: int = 200_000) -> float:
    """p99 over p50 of a queue before servers that always take the same time and add no waiting (M/D/c)."""
    chance, free, now, times = random.Random(0), [0.0] * servers, 0.0, []
    for _ in range(requests):
        now += chance.expovariate(load * servers)
        done = max(now, heapq.heappop(free)) + 1
        heapq.heappush(free, done)
        times.append(done - now)
    p50, p99 = np.percentile(times, [50, 99])
    return float(p99 / p50)


def batching(root: Path, image: bytes, seconds: float) -> dict[str, float]:
    rates: dict[int, list[float]] = {1: [], 8: []}
    with served(root, "--max-batch", 1) as off, served(root, "--max-batch", 8) as on:
        for _ in range(ROUNDS):
            for size, port in ((1, off), (8, on)):
                rates[size].append(asyncio.run(closed_loop(port, [embed_request(image)], CLIENTS, seconds / ROUNDS))[0])
    off_rate, on_rate = statistics.median(rates[1]), statistics.median(rates[8])
    return {"off": off_rate, "on": on_rate, "ratio": on_rate / off_rate}


def peer(root: Path, image: bytes, seconds: float, python: str) -> dict[str, dict[str, float]]:
    """Closed-loop clients that obey Retry-After: images/s, and Jain's fairness index, 1 if all have equal shares.

    The CPU time of an image says what the servers cost also where other work shares the machine.
    """
    found: dict[str, dict[str, float]] = {}
    requests, path = [embed_request(image)], resolve(root)
    with served(root) as ours, served_by_peer(path, python) as theirs:
        processes = dict(zip((ours, theirs), psutil.Process().children(), strict=True))
        for clients in PEER_CLIENTS:
            spent = {ours: 0.0, theirs: 0.0}
            rates: dict[int, list[float]] = {ours: [], theirs: []}
            shares: dict[int, list[int]] = {ours: [0] * clients, theirs: [0] * clients}
            refused = 0
            for _ in range(ROUNDS):
                for port in (ours, theirs):
                    before, began = sum(processes[port].cpu_times()[:2]), time.perf_counter()
                    by_client = asyncio.run(closed_loop_by_client(port, requests, clients, seconds / ROUNDS))
                    elapsed = time.perf_counter() - began  # until the last answer, which may come long after the end
                    spent[port] += sum(processes[port].cpu_times()[:2]) - before
                    answered = [sum(one.status == 200 for one in answers) for answers in by_client]
                    refused += sum(one.status == 503 for answers in by_client for one in answers)
                    rates[port].append(sum(answered) / elapsed)
                    shares[port] = [sum(both) for both in zip(shares[port], answered, strict=True)]
            our_rate, their_rate = statistics.median(rates[ours]), statistics.median(rates[theirs])
            found[f"{clients}_clients"] = {
                "images_per_second": our_rate,
                "fastapi_images_per_second": their_rate,
                "ratio": our_rate / their_rate,
                "fairness": fairness(shares[ours]),
                "fastapi_fairness": fairness(shares[theirs]),
                "refused": refused,
                "cpu_ms_per_image": 1000 * spent[ours] / sum(shares[ours]),
                "fastapi_cpu_ms_per_image": 1000 * spent[theirs] / sum(shares[theirs]),
            }
    return found


def fairness(shares: Sequence[int]) -> float:
    """Jain, Chiu and Hawe's index (DEC-TR-301, 1984): 1 if all shares are equal, 1/n if one client has all."""
    return float(sum(shares) ** 2 / (len(shares) * sum(share**2 for share in shares)))


async def slow(port: int, image: bytes, seconds: float) -> dict[str, float]:
    requests = [embed_request(image)]
    alone: list[Answer] = []
    disturbed: list[Answer] = []
    for _ in range(ROUNDS):
        alone += (await closed_loop(port, requests, 1, seconds / ROUNDS))[1]
        async with slow_clients(port, image):
            disturbed += (await closed_loop(port, requests, 1, seconds / ROUNDS))[1]
        await asyncio.sleep(1)
    failed = sum(one.status != 200 for one in disturbed)
    p99 = percentile(alone, 99), percentile(disturbed, 99)
    return {"alone_p99_ms": p99[0], "beside_p99_ms": p99[1], "ratio": p99[1] / p99[0], "failed": failed}


async def soak(port: int, registry: Path, image: bytes, seconds: float, every: float) -> dict[str, float]:
    """Requests of all kinds at 80 % of what the server did just before, and in their midst a change of the model.

    The capacity is measured before each change, since it wanders with the machine; what is refused then does not
    count. A queue may be full for a moment: such a refusal is repeated, as clients do.
    """
    requests, changes = mixed_requests(image), 0
    capacities: list[float] = []
    answers: list[Answer] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        capacity, _ = await closed_loop(port, requests, 3, CAPACITY_SECONDS)
        steady = asyncio.create_task(open_loop(port, requests, 0.8 * capacity, every - CAPACITY_SECONDS, repeats=5))
        await asyncio.sleep((every - CAPACITY_SECONDS) / 2)
        changes += 1
        write_atomically(registry / "CURRENT", f"v0.0.{1 + changes % 2}\n")
        answers += await steady
        capacities.append(capacity)
    statuses = Counter(one.status for one in answers)
    return {
        "capacity_least": min(capacities),
        "capacity_most": max(capacities),
        "requests": len(answers),
        "changes": changes,
        "asked_again": sum(one.seconds - one.wait > 0.5 for one in answers),
        "over_a_second": sum(one.seconds > 1 for one in answers),
        "refused_for_good": statuses[503],
        "failed": len(answers) - statuses[200] - statuses[503],
        "p50_ms": percentile(answers, 50),
        "p99_ms": percentile(answers, 99),
    }


def make_registry(bundle: Path, registry: Path) -> None:
    """Two versions that differ in their number alone, with a classifier of random weights."""
    content = read_bundle(bundle)
    weight = np.random.default_rng(0).normal(size=(content.dim, 10)).astype(np.float32)
    head = Head(weight, np.zeros(10, np.float32), tuple(f"class {number}" for number in range(10)))
    for number in (1, 2):
        versioned = replace(content, card=content.card | {"release": number}, head=head)
        with publish(registry / f"v0.0.{number}") as work:
            write_bundle(work, versioned)
    write_atomically(registry / "CURRENT", "v0.0.1\n")


def photo() -> bytes:
    """A JPEG of 640 x 480, smooth as photos are."""
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC).save(content, "JPEG", quality=90)
    return content.getvalue()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="default: a ResNet-18 with random weights")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each measurement")
    parser.add_argument("--change-seconds", type=float, default=60.0, help="between changes of the model in the soak")
    parser.add_argument("--only", nargs="*", default=["direct", "load", "batching", "slow", "soak"])
    parser.add_argument(
        "--fastapi-python", default=sys.executable, help="for `--only peer`: an interpreter with FastAPI"
    )
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    given = parser.parse_args()
    image = photo()
    results: dict[str, Any] = {"benchmark": "serve", "machine": f"{processor()}, {available_cpus()} cores"}
    results |= {"seconds": given.seconds, "encoder": str(given.bundle.name) if given.bundle else "resnet18"}
    results |= {name: version(name) for name in ("onnxruntime", "starlette", "uvicorn")}
    with tempfile.TemporaryDirectory() as folder:
        if given.bundle is None:
            random_encoders.write("resnet18", Path(folder) / "resnet18")
        registry = Path(folder) / "registry"
        make_registry(given.bundle or Path(folder) / "resnet18" / "bundle", registry)
        if "direct" in given.only:
            results["direct"] = direct(registry, image, given.seconds)
        if "load" in given.only:
            with served(registry) as port:
                results |= asyncio.run(load_and_overload(port, image, given.seconds))
        if "batching" in given.only:
            results["batching"] = batching(registry, image, given.seconds)
        if "peer" in given.only:
            results["peer"] = peer(registry, image, given.seconds, given.fastapi_python)
        if "slow" in given.only:
            with served(registry) as port:
                results["slow"] = asyncio.run(slow(port, image, given.seconds))
        if "soak" in given.only:
            with served(registry) as port:
                results["soak"] = asyncio.run(soak(port, registry, image, given.seconds, given.change_seconds))
    results = json.loads(json.dumps(results), parse_float=lambda number: round(float(number), 3))
    print(json.dumps(results, indent=1))
    write(results, given.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
