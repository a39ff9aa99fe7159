"""The guard in front of the UI, without Dagster: who comes in, and what is refused before Dagster sees it."""

import asyncio
import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ServiceError
from pipeline.ui import guard
from pipeline.ui.guard import Access, Guard, Role, read_access

OPERATOR, VIEWER = "correct horse", "battery staple"
JSON = {"content-type": "application/json"}


def application(role: Role) -> guard.Application:
    """Says who it is for, and returns the body."""

    async def answer(scope: guard.Scope, receive: guard.Receive, send: guard.Send) -> None:
        body = (await receive())["body"] if scope["type"] == "http" else b""
        if scope["type"] == "websocket":
            await send({"type": "websocket.accept"})
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": f"{role}:".encode() + body})

    return answer


def guarded(**passwords: str) -> Guard:
    access = Access(passwords, frozenset({"gpu-box"}), b"secret")  # type: ignore[arg-type]
    return Guard({"operator": application("operator"), "viewer": application("viewer")}, access)


class Answer:
    def __init__(self, sent: list[guard.Message]) -> None:
        start = sent[0]
        self.kind = start["type"]
        self.status = start.get("status")
        self.headers = {name.decode(): value.decode() for name, value in start.get("headers", [])}
        self.text = b"".join(message.get("body", b"") for message in sent[1:]).decode()
        self.reason = start.get("reason")


def send(
    app: Guard,
    method: str = "GET",
    path: str = "/",
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
    type: str = "http",
    address: str = "10.0.0.9",
) -> Answer:
    path, _, query = path.partition("?")
    lines = {"host": "127.0.0.1:3000"} | dict(headers or {})
    scope: dict[str, Any] = {
        "type": type,
        "method": method,
        "path": path,
        "query_string": query.encode(),
        "headers": [(name.encode(), value.encode()) for name, value in lines.items()],
        "server": ("127.0.0.1", 3000),
        "client": (address, 5000),
        "scheme": "http",
    }
    chunks = [body[at : at + 2**20] for at in range(0, len(body), 2**20)] or [b""]
    incoming = [
        {"type": "http.request", "body": chunk, "more_body": at + 1 < len(chunks)} for at, chunk in enumerate(chunks)
    ]
    sent: list[guard.Message] = []

    async def receive() -> guard.Message:
        return incoming.pop(0)

    async def collect(message: guard.Message) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, collect))
    return Answer(sent)


def basic(password: str) -> dict[str, str]:
    return {"authorization": "Basic " + base64.b64encode(f"me:{password}".encode()).decode()}


@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "reason"),
    [
        ("GET", "/", {}, 200, "operator:"),
        ("GET", "/", {"host": "[::1]:3000"}, 200, "operator:"),
        ("GET", "/", {"host": "GPU-box"}, 200, "operator:"),
        ("GET", "/", {"host": "evil.example"}, 403, "not a name of this server"),
        ("GET", "/", {"host": ""}, 403, "not a name of this server"),
        ("GET", "/graphql", {}, 200, "operator:"),
        ("GET", "/graphql?query=mutation", {}, 403, "queries by GET"),
        ("HEAD", "/graphql?query=mutation", {}, 403, "queries by GET"),
        ("GET", "/graphql/?operationName=a&query=mutation", {}, 403, "queries by GET"),
        ("POST", "/graphql", JSON, 200, "operator:{}"),
        ("POST", "/graphql", {"content-type": "Application/JSON; charset=utf-8"}, 200, "operator:{}"),
        ("POST", "/graphql", JSON | {"origin": "http://127.0.0.1:3000"}, 200, "operator:{}"),
        ("POST", "/graphql", JSON | {"origin": "http://evil.example"}, 403, "comes from http://evil.example"),
        ("POST", "/graphql", JSON | {"origin": "http://127.0.0.1:8000"}, 403, "comes from http://127.0.0.1:8000"),
        ("POST", "/graphql", JSON | {"origin": "null"}, 403, "comes from null"),
        ("POST", "/graphql", JSON | {"sec-fetch-site": "cross-site"}, 403, "another site"),
        ("POST", "/graphql", JSON | {"sec-fetch-site": "same-site"}, 403, "another site"),
        ("POST", "/graphql", {"content-type": "text/plain"}, 403, "only JSON"),
        ("POST", "/graphql", {"content-type": "text/plain; application/json"}, 403, "only JSON"),
        ("POST", "/graphql?query=mutation", {}, 403, "only JSON"),
        ("POST", "/report_asset_materialization/a", {}, 403, "only JSON"),
        ("PUT", "/graphql", JSON, 405, "no PUT"),
    ],
)
def test_requests_are_allowed_or_refused_with_a_reason(
    method: str, path: str, headers: dict[str, str], status: int, reason: str
) -> None:
    answer = send(guarded(), method, path, headers, b"{}" if method == "POST" else b"")
    assert (answer.status, reason in answer.text) == (status, True), answer.text
    assert "\n" not in answer.text.strip()
    assert answer.headers["x-frame-options"] == "DENY"
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize(
    ("headers", "kind"),
    [
        ({"origin": "http://127.0.0.1:3000"}, "websocket.accept"),
        ({}, "websocket.accept"),
        ({"origin": "http://evil.example"}, "websocket.close"),
        ({"host": "evil.example", "origin": "http://evil.example"}, "websocket.close"),
    ],
)
def test_a_live_connection_must_come_from_the_ui_itself(headers: dict[str, str], kind: str) -> None:
    assert send(guarded(), headers=headers, type="websocket").kind == kind


def test_a_live_connection_needs_the_login_too() -> None:
    app = guarded(operator=OPERATOR)
    refused = send(app, type="websocket")
    assert (refused.kind, refused.reason) == (
        "websocket.close",
        "log in at /login, or send the password with HTTP Basic",
    )
    assert send(app, headers=log_in(app, OPERATOR), type="websocket").kind == "websocket.accept"


def test_a_request_larger_than_the_limit_is_refused_while_it_arrives() -> None:
    body = b"x" * guard.MAX_BODY
    assert send(guarded(), "POST", "/graphql", JSON, body).status == 200
    assert send(guarded(), "POST", "/graphql", JSON, body + b"x").status == 413


def log_in(app: Guard, password: str) -> dict[str, str]:
    form = {"content-type": "application/x-www-form-urlencoded", "origin": "http://127.0.0.1:3000"}
    answer = send(app, "POST", "/login", form, f"password={password.replace(' ', '+')}".encode())
    assert (answer.status, answer.headers["location"]) == (303, "/")
    cookie, _, attributes = answer.headers["set-cookie"].partition(";")
    assert "HttpOnly" in attributes
    assert "SameSite=Strict" in attributes
    return {"cookie": f"other=1; {cookie}"}


def test_each_password_opens_its_own_application() -> None:
    app = guarded(operator=OPERATOR, viewer=VIEWER)
    for role, password in (("operator", OPERATOR), ("viewer", VIEWER)):
        assert send(app, headers=log_in(app, password)).text == f"{role}:"
        assert send(app, "POST", "/graphql", JSON | basic(password), b"{}").text == f"{role}:{{}}"


def test_without_a_login_a_browser_gets_the_form_and_a_program_gets_401() -> None:
    app = guarded(operator=OPERATOR)
    page = send(app, headers={"accept": "text/html,*/*"})
    assert (page.status, page.headers["location"]) == (303, "/login")
    assert '<input id="password" name="password" type="password"' in send(app, path="/login").text
    assert send(app, "POST", "/graphql", JSON).status == 401
    # The browser keeps the strict cookie to itself when a link in a mail led here, and sends it with the refresh.
    link = {"accept": "text/html", "sec-fetch-site": "cross-site"} | log_in(app, OPERATOR)
    assert send(app, headers=link | {"cookie": ""}).text.startswith('<!doctype html><meta http-equiv="refresh"')
    assert send(app, headers=link).text == "operator:"


@pytest.mark.parametrize(
    "forged",
    ["operator.99999999999.0", "operator.99999999999.", "operator", "", "operator.nan.x", "ä.ö.ü"],
)
def test_a_forged_or_changed_session_is_refused(forged: str) -> None:
    app = guarded(operator=OPERATOR, viewer=VIEWER)
    assert send(app, headers={"cookie": f"simclr_3000={forged}"}).status == 401
    cookie = log_in(app, VIEWER)["cookie"]
    assert send(app, headers={"cookie": cookie.replace("viewer", "operator")}).status == 401


def test_a_session_ends_with_its_time_and_with_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    app = guarded(operator=OPERATOR)
    cookie = log_in(app, OPERATOR)
    assert send(guarded(operator=OPERATOR), headers=cookie).status == 200  # the web server was started again
    assert send(guarded(operator="another"), headers=cookie).status == 401
    later = guard.time.time() + guard.SESSION_SECONDS + 1
    monkeypatch.setattr(guard.time, "time", lambda: later)
    assert send(app, headers=cookie).status == 401


def test_password_guessing_is_slowed_down_for_that_client_only(monkeypatch: pytest.MonkeyPatch) -> None:
    app = guarded(operator=OPERATOR)
    statuses = [send(app, headers=basic(f"guess {number}")).status for number in range(guard.MAX_FAILURES + 2)]
    assert statuses == [401] * guard.MAX_FAILURES + [429] * 2
    blocked = send(app, "POST", "/login", {}, b"password=" + OPERATOR.replace(" ", "+").encode())
    assert (blocked.status, blocked.headers["retry-after"]) == (429, "60")
    assert "too many wrong passwords" in blocked.text
    assert send(app, headers=basic(OPERATOR), address="10.0.0.1").status == 200
    later = guard.time.monotonic() + 61
    monkeypatch.setattr(guard.time, "monotonic", lambda: later)
    assert send(app, headers=basic(OPERATOR)).status == 200


def test_another_site_cannot_send_the_login_form() -> None:
    form = {"content-type": "application/x-www-form-urlencoded", "origin": "http://evil.example"}
    assert send(guarded(operator=OPERATOR), "POST", "/login", form, b"password=correct+horse").status == 403


def test_without_a_password_only_this_machine_can_be_served(tmp_path: Path) -> None:
    assert read_access("127.0.0.1", {}, b"").passwords == {}
    assert read_access("localhost", {"SIMCLR_UI_HOSTS": "ui.example, B"}, b"").hosts >= {"ui.example", "b"}
    for host in ("0.0.0.0", "::", "gpu-box"):
        with pytest.raises(ServiceError, match="set SIMCLR_UI_PASSWORD or SIMCLR_UI_PASSWORD_FILE"):
            read_access(host, {"SIMCLR_UI_PASSWORD": ""}, b"")
    (tmp_path / "password").write_text("from a file\n")
    environment = {"SIMCLR_UI_PASSWORD_FILE": str(tmp_path / "password"), "SIMCLR_UI_VIEWER_PASSWORD": VIEWER}
    assert read_access("0.0.0.0", environment, b"").passwords == {"operator": "from a file", "viewer": VIEWER}


def test_equal_or_unreadable_passwords_are_refused() -> None:
    with pytest.raises(ServiceError, match="same password"):
        read_access("::1", {"SIMCLR_UI_PASSWORD": "a", "SIMCLR_UI_VIEWER_PASSWORD": "a"}, b"")
    with pytest.raises(ServiceError, match="SIMCLR_UI_PASSWORD"):
        read_access("::1", {"SIMCLR_UI_VIEWER_PASSWORD": "a"}, b"")
    with pytest.raises(ServiceError, match="SIMCLR_UI_PASSWORD_FILE=/nowhere: cannot be read"):
        read_access("::1", {"SIMCLR_UI_PASSWORD_FILE": "/nowhere"}, b"")
