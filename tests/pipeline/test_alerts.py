"""An alert reaches a webhook, Slack and a mailbox, tells no secret, and never makes anything else fail."""

import email
import json
import socket
import socketserver
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message
from email.policy import default
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline import alerts
from pipeline.alerts import send
from pipeline.cli.main import run_cli
from pipeline.workspace import Workspace

SECRET = "wJalrXUtnFEMI7MDENG"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace of which an alert takes the name, and an environment without addresses."""
    for name in (alerts.WEBHOOK, alerts.SLACK, alerts.EMAIL, alerts.SMTP, alerts.ALLOW_PLAIN):
        monkeypatch.delenv(name, raising=False)
    root = tmp_path / "nightly"
    root.mkdir()
    return Workspace(root)


@contextmanager
def serving(server: socketserver.BaseServer) -> Iterator[int]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()


@contextmanager
def web(status: int = 200) -> Iterator[tuple[str, list[tuple[str, dict[str, str], dict[str, str]]]]]:
    """A web server that keeps (path, headers, JSON) of every POST."""
    received: list[tuple[str, dict[str, str], dict[str, str]]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append((self.path, dict(self.headers), json.loads(body)))
            self.send_response(status, f"no {SECRET}")
            self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_GET(self) -> None:
            received.append((self.path, {}, {}))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as port:
        yield f"http://127.0.0.1:{port}/hook", received


@contextmanager
def mail(answer: bytes = b"250 ok") -> Iterator[tuple[str, list[tuple[list[str], Message]]]]:
    """A mail server that keeps (commands, message) of every delivery; ``answer`` is its reply to the message."""
    received: list[tuple[list[str], Message]] = []

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"220 here\r\n")
            commands: list[str] = []
            for line in self.rfile:
                commands.append(line.decode().strip())
                match commands[-1].upper().split(" ")[0]:
                    case "DATA":
                        self.wfile.write(b"354 continue\r\n")
                        lines = list(iter(self.rfile.readline, b".\r\n"))
                        received.append((commands, email.message_from_bytes(b"".join(lines), policy=default)))
                        self.wfile.write(answer + b"\r\n")
                    case "EHLO":
                        self.wfile.write(b"250-here\r\n250 AUTH PLAIN\r\n")
                    case "AUTH":
                        self.wfile.write(b"235 welcome\r\n")
                    case "QUIT":
                        self.wfile.write(b"221 bye\r\n")
                        return
                    case _:
                        self.wfile.write(b"250 ok\r\n")

    with serving(socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)) as port:
        yield f"smtp://127.0.0.1:{port}", received


def test_without_an_address_nothing_is_sent(place: Workspace) -> None:
    assert alerts.list_configured() == ()
    assert send(place, "run_failed", "title", "text") == ()


def test_a_webhook_gets_the_alert_as_json(place: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    with web() as (address, received):
        monkeypatch.setenv(alerts.WEBHOOK, address)
        assert send(place, "champion_changed", "v0.0.2 is served", "it was v0.0.1") == ()
    ((path, headers, body),) = received
    assert path == "/hook"
    assert headers["Content-Type"] == "application/json"
    assert body == {
        "event": "champion_changed",
        "title": "v0.0.2 is served",
        "text": "it was v0.0.1",
        "workspace": "nightly",
    }


@pytest.mark.parametrize(("command", "said"), [("test-alert", ""), ("alert", "called `simclr test-alert`")])
def test_a_test_alert_arrives_also_by_its_old_name(
    place: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str, said: str
) -> None:
    (place.root / "dvc.yaml").touch()
    monkeypatch.setattr(sys, "argv", ["simclr", "--workspace", str(place.root), command])
    assert run_cli() == 2
    assert "set SIMCLR_ALERT_WEBHOOK" in capsys.readouterr().err
    with web() as (address, received):
        monkeypatch.setenv(alerts.WEBHOOK, address)
        assert run_cli() == 0
    assert [body["title"] for _, _, body in received] == ["Test alert"]
    shown = capsys.readouterr()
    assert shown.out == "sent to SIMCLR_ALERT_WEBHOOK\n"
    assert said in shown.err
    assert bool(shown.err) == bool(said)


def test_slack_gets_text_in_which_no_one_is_mentioned(place: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    with web() as (address, received):
        monkeypatch.setenv(alerts.SLACK, address)
        assert send(place, "run_failed", "failed", "<!channel> a & b\nsecond line") == ()
    assert received[0][2] == {"text": "*failed*\n&lt;!channel&gt; a &amp; b\nsecond line"}


def test_a_user_and_password_in_the_address_become_a_header(place: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    with web() as (address, received):
        monkeypatch.setenv(alerts.WEBHOOK, address.replace("://", f"://bot:{SECRET}%40@"))
        assert send(place, "run_failed", "failed", "why") == ()
    assert received[0][1]["Authorization"] == "Basic Ym90OndKYWxyWFV0bkZFTUk3TURFTkdA"


def test_mail_is_logged_in_and_delivered(place: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    with mail() as (server, received):
        monkeypatch.setenv(alerts.SMTP, server.replace("://", f"://bot:{SECRET}@") + "?from=simclr@example.com")
        monkeypatch.setenv(alerts.EMAIL, "team@example.com, me@example.com")
        assert send(place, "run_failed", "retrain failed\nat a gate – ähm", "line one\nline two") == ()
    ((commands, message),) = received
    assert any(command.startswith("AUTH PLAIN") for command in commands)
    assert {command for command in commands if command.startswith("rcpt")} == {
        "rcpt TO:<team@example.com>",
        "rcpt TO:<me@example.com>",
    }
    assert message["Subject"] == "retrain failed at a gate – ähm"
    assert message["From"] == "simclr@example.com"
    assert message.get_content().splitlines()[:2] == ["line one", "line two"]


def test_alerts_contain_no_secret_and_no_image(place: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    text = (
        f"fatal: https://me:{SECRET}@git.example.com and s3://b/x?X-Amz-Signature={SECRET}a with {SECRET}\n"
        "![map](data:image/png;base64,iVBORw0KGgo=) and data:image/png;base64,AAAA"
    )
    with web() as (address, received):
        monkeypatch.setenv(alerts.WEBHOOK, address)
        monkeypatch.setenv(alerts.SLACK, address)
        send(place, "run_failed", f"failed with {SECRET}", text)
    assert len(received) == 2
    for _, _, body in received:
        assert SECRET not in str(body)
        assert "base64" not in str(body)
        assert "(image) and (image)" in str(body)


def test_a_very_long_text_is_cut(place: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    with web() as (address, received):
        monkeypatch.setenv(alerts.WEBHOOK, address)
        send(place, "run_failed", "failed", "x" * 1_000_000)
    assert len(received[0][2]["text"]) < 5000


@pytest.mark.parametrize("status", [302, 307, 404, 500])
def test_an_endpoint_that_refuses_is_logged_and_the_others_still_get_it(
    place: Workspace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    with web(status) as (broken, refused), web() as (whole, received):
        monkeypatch.setenv(alerts.WEBHOOK, broken.replace("/hook", f"/{SECRET}"))
        monkeypatch.setenv(alerts.SLACK, whole)
        (problem,) = send(place, "run_failed", "failed", "why")
    assert problem == (
        f"alert 'run_failed' was not delivered, SIMCLR_ALERT_WEBHOOK: 127.0.0.1 answered with status {status}"
    )
    assert caplog.messages == [problem]
    assert len(received) == 1
    assert [path for path, _, _ in refused] == [f"/{SECRET}"], "a redirect is not followed"


def test_a_closed_port_and_a_silent_server_are_logged_in_time(
    place: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert alerts.TIMEOUT_SECONDS == 10
    monkeypatch.setattr(alerts, "TIMEOUT_SECONDS", 0.1)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        monkeypatch.setenv(alerts.WEBHOOK, f"http://127.0.0.1:{port}/{SECRET}")
        monkeypatch.setenv(alerts.EMAIL, "me@example.com")
        monkeypatch.setenv(alerts.SMTP, f"smtp://bot:{SECRET}@127.0.0.1:{port}")
        waited = send(place, "run_failed", "failed", "why")
    closed = send(place, "run_failed", "failed", "why")
    assert [problem.partition(", ")[2] for problem in waited] == [
        "SIMCLR_ALERT_WEBHOOK: 127.0.0.1 cannot be reached (TimeoutError)",
        "SIMCLR_ALERT_EMAIL: 127.0.0.1 cannot be reached, or refused the mail (SMTPServerDisconnected)",
    ]
    assert all("ConnectionRefusedError" in problem for problem in closed)
    assert SECRET not in str(waited + closed)


def test_a_refusing_mail_server_is_logged_without_its_answer(place: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    with mail(f"554 no {SECRET}".encode()) as (server, _):
        monkeypatch.setenv(alerts.SMTP, server)
        monkeypatch.setenv(alerts.EMAIL, "me@example.com")
        (problem,) = send(place, "run_failed", "failed", "why")
    assert "127.0.0.1 refused the mail with 554 (SMTPDataError)" in problem
    assert SECRET not in problem


@pytest.mark.parametrize(
    ("name", "address", "message"),
    [
        (alerts.WEBHOOK, f"http://example.invalid/{SECRET}", "without encryption; use https, or set SIMCLR_ALERT_AL"),
        (alerts.SLACK, f"http://example.invalid/{SECRET}", "example.invalid would get the alert without encryption"),
        (
            alerts.WEBHOOK,
            f"file:///etc/{SECRET}",
            "the alert address is not a valid URL; expected something like https://host/path",
        ),
        (alerts.WEBHOOK, f"https://[{SECRET}", "the alert address is not a valid URL"),
        (alerts.SLACK, SECRET, "the alert address is not a valid URL"),
        (alerts.WEBHOOK, f"https://a..b/{SECRET}", "a..b cannot be reached (UnicodeError)"),
        (alerts.SMTP, f"https://{SECRET}@example.invalid", "expected something like smtps://user:password@host"),
        (alerts.SMTP, "", "SIMCLR_SMTP_URL is not set"),
    ],
)
def test_an_address_that_is_not_valid_or_not_safe_is_refused_without_repeating_it(
    place: Workspace, monkeypatch: pytest.MonkeyPatch, name: str, address: str, message: str
) -> None:
    monkeypatch.setenv(name, address)
    if name == alerts.SMTP:
        monkeypatch.setenv(alerts.EMAIL, "me@example.com")
    (problem,) = send(place, "run_failed", "failed", "why")
    assert message in problem
    assert SECRET not in problem


def test_unencrypted_mail_is_only_sent_to_this_machine(place: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    with mail() as (server, received):
        monkeypatch.setattr(alerts, "_loopback", lambda url: False)  # as if it were another machine
        monkeypatch.setenv(alerts.SMTP, server.replace("://", f"://bot:{SECRET}@"))
        monkeypatch.setenv(alerts.EMAIL, "me@example.com")
        (problem,) = send(place, "run_failed", "failed", "why")
        assert "offers no encryption" in problem
        assert received == []
        monkeypatch.setenv(alerts.ALLOW_PLAIN, "1")
        assert send(place, "run_failed", "failed", "why") == ()
    assert len(received) == 1
