"""Who is asking: a browser by its session, a program by HTTP Basic with any user name; and the pages about sessions.

``/login`` begins a session, ``/logout`` ends one, ``/sessions`` lists those that last: all of them for an operator, its
own for a viewer.
"""

import base64
import binascii
import hmac
import html
import math
import time
from collections.abc import Mapping
from urllib.parse import parse_qs

from pipeline.ui.access import Access, Role
from pipeline.ui.asgi import HTML, Receive, Refused, Scope, Send, answer, read_body
from pipeline.ui.attempts import Attempts
from pipeline.ui.sessions import SESSION_SECONDS, Session, Sessions

PAGES = ("/login", "/logout", "/sessions")
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title} · simclr</title><style>:root {{ color-scheme: light dark }}
body {{ font: 16px system-ui, sans-serif; display: grid; place-content: center; min-height: 90vh; margin: 16px }}
form {{ display: grid; gap: 12px; min-width: 280px }} td form {{ min-width: 0 }} h1 {{ font-size: 20px }}
input, button {{ font: inherit; padding: 8px }} [role=alert] {{ color: #d33; margin: 0 }}
td, th {{ text-align: left; padding: 6px 12px 6px 0 }}</style>
<main><h1>{title} · {workspace}</h1>{body}</main></html>"""
FORM = """<form method="post" action="/login"><label for="password">Password</label>
<input id="password" name="password" type="password" autocomplete="current-password" required autofocus>
<button>Log in</button><p role="alert">{}</p></form>"""
END = '<form method="post" action="/logout"><input type="hidden" name="session" value="{}"><button>{}</button></form>'


class Login:
    """The passwords of a workspace, the attempts at them, and its sessions; ``workspace`` is its name on the pages."""

    def __init__(self, access: Access, sessions: Sessions, workspace: str) -> None:
        self._access, self._sessions, self._workspace = access, sessions, workspace
        self._attempts = Attempts()

    def role(self, scope: Scope, headers: Mapping[str, str]) -> Role:
        """Of the sender of this request.

        Raises:
            Refused: no session and no password; a browser is led to the login.
        """
        if not self._access.passwords:
            return "operator"
        if found := self._session(scope, headers):
            return found[1].role
        if role := self._basic_role(scope, headers):
            return role
        if scope["type"] == "http" and "text/html" in headers.get("accept", ""):
            if headers.get("sec-fetch-site") == "cross-site":
                # A browser keeps a strict cookie to itself when a link elsewhere led here; it sends it the next time.
                raise Refused(200, '<!doctype html><meta http-equiv="refresh" content="0">', HTML)
            raise Refused(303, "log in first", {"location": "/login"})
        raise Refused(401, "log in at /login, or send the password with HTTP Basic")

    async def serve(self, scope: Scope, headers: Mapping[str, str], receive: Receive, send: Send) -> None:
        """One of ``PAGES``."""
        fields: dict[str, list[str]] = {}
        if scope["method"] == "POST":
            fields = parse_qs((await read_body(receive)).decode("utf-8", "replace"))
        if scope["path"] == "/login":
            await self._log_in(scope, headers, fields, send)
            return
        self.role(scope, headers)  # or refused
        own = self._session(scope, headers)
        if scope["path"] == "/logout" and scope["method"] == "POST" and own:
            name = fields.get("session", [own[0]])[0]
            if name in self._visible(*own):
                self._sessions.end(name)
            elsewhere = name != own[0]
            await answer(scope, send, 303, "", {"location": "/sessions" if elsewhere else "/login"})
            return
        await self._show(scope, send, "Sessions", self._list(own))

    async def _log_in(
        self, scope: Scope, headers: Mapping[str, str], fields: Mapping[str, list[str]], send: Send
    ) -> None:
        if scope["method"] != "POST":
            await self._show(scope, send, "Log in", FORM.format(""))
            return
        try:
            role = self._password_role(scope, fields.get("password", [""])[0])
        except Refused as refused:
            form = FORM.format(html.escape(refused.reason))
            await self._show(scope, send, "Log in", form, refused.status, refused.headers)
            return
        token = self._sessions.begin(role, _address(scope), headers.get("user-agent", ""))
        secure = "; Secure" if scope["scheme"] == "https" else ""
        cookie = f"{_cookie_name(scope)}={token}; Path=/; HttpOnly; SameSite=Strict{secure}; Max-Age={SESSION_SECONDS}"
        await answer(scope, send, 303, "", {"location": "/", "set-cookie": cookie})

    def _session(self, scope: Scope, headers: Mapping[str, str]) -> tuple[str, Session] | None:
        for cookie in headers.get("cookie", "").split(";"):
            name, _, token = cookie.strip().partition("=")
            if name == _cookie_name(scope) and (found := self._sessions.find(token)):
                return found if found[1].role in self._access.passwords else None
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
        address = _address(scope)
        if wait := math.ceil(self._attempts.wait(address)):
            raise Refused(429, f"too many wrong passwords; wait {wait} s", {"retry-after": str(wait)})
        # Compare against every password so that timing reveals nothing.
        matches = [role for role, password in self._access.passwords.items() if _equal(given, password)]
        if not matches:
            self._attempts.failed(address)
            raise Refused(401, "wrong password")
        self._attempts.succeeded(address, matches[0])
        return matches[0]

    def _visible(self, name: str, session: Session) -> dict[str, Session]:
        return self._sessions.active() if session.role == "operator" else {name: session}

    def _list(self, own: tuple[str, Session] | None) -> str:
        if own is None:
            return "<p>You have no session: there is no password, or you sent it with the request.</p>"
        rows = "".join(_row(name, session, name == own[0]) for name, session in self._visible(*own).items())
        head = "<tr><th>role</th><th>from</th><th>since</th><th>until</th><th>browser</th><th></th></tr>"
        return f'<table>{head}{rows}</table><p><a href="/">Back to the UI</a></p>'

    async def _show(
        self,
        scope: Scope,
        send: Send,
        title: str,
        body: str,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        page = PAGE.format(title=title, workspace=html.escape(self._workspace), body=body)
        await answer(scope, send, status, page, HTML | dict(headers or {}))


def _row(name: str, session: Session, own: bool) -> str:
    shown = [session.role, session.address, _clock(session.began), _clock(session.ends), session.browser]
    cells = "".join(f"<td>{html.escape(text)}</td>" for text in shown)
    return f"<tr>{cells}<td>{END.format(name, 'Log out' if own else 'End')}</td></tr>"


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def _address(scope: Scope) -> str:
    return scope["client"][0] if scope.get("client") else ""


def _equal(given: str, password: str) -> bool:
    return hmac.compare_digest(given.encode(), password.encode())


def _cookie_name(scope: Scope) -> str:
    """Browsers share cookies between the ports of a machine, where another workspace may have its UI."""
    return f"simclr_{scope['server'][1]}"
