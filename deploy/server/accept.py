"""Accept connections up to a limit. When they run out, those that wait for their clients make room for others."""

import asyncio
import errno
import heapq
import logging
import resource
import socket
from collections import Counter
from collections.abc import Callable, Collection
from typing import Protocol

from deploy.errors import ArgumentError

MOST_CONNECTIONS = 900
RESERVED_FILES = 124
"""Files that the server opens besides its connections: the model, an index, the trial of a new model."""

EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
PAUSE_SECONDS = 0.05
EXHAUSTED_PAUSE_SECONDS = 1.0
STALLED_SECONDS = 1.0
"""After how long a connection in the middle of a request may be closed for another one."""


class Connection(Protocol):
    """What a connection tells about itself."""

    host: str
    idle: bool
    """Nothing of its next request has arrived."""
    waiting_since: float | None
    """Since when it waits for its client, in seconds of the event loop's clock; None while the server works for it."""

    def drop(self) -> None: ...


def most_connections(asked: int | None) -> int:
    """Return how many connections this process may have, by its limit of open files.

    Raises:
        ArgumentError: the limit leaves no room for that many.
    """
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    room = (MOST_CONNECTIONS if asked is None else asked) if files == resource.RLIM_INFINITY else files - RESERVED_FILES
    most = min(MOST_CONNECTIONS, room) if asked is None else asked
    if not 1 <= most <= room:
        needed = max(most, 1) + RESERVED_FILES
        raise ArgumentError(
            f"--max-connections {max(most, 1)} needs {needed:,} open files, and `ulimit -n` is {files:,}; "
            f"set it to {needed:,} or more"
        )
    return most


class Acceptor:
    """Accepts the connections of a listening socket, one in each turn of the event loop.

    asyncio's own servers accept all that wait at once, and log each failure when files run out.
    """

    def __init__(
        self,
        listener: socket.socket,
        limit: int,
        connections: Collection[Connection],
        connect: Callable[[], asyncio.Protocol],
    ) -> None:
        """``connections`` are the open ones, which each object made by ``connect`` joins and leaves."""
        self._listener, self._limit, self._connections, self._connect = listener, limit, connections, connect
        self._loop = asyncio.get_running_loop()
        self._starting: set[asyncio.Task[object]] = set()
        self._pause: asyncio.TimerHandle | None = None
        self._exhausted = False
        listener.setblocking(False)
        self._resume()

    def close(self) -> None:
        if self._pause:
            self._pause.cancel()
        self._loop.remove_reader(self._listener)
        self._listener.close()

    def _accept(self) -> None:
        if len(self._connections) + len(self._starting) >= self._limit:
            # One that has just started may count twice: the next turn knows, and drops none for it.
            if not self._starting and not self._make_room():
                self._pause_for(PAUSE_SECONDS)
            return
        try:
            accepted, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:
            if error.errno not in EXHAUSTED:
                raise
            if not self._exhausted:
                logging.getLogger(__name__).warning("cannot accept connections: %s; trying again each second", error)
            self._exhausted = True
            self._pause_for(EXHAUSTED_PAUSE_SECONDS)
            return
        self._exhausted = False
        task = self._loop.create_task(self._loop.connect_accepted_socket(self._connect, accepted))
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)

    def _make_room(self) -> bool:
        """Drop idle connections, then stalled ones: first of the host with the most, and the longest waiting."""
        now = self._loop.time()
        held = Counter(connection.host for connection in self._connections)
        waiting = [
            (connection.idle, held[connection.host], now - connection.waiting_since, connection)
            for connection in self._connections
            if connection.waiting_since is not None
            and (connection.idle or now - connection.waiting_since > STALLED_SECONDS)
        ]
        for *_, connection in heapq.nlargest(max(1, self._limit // 64), waiting, key=lambda entry: entry[:3]):
            connection.drop()
        return bool(waiting)

    def _pause_for(self, seconds: float) -> None:
        self._loop.remove_reader(self._listener)
        self._pause = self._loop.call_later(seconds, self._resume)

    def _resume(self) -> None:
        self._loop.add_reader(self._listener, self._accept)
