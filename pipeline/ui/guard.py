"""Who may do what with the UI: an ASGI application around Dagster's, which has no login.

Without it any page that an operator opens could launch runs, by a link to ``/graphql?query=mutation...`` or a form.

- The Host is an address, this machine's name, or one of SIMCLR_UI_HOSTS: no other site's name that was pointed here.
- What changes something comes from this origin, as JSON, by POST. Queries by GET are refused.
- With passwords set, everything needs a login. There are two roles, operator and viewer, each with its own application;
  the viewer's changes nothing.

A browser logs in at ``/login`` and keeps a signed cookie; a program sends HTTP Basic with any user name.
"""

import base64
import binascii
import hashlib
import hmac
import html
import ipaddress
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

from pipeline.errors import ServiceError

Role = Literal["operator", "viewer"]
Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

MAX_BODY = 8 * 2**20  # bytes; a launchpad's configuration is a few thousand
SESSION_SECONDS = 12 * 3600
MAX_FAILURES = 5  # wrong passwords in a minute from one address
PASSWORDS: dict[Role, str] = {"operator": "SIMCLR_UI_PASSWORD", "viewer": "SIMCLR_UI_VIEWER_PASSWORD"}
HOSTS = "SIMCLR_UI_HOSTS"
HTML = {"content-type": "text/html; charset=utf-8"}
LOGIN = """<!doctype html><html lang="en"><meta name="viewport" content="width=device-width"><title>simclr</title>
<style>body {{ font: 16px system-ui, sans-serif; display: grid; place-content: center; min-height: 90vh }}
form {{ display: grid; gap: 12px; width: 280px }} input, button {{ font: inherit; padding: 8px }}
p {{ color: #b00020; margin: 0 }}</style>
<form method="post" action="/login"><label for="password">Password</label>
<input id="password" name="password" type="password" autocomplete="current-password" required autofocus>
<button>Log in</button><p role="alert">{}</p></form></html>"""
HEADERS = {
    # In addition to the policy that Dagster sends, which does not cover frames; a browser applies both.
    "content-security-policy": "frame-ancestors 'none'; form-action 'self'; base-uri 'none'; object-src 'none'",
    "x-frame-options": "DENY",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


@dataclass(frozen=True)
class Access:
    """Who may come in.

    Attributes:
        passwords: role → its password; empty means that every user is the operator.
        hosts: names of this server, besides its addresses and ``localhost``.
        secret: signs the sessions.
    """

    passwords: Mapping[Role, str]
    hosts: frozenset[str]
    secret: bytes

    @property
    def key(self) -> bytes:
        """Another password ends the sessions of the old one."""
        return hashlib.sha256(self.secret + repr(sorted(self.passwords.items())).encode()).digest()


def read_access(host: str, environment: Mapping[str, str], secret: bytes) -> Access:
    """What the environment says: SIMCLR_UI_PASSWORD or SIMCLR_UI_PASSWORD_FILE, the same for _VIEWER_, and HOSTS.

    Raises:
        ServiceError: a password file that cannot be read, or no password though ``host`` can be reached from elsewhere.
    """
    given = {role: _read_password(variable, environment) for role, variable in PASSWORDS.items()}
    passwords = {role: password for role, password in given.items() if password}
    if "operator" not in passwords and (passwords or not _is_loopback(host)):
        raise ServiceError(
            f"{host}: anyone who can reach the UI can start and stop runs; set SIMCLR_UI_PASSWORD or "
            "SIMCLR_UI_PASSWORD_FILE, or leave --host at 127.0.0.1 and use `ssh -L`"
        )
    if len(set(passwords.values())) < len(passwords):
        raise ServiceError("the operator and the viewer have the same password; give them different ones")
    names = {name.strip().lower() for name in environment.get(HOSTS, "").split(",")} - {""}
    return Access(passwords, frozenset(names | {socket.gethostname().lower()}), secret)


def _read_password(variable: str, environment: Mapping[str, str]) -> str:
    file = environment.get(f"{variable}_FILE")
    if not file:
        return environment.get(variable, "")
    try:
        return Path(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ServiceError(f"{variable}_FILE={file}: cannot be read ({error})") from None


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Refused(Exception):  # noqa: N818  it is an answer
    """The answer to a request that goes no further."""

    def __init__(self, status: int, reason: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(reason)
        self.status, self.reason, self.headers = status, reason, dict(headers or {})


class Guard:
    """The ASGI application; ``applications`` has one for each role that can come in."""

    def __init__(self, applications: Mapping[Role, Application], access: Access) -> None:
        self._applications = applications
        self._access = access
        self._failures: dict[str, list[float]] = {}

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
            if scope["type"] == "http" and scope["path"] == "/login":
                await self._log_in(scope, receive, send)
                return
            application = self._applications[self._role(scope, headers)]
            if scope["type"] == "http":
                _check_content(scope, headers)
                receive = _replayed(await _body(receive), receive)
            await application(scope, receive, send)
        except Refused as refused:
            await _answer(scope, send, refused.status, refused.reason, refused.headers)

    def _role(self, scope: Scope, headers: Mapping[str, str]) -> Role:
        if not self._access.passwords:
            return "operator"
        if role := self._session_role(scope, headers) or self._basic_role(scope, headers):
            return role
        if scope["type"] == "http" and "text/html" in headers.get("accept", ""):
            if headers.get("sec-fetch-site") == "cross-site":
                # A browser keeps a strict cookie to itself when a link elsewhere led here; it sends it the next time.
                raise Refused(200, '<!doctype html><meta http-equiv="refresh" content="0">', HTML)
            raise Refused(303, "log in first", {"location": "/login"})
        raise Refused(401, "log in at /login, or send the password with HTTP Basic")

    def _session_role(self, scope: Scope, headers: Mapping[str, str]) -> Role | None:
        for cookie in headers.get("cookie", "").split(";"):
            name, _, value = cookie.strip().partition("=")
            if name != _cookie_name(scope):
                continue
            content, _, signature = value.rpartition(".")
            if hmac.compare_digest(signature.encode("latin-1", "replace"), self._sign(content).encode()):
                name, _, expiry = content.partition(".")
                for role in self._access.passwords:
                    if role == name and float(expiry) > time.time():
                        return role
        return None

    def _basic_role(self, scope: Scope, headers: Mapping[str, str]) -> Role | None:
        scheme, _, credentials = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "basic":
            return None
        try:
            password = base64.b64decode(credentials, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            raise Refused(401, "the Authorization header is not HTTP Basic") from None
        return self._password_role(scope, password)

    def _password_role(self, scope: Scope, given: str) -> Role:
        address = scope["client"][0] if scope.get("client") else ""
        now = time.monotonic()
        self._failures = {
            who: recent for who, times in self._failures.items() if (recent := [t for t in times if t > now - 60])
        }
        if len(self._failures.get(address, ())) >= MAX_FAILURES:
            raise Refused(429, "too many wrong passwords; wait a minute", {"retry-after": "60"})
        # Compare against every password so that timing reveals nothing.
        matches = [role for role, password in self._access.passwords.items() if _equal(given, password)]
        if not matches:
            self._failures.setdefault(address, []).append(now)
            raise Refused(401, "wrong password")
        return matches[0]

    async def _log_in(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            await _answer(scope, send, 200, LOGIN.format(""), HTML)
            return
        fields = parse_qs((await _body(receive)).decode("utf-8", "replace"))
        try:
            role = self._password_role(scope, fields.get("password", [""])[0])
        except Refused as refused:
            page = LOGIN.format(html.escape(refused.reason))
            await _answer(scope, send, refused.status, page, HTML | refused.headers)
            return
        content = f"{role}.{int(time.time()) + SESSION_SECONDS}"
        secure = "; Secure" if scope["scheme"] == "https" else ""
        cookie = f"{_cookie_name(scope)}={content}.{self._sign(content)}; Path=/; HttpOnly; SameSite=Strict{secure}"
        await _answer(scope, send, 303, "", {"location": "/", "set-cookie": f"{cookie}; Max-Age={SESSION_SECONDS}"})

    def _sign(self, content: str) -> str:
        return hmac.new(self._access.key, content.encode("latin-1", "replace"), hashlib.sha256).hexdigest()


def _equal(given: str, password: str) -> bool:
    return hmac.compare_digest(given.encode(), password.encode())


def _cookie_name(scope: Scope) -> str:
    """Browsers share cookies between the ports of a machine, where another workspace may have its UI."""
    return f"simclr_{scope['server'][1]}"


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


async def _body(receive: Receive) -> bytes:
    body = b""
    while True:
        message = await receive()
        part: bytes = message.get("body", b"")
        body += part
        if len(body) > MAX_BODY:
            raise Refused(413, f"the request is larger than {MAX_BODY} bytes")
        if not message.get("more_body"):
            return body


def _replayed(body: bytes, receive: Receive) -> Receive:
    rest = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return rest.pop() if rest else await receive()

    return replay


def _with_security_headers(send: Send) -> Send:
    async def extended(message: Message) -> None:
        if message["type"] == "http.response.start":
            extra = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
            message["headers"] = [*message.get("headers", []), *extra]
        await send(message)

    return extended


async def _answer(scope: Scope, send: Send, status: int, text: str, headers: Mapping[str, str]) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": text[:100]})
        return
    lines = {"content-type": "text/plain; charset=utf-8", "cache-control": "no-store"} | dict(headers)
    fields = [(name.encode(), value.encode("latin-1", "replace")) for name, value in lines.items()]
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": text.encode() + (b"\n" if text else b"")})
