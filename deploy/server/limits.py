"""Limits on the size and time of requests, and the refusal of what exceeds them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from deploy.errors import DeployError

RETRY_SECONDS = 1
"""After how long a refused client is asked to come back."""

HEAD_BYTES = 16_384
"""Largest head of a request; h11 has this limit only for a head that arrives in parts."""

BYTES_PER_PIXEL = 19
"""Most memory that decoding takes for each pixel, of a transparent WebP; a JPEG or PNG takes 8."""


@dataclass(frozen=True)
class Limits:
    """The limits that `simclr-deploy serve` sets.

    Attributes:
        body_bytes: size of one request body.
        images: images in one request.
        pixels: width times height of one image.
        decoding_bytes: memory of the large images that are decoded at the same time.
        queue: images that may wait, of all clients.
        deadline_seconds: time from a complete request to its answer.
        receive_seconds: time to receive a body.
        head_seconds: time to receive a head, also of the next request on a connection.
        send_seconds: time to send an answer.
        connections: simultaneous connections.
        held_bytes: total size of all request bodies in memory.
        drain_seconds: time for requests in flight after SIGTERM.
    """

    body_bytes: int = 20_000_000
    images: int = 64
    pixels: int = 16_000_000
    decoding_bytes: int = 1_000_000_000
    queue: int = 128
    deadline_seconds: float = 10.0
    receive_seconds: float = 30.0
    head_seconds: float = 5.0
    send_seconds: float = 30.0
    connections: int = 1_000
    held_bytes: int = 256_000_000
    drain_seconds: float = 8.0


class RefusedError(DeployError):
    """The server refuses a request, with an HTTP ``status``, a ``reason`` in one word, and a message."""

    def __init__(self, status: int, reason: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.reason, self.headers = status, reason, dict(headers or {})


class ClientLeftError(DeployError):
    """The client closed the connection before it got an answer."""


def busy_error(message: str) -> RefusedError:
    """Return an error with status 503, which asks the client to retry after RETRY_SECONDS."""
    return RefusedError(503, "busy", message, {"Retry-After": str(RETRY_SECONDS)})


@dataclass
class HeldBytes:
    """Counts the bytes of all request bodies in memory, and refuses more than ``limit``."""

    limit: int
    now: int = field(default=0)

    @contextmanager
    def counter(self) -> Iterator[Callable[[int], None]]:
        """Yield a function that counts bytes of one request; the end of the block releases them."""
        own = 0

        def add(size: int) -> None:
            nonlocal own
            if self.now + size > self.limit:
                raise busy_error(f"requests of {self.now:,} bytes are already in memory; try again after a second")
            own += size
            self.now += size

        try:
            yield add
        finally:
            self.now -= own
