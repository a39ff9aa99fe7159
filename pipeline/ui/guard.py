"""Who may do what with the UI: an ASGI application around Dagster's, which has no login.

Without it any page that an operator opens could launch runs, by a link to ``/graphql?query=mutation...`` or a form.

- The Host is an address, this machine's name, or one of SIMCLR_UI_HOSTS: no other site's name that was pointed here.
- What changes something comes from this origin, as JSON, by POST. Queries by GET are refused. Forms are taken
  by ``login`` and ``candidates`` only; browsers say where those come from, too.
- With passwords set, everything needs a login. There are two roles, operator and viewer, each with its own application;
  the viewer's changes nothing.

Who has logged in is for ``pipeline.ui.login`` to say.
"""

import ipaddress
import json
from collections.abc import Mapping
from urllib.parse import urlsplit

import uvicorn

from pipeline.ui.access import Access, Role
from pipeline.ui.asgi import Application, Message, Receive, Refused, Scope, Send, answer, read_body, replay
from pipeline.ui.candidates import Candidates
from pipeline.ui.login import PAGES, Login

HEADERS = {
    # In addition to the policy that Dagster sends, which does not cover frames; a browser applies both.
    "content-security-policy": "frame-ancestors 'none'; form-action 'self'; base-uri 'none'; object-src 'none'",
    "x-frame-options": "DENY",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


STOP_SECONDS = 2
MAX_WEBSOCKET_MESSAGE = 2**20  # bytes


class Guard:
    """The ASGI application; ``applications`` has one for each role that can come in, ``candidates`` separate pages."""

    def __init__(
        self,
        applications: Mapping[Role, Application],
        access: Access,
        login: Login,
        candidates: Candidates | None = None,
    ) -> None:
        self._applications = applications
        self._access = access
        self._login = login
        self._candidates = candidates

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return
        headers: dict[str, str] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.decode("latin-1"), value.decode("latin-1"))  # given twice: as Dagster reads it
        send = _with_security_headers(send)
        try:
            _check_host(headers.get("host", ""), self._access.hosts)
            _check_origin(scope, headers)
            if scope["type"] == "http" and scope["path"] in PAGES:
                await self._login.serve(scope, headers, receive, send)
                return
            role = self._login.role(scope, headers)
            if self._candidates and scope["type"] == "http" and scope["path"].startswith("/candidates"):
                await self._candidates.serve(scope, headers, role, receive, send)
                return
            application = self._applications[role]
            if scope["type"] == "http":
                _check_content(scope, headers)
                body = await read_body(receive)
                _check_path(scope, body)
                receive = replay(body, receive)
            await application(scope, receive, send)
        except Refused as refused:
            await answer(scope, send, refused.status, refused.reason, refused.headers)


def serve_guarded(guard: Guard, access: Access, host: str, port: int) -> None:
    """Serve until SIGINT or SIGTERM; only the proxies of ``access`` say who a client is."""
    uvicorn.run(
        guard,
        host=host,
        port=port,
        log_level="warning",
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=STOP_SECONDS,
        ws_max_size=MAX_WEBSOCKET_MESSAGE,
        proxy_headers=bool(access.proxies),
        forwarded_allow_ips=list(access.proxies),
    )


def _check_host(host: str, names: frozenset[str]) -> None:
    try:
        name = urlsplit(f"//{host}").hostname or ""
        if name == "localhost" or name in names or ipaddress.ip_address(name):
            return
    except ValueError:
        pass
    raise Refused(403, f"{host!r} is not a name of this server; if it should be, add it to SIMCLR_UI_HOSTS")


def _check_origin(scope: Scope, headers: Mapping[str, str]) -> None:
    """Browsers say where a request comes from; programs do not, and no web page can make them send a request."""
    if scope["type"] == "http":
        if scope["method"] in ("GET", "HEAD"):
            return
        if scope["method"] != "POST":
            raise Refused(405, f"method {scope['method']} is not allowed in the UI", {"allow": "GET, HEAD, POST"})
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != headers.get("host"):
        raise Refused(403, f"this comes from {origin}, and only the UI's own pages may send it")
    if origin is None and headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        raise Refused(403, "this comes from another site, and only the UI's own pages may send it")


def _check_content(scope: Scope, headers: Mapping[str, str]) -> None:
    if scope["method"] == "POST":
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Refused(403, "only JSON is accepted; send Content-Type: application/json")
    elif scope["path"].rstrip("/") == "/graphql" and scope.get("query_string"):
        raise Refused(403, "queries by GET are refused, since a link could change something; send a POST")


def _check_path(scope: Scope, body: bytes) -> None:
    """Refuse what Dagster's routes take for granted and fail on."""
    path = scope["path"].rstrip("/")
    if path == "/graphql" and scope["method"] == "POST":
        try:
            request = json.loads(body)
        except (ValueError, RecursionError):
            request = None
        if not isinstance(request, dict) or not isinstance(request.get("query"), str):
            raise Refused(400, 'send one JSON object with a query: {"query": "..."}')
    if path.startswith("/logs/") and path.count("/") < 3:
        raise Refused(404, f"{path}: no such log; a log is at /logs/RUN/compute_logs/FILE")


def _with_security_headers(send: Send) -> Send:
    async def extended(message: Message) -> None:
        if message["type"] == "http.response.start":
            extra = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
            message["headers"] = [*message.get("headers", []), *extra]
        await send(message)

    return extended
