"""A server whose registry offers it damaged models.

    python -m benchmarks.deploy.hostile_models --bundle DIR [--json FILE]

Every candidate is a bundle with a right manifest and a mutated ONNX file, named by CURRENT. The server has to refuse
it, or, where the golden images still give their vectors, may serve it; it has to answer all the while, with the
vectors of a model that passed, and to be the same process at the end.
"""

import argparse
import http.client
import json
import random
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.deploy.load import HOST, served
from deploy.artifact import publish, write_atomically
from deploy.bundle import Bundle, read_bundle, write_bundle
from deploy.latency import photo

SECONDS = 120  # to decide about one candidate
SPECIALS = (0x00, 0x7F, 0x80, 0xFF)


def mutated(model: bytes, chance: random.Random) -> bytes:
    """Bytes changed, cut out, doubled or cut off; most places lie in the graph rather than in the weights."""
    data = bytearray(model)
    while data == model:
        mutate(data, chance)
    return bytes(data)


def mutate(data: bytearray, chance: random.Random) -> None:
    for _ in range(chance.randint(1, 6)):
        end = len(data) if chance.random() < 0.3 else min(len(data), 4_000)
        place = chance.randrange(end) if chance.random() < 0.7 else len(data) - 1 - chance.randrange(end)
        kind = chance.randrange(5)
        if kind == 0:
            data[place] ^= 1 << chance.randrange(8)
        elif kind == 1:
            data[place] = chance.choice(SPECIALS)
        elif kind == 2:
            del data[place : place + chance.randint(1, 64)]
        elif kind == 3:
            data[place:place] = data[place : place + chance.randint(1, 64)]
        elif chance.random() < 0.2:
            del data[place + 1 :]


def metric(port: int, name: str) -> float:
    connection = http.client.HTTPConnection(HOST, port, timeout=60)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} ")), 0.0)


def decided(port: int) -> tuple[float, float]:
    """Model changes and refusals so far."""
    counter = "simclr_model_changes_total{outcome="
    return metric(port, f'{counter}"changed"}}'), metric(port, f'{counter}"refused"}}')


class Asking(threading.Thread):
    """A client that continues asking; ``failed`` are answers that are not one vector of length 1."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self._port, self._ended = port, threading.Event()
        self.answers, self.failed = 0, 0

    def run(self) -> None:
        image = photo()
        while not self._ended.is_set():
            connection = http.client.HTTPConnection(HOST, self._port, timeout=60)
            connection.request("POST", "/v1/embed", image, {"Content-Type": "image/jpeg"})
            answer = connection.getresponse()
            content = json.loads(answer.read())
            connection.close()
            self.answers += 1
            good = answer.status == 200 and abs(np.linalg.norm(content["results"][0]["vector"]) - 1) < 1e-3
            self.failed += not good

    def end(self) -> None:
        self._ended.set()
        self.join()


def offer(registry: Path, version: str, content: Bundle, model: bytes) -> None:
    with publish(registry / version) as work:
        write_bundle(work, replace(content, model=model))
    write_atomically(registry / "CURRENT", f"{version}\n")


def offered(registry: Path, content: Bundle, port: int, count: int) -> dict[str, int]:
    chance = random.Random(0)
    outcomes = {"changed": 0, "refused": 0}
    for number in range(count):
        before = decided(port)
        offer(registry, f"v0.1.{number}", content, mutated(content.model, chance))
        end = time.monotonic() + SECONDS
        while (now := decided(port)) == before:
            if time.monotonic() > end:
                raise SystemExit(f"candidate {number}: no decision after {SECONDS} s")
            time.sleep(0.1)
        outcomes["changed" if now[0] > before[0] else "refused"] += 1
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    given = parser.parse_args()
    content = replace(read_bundle(given.bundle), variants={})
    with tempfile.TemporaryDirectory() as folder:
        registry = Path(folder)
        offer(registry, "v0.0.1", content, content.model)
        with served(registry) as port:
            asking = Asking(port)
            asking.start()
            outcomes = offered(registry, content, port, given.count)
            asking.end()
    results = {"benchmark": "hostile_models", "candidates": given.count, **outcomes}
    results |= {"answers": asking.answers, "failed": asking.failed}
    text = json.dumps(results, indent=1)
    print(text)
    if given.json:
        given.json.write_text(text + "\n", encoding="utf-8")
    return int(asking.failed > 0)


if __name__ == "__main__":
    sys.exit(main())
