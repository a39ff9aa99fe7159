"""How much a client may send, for how long, and when a request is refused instead of made to wait."""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from starlette.types import Receive

from deploy.errors import DeployError

BUSY_SECONDS = 1.0
"""A longer queue than the standing one may last this long: a change of the model slows a server for less than that."""


@dataclass(frozen=True)
class Limits:
    """What `simclr-deploy serve` sets.

    Attributes:
        body_bytes: of one request.
        images: of one request.
        pixels: width times height of one image.
        queue: images that may wait in a burst, and ``queue_seconds``, for how long at most, as far as can be foreseen;
            ``standing_queue`` images under overload.
        deadline_seconds: from a complete request to its answer.
        receive_seconds: for a body; ``head_seconds`` for the head, also of the next request on a connection.
        send_seconds: for an answer to leave.
        connections: open at one time.
        held_bytes: of all request bodies in memory together.
        drain_seconds: for requests in flight after SIGTERM.
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
    """A request gets another answer than the one it asked for: ``status``, ``reason`` in one word, and a message."""

    def __init__(self, status: int, reason: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.reason, self.headers = status, reason, dict(headers or {})


class ClientLeftError(DeployError):
    """Nobody waits for the answer any more."""


def busy(message: str) -> RefusedError:
    return RefusedError(503, "busy", message, {"Retry-After": "1"})


class Admission:
    """Whether one more request may wait. A burst may fill the long queue; a lasting overload only the short one.

    Under overload a queue of any length is full, so its length is what every accepted request waits. Short, it keeps
    the model as busy as long. An overload begins when the long queue is full, or the short one was for BUSY_SECONDS; it
    ends when nobody waits. Used from one thread.
    """

    def __init__(
        self, limits: Limits, seconds_per_image: Callable[[], float], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """``seconds_per_image``: how long the server has lately taken for one; 0 while nobody knows."""
        self._standing, self._clock = min(limits.standing_queue, limits.queue), clock
        self._limits, self._seconds_per_image = limits, seconds_per_image
        self._full_since: float | None = None
        self._overload = False
        self.waiting = 0

    def check(self) -> None:
        """Raise RefusedError (503) when the queue is full."""
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
            raise busy(f"{self.waiting} images wait already; try again after a second, or start more servers")

    def _burst(self) -> float:
        seconds = max(self._seconds_per_image(), 1e-6)
        return max(self._standing, min(self._limits.queue, self._limits.queue_seconds / seconds))

    @contextmanager
    def admitted(self, images: int) -> Iterator[None]:
        self.check()
        self.waiting += images
        try:
            yield
        finally:
            self.waiting -= images


@dataclass
class HeldBytes:
    """Bytes of request bodies in memory, of all clients together."""

    most: int
    now: int = field(default=0)

    @contextmanager
    def counter(self) -> Iterator[Callable[[int], None]]:
        mine = 0

        def add(size: int) -> None:
            nonlocal mine
            if self.now + size > self.most:
                raise busy(f"requests of {self.now:,} bytes are in memory already; try again after a second")
            mine += size
            self.now += size

        try:
            yield add
        finally:
            self.now -= mine


async def read_body(receive: Receive, declared: str | None, limits: Limits, hold: Callable[[int], None]) -> bytes:
    """The body of a request; its size is counted while it arrives, whatever its Content-Length (``declared``) says.

    Raises:
        RefusedError: 413 when it is too large, 408 when it takes too long, 503 when memory is short.
        ClientLeftError: the connection ended before the body.
    """
    too_large = RefusedError(
        413, "body_too_large", f"the body is over {limits.body_bytes:,} bytes; send fewer or smaller images"
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
                    raise ClientLeftError("left before its body was complete")
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
