"""Limits on the size and time of requests, and the decision to refuse a request instead of letting it wait."""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from starlette.types import Receive

from deploy.errors import DeployError

BUSY_SECONDS = 1.0
"""How long the queue may exceed the standing queue; a change of the model slows a server for less than that."""


@dataclass(frozen=True)
class Limits:
    """The limits that `simclr-deploy serve` sets.

    Attributes:
        body_bytes: size of one request body.
        images: images in one request.
        pixels: width times height of one image.
        queue: images that may wait in a burst.
        queue_seconds: longest expected wait in a burst.
        standing_queue: images that may wait under lasting overload.
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
    pixels: int = 50_000_000
    queue: int = 64
    queue_seconds: float = 0.25
    standing_queue: int = 4
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
    """Return an error with status 503, which asks the client to retry after a second."""
    return RefusedError(503, "busy", message, {"Retry-After": "1"})


class Admission:
    """Decides whether one more request may wait. A burst may fill the long queue, lasting overload only the short one.

    Under overload a queue of any length is full, and every accepted request waits for all of it. A short queue keeps
    the model just as busy. Overload begins when the long queue is full, or when the short queue has been full for
    BUSY_SECONDS; it ends when the queue is empty. Not thread-safe: use it from the event loop.
    """

    def __init__(
        self, limits: Limits, seconds_per_image: Callable[[], float], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """``seconds_per_image`` returns the recent mean time for one image; 0 while it is unknown."""
        self._standing, self._clock = min(limits.standing_queue, limits.queue), clock
        self._limits, self._seconds_per_image = limits, seconds_per_image
        self._full_since: float | None = None
        self._overload = False
        self.waiting = 0

    def check(self) -> None:
        """Raise RefusedError (503) if the queue is full."""
        if self.waiting == 0:
            self._overload = False
        if self.waiting < self._standing:
            self._full_since = None
            return
        now = self._clock()
        self._full_since = now if self._full_since is None else self._full_since
        if self.waiting >= self._burst() or now - self._full_since > BUSY_SECONDS:
            self._overload = True
        if self._overload:
            raise busy_error(f"{self.waiting} images already wait; try again after a second, or start more servers")

    def _burst(self) -> float:
        seconds = max(self._seconds_per_image(), 1e-6)
        return max(self._standing, min(self._limits.queue, self._limits.queue_seconds / seconds))

    @contextmanager
    def admitted(self, images: int) -> Iterator[None]:
        """Count ``images`` as waiting during the block; raise RefusedError (503) if the queue is full."""
        self.check()
        self.waiting += images
        try:
            yield
        finally:
            self.waiting -= images


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
