"""uvicorn with time limits for everything that a client does, and for the shutdown of the server.

uvicorn waits forever for the head of a request, and for a client that does not read its answer. It counts neither
closed connections nor requests that are not valid HTTP.
"""

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

import h11
from uvicorn import Config, Server
from uvicorn.protocols.http.flow_control import CLOSE_HEADER
from uvicorn.protocols.http.h11_impl import H11Protocol

from deploy.server import background
from deploy.server.limits import HEAD_BYTES, Limits
from deploy.server.metrics import Metrics
from deploy.server.transport.accept import Acceptor

DRAIN_NOTICE_SECONDS = 0.2
"""Pause after SIGTERM for connections that wait to be accepted, and another for requests that arrive on them."""

TICKS = 10
"""How often uvicorn's server looks in a second whether it has to end."""

IDLE_CLOSE_SECONDS = 1.0
"""How long the server waits for an idle client to close its side of a TLS connection."""


OVERHEAD_BYTES = 65_536
"""What a request may send in excess of twice its content: its head, and the framing of its chunks."""

READ_BYTES, CHUNKS_READ_BYTES, COSTLY_READ_BYTES = 262_144, 16_384, 2_048
"""Most that is read of one connection before the others get their turn: of a body whose length is known, of chunks that
have been large so far, and of a head or other chunks. A chunk of a few bytes takes as long to parse as a kilobyte, 20
µs, so 256 KB of them take a second."""


class LimitedProtocol(H11Protocol, asyncio.BufferedProtocol):
    """A connection with time limits. ``on_refused`` is called with the reason when it closes without a request."""

    limits: Limits
    on_refused: Callable[[str], None]
    buffer: memoryview
    """Where all connections of a server read to, one after the other."""
    peer = ""
    leaving = False
    """The next answer is the last one."""
    idle = True
    waiting_since: float | None = None
    _deadline: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None
    _received = 0
    _content = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.client = self.client or ("", id(self))  # a Unix socket has no address
        # uvicorn writes head and body separately; without this the body waits 40 ms for the client's acknowledgment.
        # asyncio sets it only on sockets created with an explicit protocol number, unlike `socket.create_server`.
        if transport.get_extra_info("socket").family != socket.AF_UNIX:
            transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._set_deadline(None)
        self.resume_writing()
        super().connection_lost(exc)

    def eof_received(self) -> None:
        """Treat a client that stops sending as gone: its request need not be computed."""

    def get_buffer(self, _sizehint: int) -> memoryview:
        if not (self.cycle and self.cycle.more_body):
            return self.buffer[:COSTLY_READ_BYTES]
        if any(name == b"content-length" for name, _ in self.headers):
            return self.buffer
        large_chunks = self._received - self._content < self._content // 64
        return self.buffer[: CHUNKS_READ_BYTES if large_chunks else COSTLY_READ_BYTES]

    def buffer_updated(self, nbytes: int) -> None:
        self.data_received(bytes(self.buffer[:nbytes]))

    def pause_writing(self) -> None:
        """Give the client the time for an answer to read what is there; until then, its next answers have to wait."""
        super().pause_writing()
        self._unread = self.loop.call_later(self.limits.send_seconds, self.transport.abort)
        self.waiting_since = self.waiting_since or self.loop.time()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread:
            self._unread.cancel()
            self._unread = None
            self._end_waiting_for_client()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():  # over TLS, data arrive until the client closes as well
            return
        before, held = self.cycle, len(self.cycle.body) if self.cycle else 0
        super().data_received(data)
        if self.cycle is not before:
            self._set_deadline(None)  # from here, the deadlines of body and answer apply
            self._received, self._content, held = 0, 0, 0
            self._announce_last_answer()
        self.idle = False
        self._received += len(data)
        if self.cycle and self.cycle.more_body and not self.transport.is_closing():
            self._content += len(self.cycle.body) - held
            # h11 discards chunk extensions and trailers, and takes 20 µs for each chunk, however small.
            if self._received > 2 * self._content + OVERHEAD_BYTES and not self.cycle.response_complete:
                self._close("chunks_too_large", 413, b"the chunks of the body are far larger than its content")
        self._end_waiting_for_client()

    def on_response_complete(self) -> None:
        before = self.cycle
        self._set_deadline(self.limits.send_seconds, self.transport.abort)
        super().on_response_complete()
        if self.cycle is before and not self.transport.is_closing():
            self._expect_head()
        else:
            # What has arrived of the next request so far was received as a part of the data of this one.
            self._received = self._content = len(self.cycle.body)
            self._announce_last_answer()  # of the next request, if it has already arrived
            self._end_waiting_for_client()

    def send_400_response(self, msg: str) -> None:
        self._close("invalid_http", 400, msg.encode())

    def drop(self) -> None:
        """Close to make room for another connection."""
        self.on_refused("too_many_connections")
        self.transport.abort()

    def leave(self) -> None:
        """Close after the answer that is under way, or after the next one: the client needs a new connection then."""
        self.leaving = True
        if self.cycle is not None:
            self._announce_last_answer()

    def shutdown(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self._close_idle()
        else:
            super().shutdown()

    def timeout_keep_alive_handler(self) -> None:
        """Leave the end of an idle connection to the deadline for the next head, which is the same."""

    def _unsupported_upgrade_warning(self) -> None:
        """Write no log: the request is answered as if it asked for no upgrade."""

    def _announce_last_answer(self) -> None:
        if self.leaving and not self.cycle.response_started:
            self.cycle.keep_alive = False
            self.cycle.default_headers = [*self.cycle.default_headers, CLOSE_HEADER]

    def _close_idle(self) -> None:
        """Close a connection without a complete request.

        Over TLS, closing waits for the client, which may not look at such a connection before it needs one again.
        """
        unread = self.transport.get_write_buffer_size()
        if not self.transport.is_closing():
            self.transport.close()
        self._set_deadline(self.limits.send_seconds if unread else IDLE_CLOSE_SECONDS, self.transport.abort)

    def _end_waiting_for_client(self) -> None:
        served = self.cycle is not None and not self.cycle.response_complete and not self.cycle.more_body
        if served and not self._unread:
            self.waiting_since = None

    def _expect_head(self) -> None:
        self.idle, self.waiting_since = True, self.loop.time()
        self._set_deadline(self.limits.head_seconds, self._on_head_timeout)

    def _on_head_timeout(self) -> None:
        if self.transport.get_write_buffer_size():
            self._set_deadline(self.limits.send_seconds, self.transport.abort)
        elif self.conn.trailing_data[0] and self.conn.our_state is h11.IDLE:
            self._close("head_timeout", 408, b"the head of the request took too long")
        else:
            self._close_idle()

    def _set_deadline(self, seconds: float | None, action: Callable[[], None] = lambda: None) -> None:
        if self._deadline:
            self._deadline.cancel()
        self._deadline = None if seconds is None else self.loop.call_later(seconds, action)

    def _close(self, reason: str, status: int, message: bytes) -> None:
        self.on_refused(reason)
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            headers = [
                ("content-type", "text/plain"),
                ("content-length", str(len(message))),
                ("connection", "close"),
            ]
            headers += [("retry-after", "1")] if status == 503 else []
            for event in (h11.Response(status_code=status, headers=headers), h11.Data(message), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
        self._set_deadline(self.limits.send_seconds, self.transport.abort)


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
        self._acceptor.close()
        await asyncio.sleep(DRAIN_NOTICE_SECONDS)
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
