"""ASGI, as the guard speaks it: its types, a body read whole, and an answer in a line of text."""

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

MAX_BODY = 8 * 2**20  # bytes; a launchpad's configuration is a few thousand
HTML = {"content-type": "text/html; charset=utf-8"}


class Refused(Exception):  # noqa: N818  it is an answer
    """The answer to a request that goes no further."""

    def __init__(self, status: int, reason: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(reason)
        self.status, self.reason, self.headers = status, reason, dict(headers or {})


async def read_body(receive: Receive) -> bytes:
    body = b""
    while True:
        message = await receive()
        part: bytes = message.get("body", b"")
        body += part
        if len(body) > MAX_BODY:
            raise Refused(413, f"the request is larger than {MAX_BODY} bytes")
        if not message.get("more_body"):
            return body


def replay(body: bytes, receive: Receive) -> Receive:
    rest = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return rest.pop() if rest else await receive()

    return replay


async def answer(scope: Scope, send: Send, status: int, text: str, headers: Mapping[str, str]) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": text[:100]})
        return
    lines = {"content-type": "text/plain; charset=utf-8", "cache-control": "no-store"} | dict(headers)
    fields = [(name.encode(), value.encode("latin-1", "replace")) for name, value in lines.items()]
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": text.encode() + (b"\n" if text else b"")})
