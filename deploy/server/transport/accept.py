"""Accept connections up to a limit. When they run out, those that wait for their clients make room for others."""

import asyncio
import errno
import heapq
import logging
import resource
import select
import socket
import struct
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address
from ssl import SSLContext
from typing import Any, Protocol

from deploy.errors import ArgumentError
from deploy.server.limits import Limits

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

    peer: str
    """Whom it counts for when connections run out."""
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


def address_of(host: str) -> IPv4Address | IPv6Address:
    """Parse the address of a peer, which may have the scope of a link (``%eth0``) or be IPv4 written as IPv6."""
    address = ip_address(host.partition("%")[0])
    return getattr(address, "ipv4_mapped", None) or address


def network_of(host: str) -> str:
    """Return what counts as one client of an IP address: itself, or of IPv6 its network of 64 bits."""
    return address_of(host).exploded[:19]  # four of the eight groups of IPv6, or all of IPv4


def peer_of(accepted: socket.socket, address: Any) -> str:
    """Return whom a connection counts for: the network of its address, or over a Unix socket its process."""
    if accepted.family != socket.AF_UNIX:
        return network_of(address[0])
    process, _, _ = struct.unpack("3i", accepted.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return f"process {process}"


@dataclass(eq=False)
class Handshake:
    """A connection until its TLS handshake ends; without TLS, until the next turn of the event loop.

    Like a ``Connection``, it is dropped when connections run out, but not without TLS.
    """

    peer: str
    waiting_since: float | None
    task: asyncio.Task[object]
    on_refused: Callable[[str], None]
    idle: bool = True

    def drop(self) -> None:
        self.on_refused("too_many_connections")
        self.task.cancel()


def choose(connections: Sequence[Connection], now: float, most: int) -> list[Connection]:
    """Choose what makes room: idle connections, then stalled ones; first of the peer with most, the longest waiting.

    Of a peer that holds more than all others together, every one that waits for it is chosen before those of others.
    Otherwise a client that has begun many requests would have everyone else's new connections closed, which are idle.
    """
    held = Counter(connection.peer for connection in connections)

    def rank(connection: Connection) -> tuple[bool, bool, int, float] | None:
        if connection.waiting_since is None:
            return None
        waited, of_peer = now - connection.waiting_since, held[connection.peer]
        dominates = len(connections) < 2 * of_peer < 2 * len(connections)
        if not (connection.idle or dominates or waited > STALLED_SECONDS):
            return None
        return dominates, connection.idle, of_peer, waited

    ranked = [(found, connection) for connection in connections if (found := rank(connection))]
    return [connection for _, connection in heapq.nlargest(most, ranked, key=lambda entry: entry[0])]


class Acceptor:
    """Accepts the connections of listening sockets, one of each socket in each turn of the event loop.

    asyncio's own servers accept all that wait at once, and log each failure when files run out. A TLS handshake counts
    as a connection that waits for its client, so that one that never ends makes room as well.
    """

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        limits: Limits,
        connections: Collection[Connection],
        connect: Callable[[str], asyncio.Protocol],
        on_refused: Callable[[str], None],
        tls: Callable[[], SSLContext | None],
    ) -> None:
        """``connections`` are the open ones, which each object made by ``connect``, from the peer, joins and leaves.

        ``on_refused`` is called with the reason for each connection that ends before it is open, and ``tls`` for the
        certificate of each new one.
        """
        self._listeners, self._limits, self._connections, self._connect = listeners, limits, connections, connect
        self._on_refused, self._tls = on_refused, tls
        self._loop = asyncio.get_running_loop()
        self._handshakes: dict[Any, Handshake] = {}  # by what connect made
        self._pause: asyncio.TimerHandle | None = None
        self._exhausted = False
        for listener in listeners:
            listener.setblocking(False)
        self._resume()

    async def finish(self) -> None:
        """Accept what waits already, however busy the machine is, and nothing further; handshakes continue."""
        for _ in range(self._limits.connections):  # one who never stops connecting does not hold up the end
            if not self._is_anyone_waiting():
                break
            await asyncio.sleep(0)
        self._close()

    def _is_anyone_waiting(self) -> bool:
        poll = select.poll()
        for listener in self._listeners:
            poll.register(listener, select.POLLIN)
        return bool(poll.poll(0))

    def _close(self) -> None:
        if self._pause:
            self._pause.cancel()
        for listener in self._listeners:
            self._loop.remove_reader(listener)
            listener.close()

    @property
    def starting(self) -> Collection[asyncio.Protocol]:
        """What ``connect`` made and is not open yet."""
        return self._handshakes.keys()

    def end_handshakes(self) -> None:
        for handshake in self._handshakes.values():
            handshake.task.cancel()

    def _accept(self, listener: socket.socket) -> None:
        handshakes = [
            handshake
            for protocol, handshake in self._handshakes.items()
            if protocol not in self._connections and not handshake.task.cancelling()
        ]
        if len(self._connections) + len(handshakes) >= self._limits.connections:
            # One without TLS joins the others in the next turn, which then knows which of them are idle.
            joining = any(handshake.waiting_since is None for handshake in handshakes)
            if not joining and not self._make_room([*self._connections, *handshakes]):
                self._pause_for(PAUSE_SECONDS)
            return
        try:
            accepted, address = listener.accept()
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
        self._start(accepted, peer_of(accepted, address))

    def _start(self, accepted: socket.socket, peer: str) -> None:
        protocol, context = self._connect(peer), self._tls()
        options: dict[str, Any] = {}
        if context:
            timeouts = self._limits.head_seconds, self._limits.send_seconds
            options = {"ssl": context, "ssl_handshake_timeout": timeouts[0], "ssl_shutdown_timeout": timeouts[1]}
        task = self._loop.create_task(self._loop.connect_accepted_socket(lambda: protocol, accepted, **options))
        since = self._loop.time() if context else None
        self._handshakes[protocol] = Handshake(peer, since, task, self._on_refused)
        task.add_done_callback(partial(self._end_handshake, protocol))

    def _end_handshake(self, protocol: asyncio.Protocol, task: asyncio.Task[object]) -> None:
        del self._handshakes[protocol]
        if not task.cancelled() and task.exception():  # the client: it speaks no TLS, refuses the certificate, is gone
            self._on_refused("tls_handshake")

    def _make_room(self, connections: Sequence[Connection]) -> bool:
        chosen = choose(connections, self._loop.time(), max(1, self._limits.connections // 64))
        for connection in chosen:
            connection.drop()
        return bool(chosen)

    def _pause_for(self, seconds: float) -> None:
        for listener in self._listeners:
            self._loop.remove_reader(listener)
        self._pause = self._loop.call_later(seconds, self._resume)

    def _resume(self) -> None:
        for listener in self._listeners:
            self._loop.add_reader(listener, self._accept, listener)
