"""Whether one more request may wait: the queue is bounded in images and in time, and clients share its places."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from itertools import takewhile

from deploy.plural import counted
from deploy.server.limits import RETRY_SECONDS, Limits, busy_error
from deploy.server.transport.accept import address_of, network_of


def client_of(host: str, port: int) -> str:
    """Return whom a connection counts for: the address of the peer, of IPv6 its network of 64 bits.

    On this machine it is the connection itself: all clients of a proxy have the address of the loopback, and over a
    Unix socket they have none ("").
    """
    return _shared_network(host) or f"{host} {port}"


@lru_cache(1024)
def _shared_network(host: str) -> str | None:
    return None if not host or address_of(host).is_loopback else network_of(host)


class Admission:
    """The places of the queue, and the clients that hold them.

    - A client may hold no more images than places are free, so that one client alone fills half of the queue, and the
      next one finds room. Images in one request are not divided: the last request may exceed the queue.
    - A request that cannot be answered before its deadline is refused at once. Clients take turns, so what counts is
      the client's own images and at most the same number of each other client. Large images wait for each other
      alone: which client sends them is known from its latest request, for as long as a deadline.
    - A refused client is asked to come back after RETRY_SECONDS. Up to half of the places are kept for those who do:
      otherwise a client that has just been served would take every place that becomes free, by asking again at once.

    Not thread-safe: use it from the event loop.
    """

    def __init__(
        self,
        limits: Limits,
        seconds_per_image: Callable[[], float],
        clock: Callable[[], float] = time.monotonic,
        seconds_per_large_image: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """The two functions return the recent time from one result to the next; 0 while it is unknown."""
        self._limits, self._clock = limits, clock
        self._seconds_per_image, self._seconds_per_large_image = seconds_per_image, seconds_per_large_image
        self._images: Counter[str] = Counter()
        self._large: dict[str, tuple[float, float]] = {}  # client → share of large images, and when that was seen
        self._refused: dict[str, float] = {}  # client → when last, in the order of their first refusal
        self.waiting = 0

    def check(self, client: str, images: int = 1) -> None:
        """Raise RefusedError (503) if the queue has no room for the client, or no time for its images."""
        now = self._clock()
        own, free = self._images[client], self._room(client, now) - self.waiting
        if own < free and self._wait(client, images) <= self._limits.deadline_seconds:
            return
        self._remember(client, now)
        already = f"{counted(self.waiting, 'image')} already {'waits' if self.waiting == 1 else 'wait'}"
        if own < free:
            seconds = f"{self._limits.deadline_seconds:g} s"
            raise busy_error(f"{already}, no result within {seconds}; try again after a second")
        raise busy_error(f"{already}; try again after a second, or start more servers")

    @contextmanager
    def admitted(self, client: str, images: int) -> Iterator[None]:
        """Count ``images`` as waiting during the block; raise RefusedError (503) as ``check`` does."""
        self.check(client, images)
        self._refused.pop(client, None)
        self._images[client] += images
        self.waiting += images
        try:
            yield
        finally:
            self.waiting -= images
            self._images[client] -= images
            if not self._images[client]:
                del self._images[client]

    def learn(self, client: str, large: int, images: int) -> None:
        """Remember that of the images of a client's latest request ``large`` were large."""
        now = self._clock()
        self._large = {other: seen for other, seen in self._large.items() if other != client and self._holds(seen, now)}
        if large and len(self._large) < self._limits.queue:
            self._large[client] = large / images, now

    def _holds(self, seen: tuple[float, float], now: float) -> bool:
        return now - seen[1] <= self._limits.deadline_seconds

    def _share(self, client: str, now: float) -> float:
        """The share of a client's images that is likely to be large."""
        seen = self._large.get(client)
        return seen[0] if seen and self._holds(seen, now) else 0.0

    def _room(self, client: str, now: float) -> int:
        """Return the places for this client: all, but for those that are kept for clients refused before it."""
        if not self._refused:
            return self._limits.queue
        self._refused = {other: since for other, since in self._refused.items() if now - since <= 2 * RETRY_SECONDS}
        others = iter(self._refused)
        before = takewhile(lambda other: other != client, others) if self._came_as_asked(client, now) else others
        return self._limits.queue - min(sum(1 for _ in before), self._limits.queue // 2)

    def _remember(self, client: str, now: float) -> None:
        if not self._came_as_asked(client, now):
            self._refused.pop(client, None)  # to the end of the line
        if client in self._refused or len(self._refused) < self._limits.queue:
            self._refused[client] = now

    def _came_as_asked(self, client: str, now: float) -> bool:
        return now - self._refused.get(client, now) >= 0.9 * RETRY_SECONDS

    def _wait(self, client: str, images: int) -> float:
        """Return the seconds until the last of the images has its result, if all threads stay busy.

        0 if nothing waits: an estimate from one slow run would otherwise refuse all that could correct it.
        """
        if not self.waiting:
            return 0.0
        own = self._images[client] + images
        counts = {client: own} | {other: min(count, own) for other, count in self._images.items() if other != client}
        return max(
            sum(counts.values()) * self._seconds_per_image(),
            self._large_before(client, counts) * self._seconds_per_large_image(),
        )

    def _large_before(self, client: str, counts: Mapping[str, int]) -> float:
        """How many large images are decoded until the client's last one is; 0 if it is not expected to send any."""
        if not self._large:
            return 0.0
        now = self._clock()
        large = {other: count * self._share(other, now) for other, count in counts.items()}
        return sum(min(one, large[client]) for one in large.values())
