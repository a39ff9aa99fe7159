"""What the web server says, without secrets: also what is never stored, such as why the definitions do not load."""

import json
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Any

from pipeline.redact import current_redactor, hide_all
from pipeline.ui.asgi import Application, Message, Receive, Scope, Send

SPOKEN = ("application/json", "text/plain", "text/html", "application/x-ndjson", "application/octet-stream")
STATIC = ("/static/", "/_next/", "/vendor/", "/robots.txt", "/favicon")


def clean(application: Application, root: Path) -> Application:
    """The application of the workspace at ``root``, with its answers redacted: pages, JSON, logs and live messages."""
    hide = current_redactor(root)

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await application(scope, receive, _live(send, hide))
        elif scope["type"] == "http" and not scope["path"].startswith(STATIC):
            headers = [(name, value) for name, value in scope["headers"] if name != b"accept-encoding"]
            await application({**scope, "headers": headers}, receive, _Answer(send, hide))
        else:
            await application(scope, receive, send)

    return serve


def _live(send: Send, hide: Callable[[str], str]) -> Send:
    async def extended(message: Message) -> None:
        if message["type"] == "websocket.send" and message.get("text"):
            message = {**message, "text": _clean(message["text"], hide)}
        await send(message)

    return extended


class _Answer:
    """Holds back an answer until it is whole: a secret may lie across two of its parts."""

    def __init__(self, send: Send, hide: Callable[[str], str]) -> None:
        self._send, self._hide = send, hide
        self._start: MutableMapping[str, Any] | None = None
        self._parts: list[bytes] = []

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and _kind(message).startswith(SPOKEN):
            self._start = message
        elif message["type"] == "http.response.body" and self._start is not None:
            self._parts.append(message.get("body", b""))
            if not message.get("more_body"):
                await self._finish(self._start)
        else:
            await self._send(message)

    async def _finish(self, start: MutableMapping[str, Any]) -> None:
        body = b"".join(self._parts)
        try:
            text = body.decode()
        except UnicodeDecodeError:  # a picture
            text = None
        if text is not None and (shown := _clean(text, self._hide)) != text:
            body = shown.encode()
            headers = [(name, value) for name, value in start["headers"] if name.lower() != b"content-length"]
            start = {**start, "headers": [*headers, (b"content-length", str(len(body)).encode())]}
        await self._send(start)
        await self._send({"type": "http.response.body", "body": body})


def _kind(message: Message) -> str:
    kinds: list[bytes] = [value for name, value in message.get("headers", []) if name.lower() == b"content-type"]
    return kinds[0].decode("latin-1") if kinds else "text/plain"


def _clean(text: str, hide: Callable[[str], str]) -> str:
    hidden = hide(text)
    if hidden == text:
        return text
    try:  # JSON stays JSON
        return json.dumps(hide_all(json.loads(text), hide))
    except ValueError:
        return hidden
