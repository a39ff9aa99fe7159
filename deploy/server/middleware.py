"""What surrounds every route: the host name and the token, one log line, metrics, and headers of the answer."""

import hmac
import time
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deploy.server.service import Record, Service, log

OPEN = ("/", "/openapi.json", "/metrics", "/v2/health/live", "/v2/health/ready")
"""Paths that need no token: they say nothing about images."""

CLIENT_LEFT = 499
"""In logs and metrics, as nginx has it."""


def error_response(
    path: str, status: int, reason: str, message: str, headers: dict[str, str] | None = None
) -> JSONResponse:
    """Of our routes, or as the Open Inference Protocol has it."""
    content = message if path.startswith("/v2") else {"reason": reason, "message": message}
    return JSONResponse({"error": content}, status, headers)


class Guarded:
    """Lets through what has the right host name and the token."""

    def __init__(self, app: ASGIApp, token: str | None, hosts: frozenset[str]) -> None:
        self._app, self._hosts = app, hosts
        self._token = None if token is None else f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1").lower()
        name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
        app = self._app
        path = scope["path"]
        if self._hosts and name not in self._hosts:
            app = error_response(path, 421, "wrong_host", "ask for this server by its own address, such as 127.0.0.1")
        elif self._token and path not in OPEN:
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, self._token):
                wanted = {"WWW-Authenticate": "Bearer"}
                app = error_response(path, 401, "token", "send the header Authorization: Bearer TOKEN", wanted)
        await app(scope, receive, send)


class Observed:
    """Counts, times and logs each request, and names the model in its answer."""

    def __init__(self, app: ASGIApp, service: Service, names: dict[Any, str]) -> None:
        self._app, self._service, self._names = app, service, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began, status = time.perf_counter(), CLIENT_LEFT
        kept = scope["record"] = Record()

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                kept.model = kept.model or self._service.models.current.id
                message["headers"] += [(b"x-model-id", kept.model.encode()), (b"x-content-type-options", b"nosniff")]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            status = CLIENT_LEFT if scope.get("left") else status
            seconds = time.perf_counter() - began
            route = self._names.get(scope.get("endpoint"), "other")
            self._service.metrics.count("simclr_requests_total", route=route, status=f"{status // 100}xx")
            self._service.metrics.observe("simclr_request_seconds", seconds, route=route)
            spent = round(seconds * 1000, 2)
            log("request", route=route, status=status, ms=spent, images=kept.images, model=kept.model[:12])
