"""Limits on the size and time of requests, and the refusal of what exceeds them."""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from starlette.types import Receive

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


async def read_body(receive: Receive, declared: str | None, limits: Limits, hold: Callable[[int], None]) -> bytes:
    """Receive the body of a request. Its size is counted as it arrives, regardless of Content-Length (``declared``).

    Raises:
        RefusedError: 413 if it is too large, 408 if it takes too long, 503 if the memory for bodies is full.
        ClientLeftError: the connection was closed before the end of the body.
    """
    too_large = RefusedError(
        413, "body_too_large", f"the body exceeds {limits.body_bytes:,} bytes; send fewer or smaller images"
    )
    if declared and int(declared) > limits.body_bytes:
        raise too_large
    chunks: list[bytes] = []
    size, more = 0, True
    try:
        async with asyncio.timeout(limits.receive_seconds):
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientLeftError("the client left before its body was complete")
                chunk = message.get("body", b"")
                size, more = size + len(chunk), message.get("more_body", False)
                if size > limits.body_bytes:
                    raise too_large
                hold(len(chunk))
                chunks.append(chunk)
    except TimeoutError:
        raise RefusedError(
            408, "receive_timeout", f"the body was not complete after {limits.receive_seconds:g} s; send it faster"
        ) from None
    return b"".join(chunks)
