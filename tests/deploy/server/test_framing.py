"""Where a request ends has one reading: what two programs could read in two ways is refused, and the connection closed.

Each case is sent as bytes, with a second request behind it. Only a request with a clear end lets the second one in.
"""

import asyncio
import socket
import threading
from pathlib import Path
from typing import cast

import pytest

from deploy.server.limits import HEAD_BYTES, Limits
from deploy.server.transport.connection import LimitedProtocol
from tests.deploy.server.conftest import IMAGE, Running, read_all, running, wait_for

HEAD = b"POST /v1/embed HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(IMAGE)
CHUNKED = b"Transfer-Encoding: chunked\r\n"
CHUNK = b"%x\r\n%s\r\n" % (len(IMAGE), IMAGE)
CHUNKS = CHUNK + b"0\r\n\r\n"
NEXT = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def statuses(server: Running, sent: bytes) -> list[int]:
    """Send a request and another one behind it; return the status of each answer until the connection closes."""
    with server.connect(sent + NEXT) as connection:
        answers = read_all(connection)
    return [int(part[:3]) for part in answers.split(b"HTTP/1.1 ")[1:]]


@pytest.mark.parametrize(
    ("fields", "body"),
    [
        (LENGTH, IMAGE),
        (LENGTH * 2, IMAGE),  # twice the same: one reading
        (CHUNKED, CHUNKS),
        (b"Transfer-Encoding: Chunked\r\n", CHUNKS),
        (b"Transfer-Encoding:\r\n chunked\r\n", CHUNKS),  # RFC 9112, 5.2: a folded line counts as a space
        (CHUNKED, CHUNK.replace(b"\r\n", b";name=value\r\n", 1) + b"0\r\n\r\n"),
        (CHUNKED, CHUNK + b"0\r\nContent-Length: 5\r\nX-Sum: 1\r\n\r\n"),  # fields of a trailer change nothing
    ],
)
def test_a_request_with_a_clear_end_keeps_the_connection(shared: Running, fields: bytes, body: bytes) -> None:
    assert statuses(shared, HEAD + fields + b"\r\n" + body) == [200, 200]


@pytest.mark.parametrize(
    ("fields", "body"),
    [
        (LENGTH + CHUNKED, CHUNKS),
        (CHUNKED + LENGTH, CHUNKS),
        (b"Content-Length: 0\r\n" + CHUNKED, CHUNKS),
        (b"Content-Length: 5\r\n" + LENGTH, IMAGE),
        (b"Content-Length: 5, %d\r\n" % len(IMAGE), IMAGE),
        (b"Content-Length: +%d\r\n" % len(IMAGE), IMAGE),
        (b"Transfer-Encoding: identity, chunked\r\n", CHUNKS),
        (b"Transfer-Encoding: identity\r\n" + CHUNKED, CHUNKS),
        (b"Transfer-Encoding: gzip, chunked\r\n", CHUNKS),
        (b"Transfer-Encoding: chunked, identity\r\n", CHUNKS),
        (b"Transfer-Encoding: xchunked\r\n", CHUNKS),
        (b"Transfer-Encoding : chunked\r\n", CHUNKS),
        (CHUNKED, CHUNK.replace(b"\r\n", b"\n", 1) + b"0\r\n\r\n"),
        (CHUNKED, b"-5\r\n" + CHUNKS),
    ],
)
def test_an_ambiguous_end_is_refused_and_the_connection_closed(shared: Running, fields: bytes, body: bytes) -> None:
    assert statuses(shared, HEAD + fields + b"\r\n" + body) == [400]


def test_chunks_in_http_1_0_are_ambiguous(shared: Running) -> None:
    sent = HEAD.replace(b"1.1", b"1.0") + CHUNKED + b"Connection: keep-alive\r\n\r\n" + CHUNKS
    assert statuses(shared, sent) == [400]


@pytest.mark.parametrize("behind", [b"", b"0\r\n"])
def test_extensions_and_trailers_count_as_part_of_the_body(bundle: Path, behind: bytes) -> None:
    """A chunk of one byte with kilobytes behind it: the limit on the body sees one byte."""
    with running(bundle, Limits(body_bytes=50_000)) as server:
        part = b"x: " + b"y" * 10_000 + b"\r\n" if behind else b"1;" + b"e" * 10_000 + b"\r\nz\r\n"
        with server.connect(HEAD + CHUNKED + b"\r\n" + behind) as connection:
            try:
                for _ in range(200):
                    connection.sendall(part)
            except (BrokenPipeError, ConnectionResetError):
                pass
            answer = read_all(connection)
        assert answer[9:12] in (b"413", b"400", b"")  # nothing is left if the reset overtakes the answer
        assert server.metric("simclr_held_bytes") == 0
        assert statuses(server, HEAD + LENGTH + b"\r\n" + IMAGE) == [200, 200]
        refused = ("chunks_too_large", "invalid_http")
        assert sum(server.metric(f'simclr_connections_refused_total{{reason="{one}"}}') for one in refused) == 1


@pytest.mark.seconds
def test_chunks_of_a_byte_each_are_cut_off_and_small_chunks_are_not(bundle: Path) -> None:
    """Each chunk takes as long to parse as a kilobyte."""
    with running(bundle) as server:
        with server.connect(HEAD + CHUNKED + b"\r\n") as connection:
            try:
                for _ in range(100):
                    connection.sendall(b"1\r\nz\r\n" * 4_000)
            except (BrokenPipeError, ConnectionResetError):
                pass
            assert read_all(connection)[9:12] in (b"413", b"")
        assert server.metric('simclr_connections_refused_total{reason="chunks_too_large"}') == 1
        image = IMAGE + b"\0" * 300_000
        small = b"".join(b"10\r\n%s\r\n" % image[start : start + 16].ljust(16) for start in range(0, len(image), 16))
        assert statuses(server, HEAD + CHUNKED + b"\r\n" + small + b"0\r\n\r\n") == [200, 200]


def test_requests_that_arrive_together_are_counted_one_by_one(shared: Running) -> None:
    """The second one's body arrives while the first one is answered."""
    large = IMAGE + b"\0" * 400_000
    one = HEAD + b"Content-Length: %d\r\n\r\n" % len(large) + large
    assert statuses(shared, HEAD + LENGTH + b"\r\n" + IMAGE + one * 3) == [200] * 5


def test_a_body_that_arrives_with_the_request_before_it_is_its_own(shared: Running) -> None:
    """One read of the server brings a whole request and most of the next one; the rest comes after the first answer."""
    large = IMAGE + b"\0" * 200_000
    first = HEAD + LENGTH + b"\r\n" + IMAGE + HEAD + b"Content-Length: %d\r\n\r\n" % len(large) + large[:180_000]
    with shared.connect() as connection:
        protocol = find_protocol(shared, connection)
        sent = threading.Event()
        protocol.loop.call_soon_threadsafe(sent.wait)
        connection.sendall(first)
        sent.set()
        assert connection.recv(12) == b"HTTP/1.1 200"
        connection.sendall(large[180_000:190_000])
        wait_for(lambda: protocol.cycle is not None and not protocol.flow.read_paused, "the rest of the body is read")
        for _ in range(3):  # turns of the loop, of which one reads
            asyncio.run_coroutine_threadsafe(asyncio.sleep(0), protocol.loop).result()
        connection.sendall(large[190_000:] + NEXT)
        assert [int(part[:3]) for part in read_all(connection).split(b"HTTP/1.1 ")[1:]] == [200, 200]


def find_protocol(server: Running, connection: socket.socket) -> LimitedProtocol:
    address = connection.getsockname()

    def find() -> list[LimitedProtocol]:
        connections = cast("set[LimitedProtocol]", set(server.server.server_state.connections))
        return [one for one in connections if one.client == address]

    wait_for(lambda: bool(find()), "the connection")
    return find()[0]


@pytest.mark.parametrize("fields", [1, 500])
def test_a_large_head_is_refused_even_if_it_arrives_at_once(shared: Running, fields: int) -> None:
    flood = b"".join(b"X-%d: %s\r\n" % (number, b"a" * (HEAD_BYTES // fields)) for number in range(fields))
    assert statuses(shared, HEAD + LENGTH + flood + b"\r\n" + IMAGE) in ([400], [431])
    small = b"".join(b"X-%d: a\r\n" % number for number in range(500))
    assert statuses(shared, HEAD + LENGTH + small + b"\r\n" + IMAGE) == [200, 200]
