"""The guard in front of the UI, without Dagster: who comes in, and what is refused before Dagster sees it."""

import asyncio
import base64
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ServiceError
from pipeline.ui import asgi, attempts, sessions
from pipeline.ui.access import Access, Role, read_access
from pipeline.ui.guard import Guard
from pipeline.ui.login import Login
from pipeline.ui.sessions import Sessions

OPERATOR, VIEWER = "correct horse", "battery staple"
JSON = {"content-type": "application/json"}
QUERY = b'{"query": "{version}"}'


def application(role: Role) -> asgi.Application:
    """Says who it is for, and returns the body."""

    async def answer(scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        body = (await receive())["body"] if scope["type"] == "http" else b""
        if scope["type"] == "websocket":
            await send({"type": "websocket.accept"})
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": f"{role}:".encode() + body})

    return answer


FILE = Path("/dev/null/sessions.json")  # nowhere


def guarded(file: Path = FILE, **passwords: str) -> Guard:
    access = Access(passwords, frozenset({"gpu-box"}), b"secret")  # type: ignore[arg-type]
    login = Login(access, Sessions(file, access.key), "my <images>")
    return Guard({"operator": application("operator"), "viewer": application("viewer")}, access, login)


class Answer:
    def __init__(self, sent: list[asgi.Message]) -> None:
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
    sent: list[asgi.Message] = []

    async def receive() -> asgi.Message:
        return incoming.pop(0)

    async def collect(message: asgi.Message) -> None:
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
        ("POST", "/graphql", JSON, 200, "operator:{"),
        ("POST", "/graphql", {"content-type": "Application/JSON; charset=utf-8"}, 200, "operator:{"),
        ("POST", "/graphql", JSON | {"origin": "http://127.0.0.1:3000"}, 200, "operator:{"),
        ("POST", "/graphql", JSON | {"origin": "http://evil.example"}, 403, "comes from http://evil.example"),
        ("POST", "/graphql", JSON | {"origin": "http://127.0.0.1:8000"}, 403, "comes from http://127.0.0.1:8000"),
        ("POST", "/graphql", JSON | {"origin": "null"}, 403, "comes from null"),
        ("POST", "/graphql", JSON | {"sec-fetch-site": "cross-site"}, 403, "another site"),
        ("POST", "/graphql", JSON | {"sec-fetch-site": "same-site"}, 403, "another site"),
        ("POST", "/graphql", {"content-type": "text/plain"}, 403, "only JSON"),
        ("POST", "/graphql", {"content-type": "text/plain; application/json"}, 403, "only JSON"),
        ("POST", "/graphql?query=mutation", {}, 403, "only JSON"),
        ("POST", "/report_asset_materialization/a", {}, 403, "only JSON"),
        ("PUT", "/graphql", JSON, 405, "method PUT is not allowed"),
    ],
)
def test_requests_are_allowed_or_refused_with_a_reason(
    method: str, path: str, headers: dict[str, str], status: int, reason: str
) -> None:
    answer = send(guarded(), method, path, headers, QUERY if method == "POST" else b"")
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
    body = QUERY.ljust(asgi.MAX_BODY)
    assert send(guarded(), "POST", "/graphql", JSON, body).status == 200
    assert send(guarded(), "POST", "/graphql", JSON, body + b" ").status == 413


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b'[{"query": "{a}"}]', b'"{a}"', b"null", b"{}", b'{"query": 1}', b"{", b"\xff", b"[" * 100_000],
)
def test_what_dagster_would_fail_on_is_refused_with_what_to_send(body: bytes) -> None:
    answer = send(guarded(), "POST", "/graphql", JSON, body)
    assert (answer.status, answer.text) == (400, 'send one JSON object with a query: {"query": "..."}\n')


def test_a_log_without_a_run_is_not_found() -> None:
    assert send(guarded(), path="/logs/x").status == 404
    assert send(guarded(), path="/logs/run/compute_logs/step.err").status == 200


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
        assert send(app, "POST", "/graphql", JSON | basic(password), QUERY).text == f"{role}:{QUERY.decode()}"


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


@pytest.mark.parametrize("forged", ["operator.99999999999.0", "operator", "", "ä.ö.ü", "x" * 43])
def test_a_forged_or_changed_session_is_refused(forged: str, tmp_path: Path) -> None:
    app = guarded(tmp_path / "sessions.json", operator=OPERATOR, viewer=VIEWER)
    assert send(app, headers={"cookie": f"simclr_3000={forged}"}).status == 401
    cookie = log_in(app, VIEWER)["cookie"]
    assert send(app, headers={"cookie": cookie}).text == "viewer:"
    assert send(app, headers={"cookie": cookie[:-1]}).status == 401
    (name,) = json.loads((tmp_path / "sessions.json").read_text())  # what is stored is not what logs in
    assert send(app, headers={"cookie": f"simclr_3000={name}"}).status == 401


def test_a_session_ends_with_its_time_and_with_its_password(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "sessions.json"
    app = guarded(file, operator=OPERATOR)
    cookie = log_in(app, OPERATOR)
    assert send(guarded(file, operator=OPERATOR), headers=cookie).status == 200  # the web server was started again
    assert send(guarded(file, operator="another"), headers=cookie).status == 401
    later = sessions.time.time() + sessions.SESSION_SECONDS + 1
    monkeypatch.setattr(sessions.time, "time", lambda: later)
    assert send(app, headers=cookie).status == 401


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": 1}', '{"a": {"role": "operator"}}', "null"])
def test_a_damaged_file_of_sessions_only_requires_a_new_login(content: str, tmp_path: Path) -> None:
    file = tmp_path / "sessions.json"
    file.write_text(content)
    app = guarded(file, operator=OPERATOR)
    assert send(app, headers=log_in(app, OPERATOR)).status == 200


def test_each_wrong_password_doubles_the_wait_for_that_client_only(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(attempts.time, "monotonic", lambda: now)
    app = guarded(operator=OPERATOR)
    statuses = [send(app, headers=basic(f"guess {number}")).status for number in range(attempts.FREE + 2)]
    assert statuses == [401] * attempts.FREE + [429] * 2
    waits = []
    for _ in range(12):
        blocked = send(app, "POST", "/login", {}, b"password=" + OPERATOR.replace(" ", "+").encode())
        assert blocked.status == 429
        waits.append(int(blocked.headers["retry-after"]))
        assert f"too many wrong passwords; wait {waits[-1]} s" in blocked.text
        now += waits[-1]
        assert send(app, headers=basic("one more")).status == 401
    assert waits == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900]
    assert send(app, headers=basic(OPERATOR), address="10.0.0.1").status == 200
    now += 900
    assert send(app, headers=basic(OPERATOR)).status == 200


def test_guesses_from_many_addresses_do_not_lock_out_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts.time, "monotonic", lambda: 1000.0)
    app = guarded(operator=OPERATOR)
    assert send(app, headers=basic(OPERATOR), address="10.0.0.1").status == 200
    statuses = [
        send(app, headers=basic("guess"), address=f"2001:db8::{number % 7:x}:{number:x}").status for number in range(9)
    ]
    assert statuses == [401] * attempts.FREE + [429] * 4  # one subscriber, whatever the rest of the address
    for number in range(2 * attempts.FREE_IN_TOTAL):
        send(app, headers=basic("guess"), address=f"10.1.0.{number}")
    assert send(app, headers=basic(OPERATOR), address="10.2.0.1").status == 429
    assert send(app, headers=basic(OPERATOR), address="10.0.0.1").status == 200
    assert send(app, headers=basic(OPERATOR), address="::ffff:10.0.0.1").status == 200
    monkeypatch.setattr(attempts.time, "monotonic", lambda: 1000.0 + attempts.LONGEST_WAIT_FOR_ALL)
    assert send(app, headers=basic(OPERATOR), address="10.2.0.1").status == 200


@pytest.mark.parametrize("between", ["viewer", "operator"])
def test_a_right_password_takes_no_wrong_one_back(between: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A viewer who guesses the operator's password, or a guesser at an address where the operator logs in too."""
    now = 1000.0
    monkeypatch.setattr(attempts.time, "monotonic", lambda: now)
    app = guarded(operator=OPERATOR, viewer=VIEWER)
    right = basic(VIEWER if between == "viewer" else OPERATOR)
    guesses = rounds = 0
    while now < 1000.0 + 3600 and rounds < 50:
        guesses += sum(send(app, headers=basic(f"guess {one}")).status == 401 for one in range(attempts.FREE - 1))
        answer = send(app, headers=right)
        assert answer.status in (200, 429)
        now += int(answer.headers.get("retry-after", "0"))
        rounds += 1
    # The free ones, those with a doubling wait, then one in each quarter of an hour.
    assert guesses <= attempts.FREE + 10 + 4


def test_a_viewer_with_many_addresses_is_held_up_by_the_total_as_a_stranger_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attempts.time, "monotonic", lambda: 1000.0)
    app = guarded(operator=OPERATOR, viewer=VIEWER)
    assert send(app, headers=basic(OPERATOR), address="10.0.0.1").status == 200
    answers = []
    for number in range(40):
        address = f"10.1.0.{number}"
        send(app, headers=basic(VIEWER), address=address)
        answers += [
            send(app, headers=basic(f"guess {one}"), address=address).status for one in range(attempts.FREE - 1)
        ]
    assert answers.count(401) == attempts.FREE_IN_TOTAL
    assert send(app, headers=basic(OPERATOR), address="10.0.0.1").status == 200


def test_an_open_session_continues_while_its_address_waits() -> None:
    app = guarded(operator=OPERATOR, viewer=VIEWER)
    cookies = log_in(app, OPERATOR), log_in(app, VIEWER)
    for number in range(attempts.FREE):
        send(app, headers=basic(f"guess {number}"))
    assert send(app, headers=basic(OPERATOR)).status == 429
    assert [send(app, headers=cookie).text for cookie in cookies] == ["operator:", "viewer:"]


def test_sessions_are_listed_and_end_one_by_one() -> None:
    app = guarded(operator=OPERATOR, viewer=VIEWER)
    viewer, operator, other = (log_in(app, password) for password in (VIEWER, OPERATOR, OPERATOR))

    def names(cookie: dict[str, str]) -> list[str]:
        return re.findall('name="session" value="([^"]+)"', send(app, path="/sessions", headers=cookie).text)

    listed = send(app, path="/sessions", headers=operator).text
    assert "Sessions · my &lt;images&gt;" in listed
    assert (len(names(operator)), len(names(viewer))) == (3, 1)
    foreign = [name for name in names(operator) if name not in names(viewer)]
    send(app, "POST", "/logout", viewer, f"session={foreign[0]}".encode())  # not the viewer's to end
    assert send(app, headers=operator).status == send(app, headers=other).status == 200
    ended = send(app, "POST", "/logout", operator, f"session={names(viewer)[0]}".encode())
    assert (ended.status, ended.headers["location"]) == (303, "/sessions")
    assert send(app, headers=viewer).status == 401
    left = send(app, "POST", "/logout", other)
    assert (left.status, left.headers["location"]) == (303, "/login")
    assert (send(app, headers=other).status, send(app, headers=operator).status) == (401, 200)
    assert send(app, path="/sessions").status == 401
    assert "no session" in send(app, path="/sessions", headers=basic(OPERATOR)).text


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


def test_a_proxy_is_an_address_or_a_network() -> None:
    assert read_access("::1", {}, b"").proxies == ()
    given = {"SIMCLR_UI_PROXIES": "127.0.0.1, 10.0.0.0/8,::1"}
    assert read_access("::1", given, b"").proxies == ("127.0.0.1/32", "10.0.0.0/8", "::1/128")
    with pytest.raises(ServiceError, match=r"SIMCLR_UI_PROXIES=proxy: .*give addresses or networks"):
        read_access("::1", {"SIMCLR_UI_PROXIES": "proxy"}, b"")


def test_equal_or_unreadable_passwords_are_refused() -> None:
    with pytest.raises(ServiceError, match="same password"):
        read_access("::1", {"SIMCLR_UI_PASSWORD": "a", "SIMCLR_UI_VIEWER_PASSWORD": "a"}, b"")
    with pytest.raises(ServiceError, match="SIMCLR_UI_PASSWORD"):
        read_access("::1", {"SIMCLR_UI_VIEWER_PASSWORD": "a"}, b"")
    with pytest.raises(ServiceError, match="SIMCLR_UI_PASSWORD_FILE=/nowhere: cannot be read"):
        read_access("::1", {"SIMCLR_UI_PASSWORD_FILE": "/nowhere"}, b"")


def test_a_session_from_before_the_clock_was_set_back_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be valid for as long as the clock was ahead, and twelve hours."""
    now = 1_800_000_000.0
    monkeypatch.setattr(sessions.time, "time", lambda: now)
    kept = Sessions(tmp_path / "sessions.json", b"key")
    token = kept.begin("viewer", "127.0.0.1", "a browser")
    now -= sessions.FUTURE_SECONDS
    assert kept.find(token)
    now -= 1
    assert not kept.find(token)
