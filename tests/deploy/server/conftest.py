"""A real server on a loopback port, in a thread, with the limits and faults that a test chooses."""

import http.client
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from deploy.artifact import publish, write_atomically
from deploy.bundle import Bundle, write_bundle
from deploy.images.preprocess import Preprocessing
from deploy.server.app import application
from deploy.server.engine import Engine
from deploy.server.limits import Limits
from deploy.server.metrics import Metrics
from deploy.server.models import Model, Models, load_model
from deploy.server.service import Service
from deploy.server.transport import draining
from deploy.server.transport.draining import DrainingServer, make_server
from deploy.server.trust import Trust
from tests.deploy.conftest import SIZE, encoded, make_bundle, noise

PREPROCESSING = Preprocessing(SIZE, SIZE + 2)
IMAGE = encoded(noise(1, 20, 30))
HOST = "127.0.0.1"


@dataclass
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes
    seconds: float

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def vectors(self) -> NDArray[np.float32]:
        return np.array([result["vector"] for result in self.json["results"]], np.float32)


@dataclass
class Running:
    """A running server, with the parts that a test inspects or controls."""

    port: int
    server: DrainingServer
    service: Service
    thread: threading.Thread
    logged: list[dict[str, Any]] = field(default_factory=list)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=60)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        began = time.perf_counter()
        try:
            connection.request(method, path, body, named)
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read(), time.perf_counter() - began)
        finally:
            connection.close()

    def post(self, path: str, body: Any, content_type: str = "image/png", **headers: str) -> Answer:
        return self.ask("POST", path, body, Content_Type=content_type, **headers)

    def post_json(self, path: str, content: object) -> Answer:
        return self.post(path, json.dumps(content), "application/json")

    def connect(self, sent: bytes = b"") -> socket.socket:
        connection = socket.create_connection((HOST, self.port), timeout=30)
        connection.sendall(sent)
        return connection

    def metric(self, sample: str) -> float:
        """Return the value of a sample in /metrics; 0 if it is absent."""
        lines = self.ask("GET", "/metrics").body.decode().splitlines()
        return next((float(line.rpartition(" ")[2]) for line in lines if line.rpartition(" ")[0] == sample), 0.0)


def head(length: int, path: str = "/v1/embed") -> bytes:
    lines = (f"POST {path} HTTP/1.1", f"Host: {HOST}", "Content-Type: image/png", f"Content-Length: {length}", "", "")
    return "\r\n".join(lines).encode()


def read_all(connection: socket.socket) -> bytes:
    """Read until the server closes or resets the connection."""
    parts = []
    try:
        while part := connection.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: did not happen within {seconds} s"
        threading.Event().wait(0.01)


@contextmanager
def running(
    root: Path,
    limits: Limits | None = None,
    token: str | None = None,
    hosts: tuple[str, ...] = (),
    origins: tuple[str, ...] = (),
    max_batch: int = 1,
    decoders: int = 2,
    load: Callable[[Path], Model] | None = None,
    check: Callable[[Path], object] = lambda _: None,
    listener: socket.socket | None = None,
    tls: Callable[[], ssl.SSLContext | None] = lambda: None,
    tokens: Callable[[], Collection[bytes]] | None = None,
    signers: Path | None = None,
) -> Iterator[Running]:
    limits, metrics, logged = limits or Limits(), Metrics(), []

    def log(event: str, **fields: Any) -> None:
        logged.append({"event": event, **fields})

    load = load or (lambda path: load_model(path, threads=1, variant="fp32", index=None, trust=signers))
    models = Models(root, load, check, metrics, log)
    engine = Engine(metrics, limits, decoders, max_batch)
    service = Service(models, engine, metrics, limits, trust=Trust(signers, models, metrics, log) if signers else None)

    if token:
        tokens = partial(tuple, [token.encode()])
    server = make_server(application(service, tokens, hosts, origins), limits, metrics, service.drain, tls=tls)
    with listener or socket.create_server((HOST, 0), backlog=2048) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        wait_for(lambda: server.started, "the server")
        try:
            yield Running(listener.getsockname()[1], server, service, thread, logged)
        finally:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(draining, "DRAIN_NOTICE_SECONDS", 0)  # no client is left to notice
                server.should_exit = server.force_exit = True
                thread.join(30)
            models.close()
            engine.close()
    assert not thread.is_alive()


class Gate(Model):
    """A model that waits until the test opens a gate, and counts the runs that arrived."""

    def __init__(self, path: Path) -> None:
        loaded = load_model(path, threads=1, variant="fp32", index=None)
        super().__init__(loaded.encoder)
        self.opened = threading.Event()
        self.arrived = threading.Semaphore(0)

    def features(self, pixels: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
        self.arrived.release()
        assert self.opened.wait(60)
        return super().features(pixels)


def release(registry: Path, version: str, bundle: Bundle) -> None:
    """Add a bundle to a registry and make it the current version."""
    with publish(registry / version) as work:
        write_bundle(work, bundle)
    write_atomically(registry / "CURRENT", version + "\n")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server with default limits, for tests that do not change it."""
    directory = tmp_path_factory.mktemp("served") / "bundle"
    with publish(directory) as work:
        write_bundle(work, make_bundle())
    with running(directory) as server:
        yield server
