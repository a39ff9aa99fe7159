"""The server: accepts connections, ends them in order, and reads files again on SIGHUP."""

import asyncio
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from ssl import SSLContext
from threading import Event, current_thread, main_thread
from typing import Any, cast

from uvicorn import Config, Server

from deploy.server import background
from deploy.server.limits import HEAD_BYTES, Limits
from deploy.server.metrics import Metrics
from deploy.server.transport.accept import Acceptor
from deploy.server.transport.connection import READ_BYTES, LimitedProtocol

DRAIN_NOTICE_SECONDS = 0.2
"""Pause after SIGTERM for connections that wait to be accepted, and another for requests that arrive on them."""

TURNS_UNTIL_READ = 8
"""Turns of the event loop, at most, from accepting a connection to reading a request that has arrived on it. On a busy
machine the pause can end before them."""

TICKS = 10
"""How often uvicorn's server looks in a second whether it has to end."""


class DrainingServer(Server):
    """Shuts down in order: reports not ready, closes the port, answers accepted requests, and drops the rest."""

    def __init__(
        self,
        config: Config,
        limits: Limits,
        metrics: Metrics,
        on_drain: Callable[[], None],
        on_reload: Callable[[], None],
        tls: Callable[[], SSLContext | None],
    ) -> None:
        super().__init__(config)
        self._limits, self._metrics, self._on_drain = limits, metrics, on_drain
        self._on_reload, self._tls = on_reload, tls
        self._asked, self._reads = Event(), False
        self.on_listening: Callable[[], None] = lambda: None
        """Called once the server accepts connections and handles signals."""
        self.is_reachable: Callable[[], bool] = lambda: True
        """Asked each second: the server shuts down when it is False."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self.lifespan.startup()
        self.servers = []

        def connect(peer: str) -> asyncio.Protocol:
            connection: LimitedProtocol = self.config.http_protocol_class(  # type: ignore[call-arg,assignment]
                config=self.config, server_state=self.server_state, app_state=self.lifespan.state
            )
            connection.peer = peer
            return connection

        connections = cast("set[LimitedProtocol]", self.server_state.connections)
        refused = partial(_count_refused, self._metrics)
        self._acceptor = Acceptor(sockets or [], self._limits, connections, connect, refused, self._tls)
        self.started = True
        self.on_listening()

    async def on_tick(self, counter: int) -> bool:
        if counter % TICKS == 0 and not self.is_reachable():
            return True
        return await super().on_tick(counter)

    def reload(self) -> None:
        """Read the files again, and let each connection end after its next answer, so that none keeps what was before.

        The client learns of the end with that answer, so no request meets a closed connection. A file that cannot be
        read in a finite time, such as one on a network disk, holds up neither requests nor the shutdown.
        """
        if not self._reads:
            self._reads = True
            read = partial(self._read_again, asyncio.get_running_loop())
            background.start("reload", self._metrics, self._asked.wait, read)
        self._asked.set()

    def _read_again(self, loop: asyncio.AbstractEventLoop) -> None:
        self._asked.clear()
        try:
            self._on_reload()
        finally:
            with suppress(RuntimeError):  # the event loop has ended
                loop.call_soon_threadsafe(self._leave_connections)

    def _leave_connections(self) -> None:
        for connection in {*self.server_state.connections, *self._acceptor.starting}:
            cast("LimitedProtocol", connection).leave()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._on_drain()
        await asyncio.sleep(DRAIN_NOTICE_SECONDS)  # closing the socket resets connections that only the kernel accepted
        await self._acceptor.finish()
        await asyncio.sleep(DRAIN_NOTICE_SECONDS)
        for _ in range(TURNS_UNTIL_READ):
            await asyncio.sleep(0)
        self._acceptor.end_handshakes()
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals as uvicorn does, but do not raise the signal again: an orderly shutdown is exit code 0.

        SIGHUP reloads, but from a terminal it says that the terminal is gone, and ends the server as SIGTERM does.
        """
        if current_thread() is not main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        handlers: dict[int, Any] = dict.fromkeys((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), self.handle_exit)
        if not sys.stderr.isatty():
            handlers[signal.SIGHUP] = lambda *_: loop.call_soon_threadsafe(self.reload)
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _count_refused(metrics: Metrics, reason: str) -> None:
    metrics.count("simclr_connections_refused_total", reason=reason)


def make_server(
    app: Any,
    limits: Limits,
    metrics: Metrics,
    on_drain: Callable[[], None],
    on_reload: Callable[[], None] = lambda: None,
    tls: Callable[[], SSLContext | None] = lambda: None,
) -> DrainingServer:
    """Make a server for an ASGI application.

    Args:
        on_drain: called when the shutdown begins.
        on_reload: called in a thread to read files again.
        tls: called for the certificate of each new connection; None is plain HTTP.
    """
    members = {
        "limits": limits,
        "on_refused": partial(_count_refused, metrics),
        "buffer": memoryview(bytearray(READ_BYTES)),
    }
    connection = type("Connection", (LimitedProtocol,), members)
    config = Config(
        app,
        loop="asyncio",
        http=connection,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        h11_max_incomplete_event_size=HEAD_BYTES,
        timeout_graceful_shutdown=int(limits.drain_seconds),
    )
    return DrainingServer(config, limits, metrics, on_drain, on_reload, tls)
