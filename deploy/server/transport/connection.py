"""A connection of uvicorn with time limits for everything that a client does.

uvicorn waits forever for the head of a request, and for a client that does not read its answer. It counts neither
closed connections nor requests that are not valid HTTP.
"""

import asyncio
import socket
from collections.abc import Callable

import h11
from uvicorn.protocols.http.flow_control import CLOSE_HEADER
from uvicorn.protocols.http.h11_impl import H11Protocol

from deploy.server.limits import Limits

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
