"""What happens around every route: checks of host name and token, a log line, metrics, and response headers."""

import hmac
import re
import time
from collections.abc import Callable, Collection
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deploy.failure import printable
from deploy.server.limits import HEAD_BYTES
from deploy.server.service import Record, Service, log

OPEN = ("/", "/docs", "/openapi.json", "/metrics", "/v2/health/live", "/v2/health/ready")
"""Paths that do not need a token: they reveal nothing about images."""

ABSOLUTE, PORT = re.compile("https?://([^/]*)", re.IGNORECASE), re.compile(r":\d*$")
"""The target of a request that was meant for a proxy, in which the host precedes the path (RFC 9112, 3.2.2)."""

OTHER_PAGES = ("cross-site", "same-site")
"""What browsers say about a request of a page of another origin, in a header that no page can set."""

PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, POST",
    "Access-Control-Allow-Headers": "Authorization, *",  # * stands for every name but this one
    "Access-Control-Max-Age": "600",
}

MESSAGE_LENGTH = 10_000
"""Room for an error of each image in a request."""

CLIENT_LEFT = 499
"""Status in logs and metrics of a client that closed the connection, as in nginx."""


def error_response(
    path: str, status: int, reason: str, message: str, headers: dict[str, str] | None = None
) -> JSONResponse:
    """Return an error in the format of the /v1 routes, or of the protocol to which the path belongs.

    The message may repeat what the client sent, which may be of any length, and no text that UTF-8 can express.
    """
    message = printable(message, MESSAGE_LENGTH)
    content: object = {"reason": reason, "message": message}
    if path.startswith("/v2"):
        content = message
    elif path.startswith(("/v1/embeddings", "/v1/models")):
        kind = "server_error" if status >= 500 else "invalid_request_error"
        content = {"message": message, "type": kind, "param": None, "code": reason}
    return JSONResponse({"error": content}, status, headers)


class AccessMiddleware:
    """Refuses requests with an ambiguous head, with a wrong host name, of other web pages, or without a token."""

    def __init__(
        self,
        app: ASGIApp,
        tokens: Callable[[], Collection[bytes]] | None,
        hosts: frozenset[str],
        origins: frozenset[str],
    ) -> None:
        self._app, self._tokens, self._hosts, self._origins = app, tokens, hosts, origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        host = headers.get("host")
        if target := ABSOLUTE.match(scope["path"]):
            host, scope["path"] = target[1], scope["path"][target.end() :] or "/"
        app = self._app
        path = scope["path"]
        origin = headers.get("origin", "")
        allowed = origin in self._origins
        if self._origins:
            send = _share(send, origin if allowed else None)
        if sum(len(field) + len(value) for field, value in headers.raw) > HEAD_BYTES:
            message = f"the head exceeds {HEAD_BYTES:,} bytes; send fewer or shorter headers"
            app = error_response(path, 431, "head_too_large", message, {"Connection": "close"})
        elif "transfer-encoding" in headers and ("content-length" in headers or scope["http_version"] == "1.0"):
            message = "Transfer-Encoding with Content-Length or HTTP/1.0: where the body ends is ambiguous; send one"
            app = error_response(path, 400, "ambiguous_length", message, {"Connection": "close"})
        elif self._hosts and host is not None and PORT.sub("", host.lower()) not in self._hosts:
            app = error_response(
                path, 421, "wrong_host", "wrong Host header; use the server's own address, such as 127.0.0.1"
            )
        elif self._origins and scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            app = Response(status_code=204 if allowed else 403, headers=PREFLIGHT if allowed else {})
        elif scope["method"] == "POST" and headers.get("sec-fetch-site") in OTHER_PAGES and not allowed:
            message = "a web page of another origin sent this; start the server with --cors-origin to allow it"
            app = error_response(path, 403, "cross_origin", message)
        elif self._tokens and path not in OPEN and not _carries(headers, self._tokens()):
            challenge = {"WWW-Authenticate": "Bearer"}
            app = error_response(path, 401, "token", "send the header Authorization: Bearer TOKEN", challenge)
        await app(scope, receive, send)


def _share(send: Send, origin: str | None) -> Send:
    """Let the page of this origin read the answer. Caches learn that the answer depends on the origin, in any case."""

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] += [(b"vary", b"Origin")]
            if origin:
                shared = {
                    b"access-control-allow-origin": origin.encode("latin-1"),
                    b"access-control-expose-headers": b"*",
                }
                message["headers"] += shared.items()
        await send(message)

    return send_with_headers


def _carries(headers: Headers, tokens: Collection[bytes]) -> bool:
    """Compare the token of a request in constant time. The scheme's name has no case (RFC 9110, 11.1)."""
    given = headers.getlist("authorization")
    scheme, _, credentials = given[0].partition(" ") if len(given) == 1 else ("", "", "")
    text = credentials.strip(" ").encode("latin-1")
    return sum(hmac.compare_digest(text, token) for token in tokens) > 0 and scheme.lower() == "bearer"


class ObservingMiddleware:
    """Counts, times and logs each request, and names the model in the headers of the answer."""

    def __init__(self, app: ASGIApp, service: Service, names: dict[Any, str]) -> None:
        self._app, self._service, self._names = app, service, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began, status = time.perf_counter(), CLIENT_LEFT
        record = scope["record"] = Record()

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                record.model = record.model or self._service.models.current.id
                message["headers"] += [(b"x-model-id", record.model.encode()), (b"x-content-type-options", b"nosniff")]
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        finally:
            status = CLIENT_LEFT if scope.get("left") else status
            seconds = time.perf_counter() - began
            route = self._names.get(scope.get("endpoint"), "other")
            self._service.metrics.count("simclr_requests_total", route=route, status=f"{status // 100}xx")
            self._service.metrics.observe("simclr_request_seconds", seconds, route=route)
            duration = round(seconds * 1000, 2)
            log("request", route=route, status=status, ms=duration, images=record.images, model=record.model[:12])
