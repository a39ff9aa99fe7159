"""Tell people what happened: to a webhook, to Slack, by e-mail. Where to is in the environment, and nowhere else.

    SIMCLR_ALERT_WEBHOOK=https://example.com/hook      gets {"event", "title", "text", "workspace"} as JSON
    SIMCLR_ALERT_SLACK=https://hooks.slack.com/...     Slack, or what takes Slack's messages, such as Mattermost
    SIMCLR_ALERT_EMAIL=team@example.com,me@example.com
    SIMCLR_SMTP_URL=smtps://user:password@mail.example.com?from=simclr@example.com     (or smtp://, with STARTTLS)
    SIMCLR_HEARTBEAT_URL=https://hc.example.com/...    an outside monitor, which hears every 5 minutes that all is well
    SIMCLR_ALERT_ALLOW_PLAIN=1                         also without encryption to other machines

An alert that cannot be delivered is logged, and changes nothing else. Secrets in its text are redacted
(``pipeline.redact``); images are never in it.
"""

import base64
import ipaddress
import json
import logging
import os
import re
import smtplib
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from email.message import EmailMessage
from functools import partial
from http.client import HTTPException
from typing import Literal
from urllib.error import HTTPError
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

from pipeline.errors import AlertError
from pipeline.redact import redactor
from pipeline.workspace import Workspace

WEBHOOK, SLACK, EMAIL, SMTP = "SIMCLR_ALERT_WEBHOOK", "SIMCLR_ALERT_SLACK", "SIMCLR_ALERT_EMAIL", "SIMCLR_SMTP_URL"
ALLOW_PLAIN = "SIMCLR_ALERT_ALLOW_PLAIN"
HEARTBEAT = "SIMCLR_HEARTBEAT_URL"
UI_URL = "SIMCLR_UI_URL"  # where the people who get an alert reach the UI
TIMEOUT_SECONDS = 10.0
MOST_CHARACTERS = 4000

Event = Literal[
    "run_failed", "champion_changed", "candidate_rejected", "approval_needed", "not_kept", "unattended", "trial"
]
log = logging.getLogger("simclr.alerts")


@dataclass(frozen=True)
class Alert:
    """One message, with no secret in it."""

    event: str
    title: str
    text: str
    workspace: str


def send(workspace: Workspace, event: Event, title: str, text: str) -> tuple[str, ...]:
    """Deliver an alert to every address in the environment.

    Returns:
        For each address that it could not be delivered to, one line that names it without its secrets.
    """
    hide = redactor(workspace.root)
    alert = Alert(event, " ".join(_plain(hide(title)).split()), _plain(hide(text)), workspace.root.name)
    problems = []
    for name, deliver in _channels(os.environ):
        try:
            deliver(alert)
        except AlertError as error:
            problems.append(f"alert {event!r} was not delivered, {name}: {error}")
    for problem in problems:
        log.warning(problem)
    return tuple(problems)


def beat(workspace: Workspace) -> tuple[str, ...]:
    """Tell the outside monitor at SIMCLR_HEARTBEAT_URL that all is well; it raises an alarm when it gets no heartbeat.

    Returns:
        Why it could not be reached, if it could not.
    """
    address = os.environ.get(HEARTBEAT)
    if not address:
        return ()
    try:
        _post(address, os.environ.get(ALLOW_PLAIN) == "1", {"workspace": workspace.root.name})
    except AlertError as error:
        return (f"the heartbeat was not delivered, {HEARTBEAT}: {error}",)
    return ()


def list_configured() -> tuple[str, ...]:
    """The variables of the environment that name an address; none means that alerts go nowhere."""
    return tuple(name for name, _ in _channels(os.environ))


def _channels(environment: Mapping[str, str]) -> Iterator[tuple[str, Callable[[Alert], None]]]:
    plain = environment.get(ALLOW_PLAIN) == "1"
    if address := environment.get(WEBHOOK):
        yield WEBHOOK, partial(_webhook, address, plain)
    if address := environment.get(SLACK):
        yield SLACK, partial(_slack, address, plain)
    if recipients := environment.get(EMAIL):
        yield EMAIL, partial(_mail, environment.get(SMTP, ""), recipients, plain)


def _plain(text: str) -> str:
    text = re.sub(r"!?(\[[^\]]*\])?\(?data:image/[^\s)]*\)?", "(image)", text)
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]} …"


def _webhook(address: str, plain: bool, alert: Alert) -> None:
    _post(address, plain, vars(alert))


def _slack(address: str, plain: bool, alert: Alert) -> None:
    """Slack reads <...> as a link, or as a mention of all members."""
    text = f"*{alert.title}*\n{alert.text}"
    _post(address, plain, {"text": text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")})


def _post(address: str, plain: bool, body: Mapping[str, str]) -> None:
    url = _split(address, ("https", "http"), "https://host/path")
    headers = {"Content-Type": "application/json", "User-Agent": "simclr-pipeline"}
    if url.username is not None:
        credentials = f"{unquote(url.username)}:{unquote(url.password or '')}"
        headers["Authorization"] = f"Basic {base64.b64encode(credentials.encode()).decode()}"
    if url.scheme == "http" and not (plain or _loopback(url)):
        raise AlertError(f"{url.hostname} would get the alert without encryption; use https, or set {ALLOW_PLAIN}=1")
    bare = url._replace(netloc=url.netloc.rpartition("@")[2]).geturl()
    # Every scheme but http and https has been refused above.
    request = Request(bare, json.dumps(body).encode(), headers, method="POST")  # noqa: S310
    handlers = [_NoRedirects(), *([ProxyHandler({})] if _loopback(url) else [])]
    try:
        with build_opener(*handlers).open(request, timeout=TIMEOUT_SECONDS):
            pass
    except HTTPError as error:
        error.close()
        raise AlertError(f"{url.hostname} answered with status {error.code}") from None
    except (OSError, HTTPException, UnicodeError) as error:
        raise AlertError(f"{url.hostname} cannot be reached ({_kind(error)})") from None


class _NoRedirects(HTTPRedirectHandler):
    """To follow one would turn the message into a GET, and might leave https."""

    def redirect_request(self, *_: object) -> None:
        return None


def _mail(server: str, recipients: str, plain: bool, alert: Alert) -> None:
    if not server:
        raise AlertError(f"{SMTP} is not set; give it as smtps://user:password@host")
    url = _split(server, ("smtps", "smtp"), "smtps://user:password@host")
    message = EmailMessage()
    message["Subject"] = alert.title
    message["From"] = _sender(url)
    message["To"] = " ".join(recipients.split())
    message.set_content(f"{alert.text}\n\nworkspace: {alert.workspace}\nevent: {alert.event}\n")
    try:
        with _connect(url, plain) as connection:
            if url.username:
                connection.login(unquote(url.username), unquote(url.password or ""))
            connection.send_message(message)
    except smtplib.SMTPResponseException as error:  # without the server's reply, which may repeat the password
        raise AlertError(f"{url.hostname} refused the mail with {error.smtp_code} ({_kind(error)})") from None
    except (OSError, smtplib.SMTPException, UnicodeError) as error:
        raise AlertError(f"{url.hostname} cannot be reached, or refused the mail ({_kind(error)})") from None


def _connect(url: SplitResult, plain: bool) -> smtplib.SMTP:
    host, encryption = url.hostname or "", ssl.create_default_context()
    name = socket.gethostname()  # by default smtplib asks DNS for it, and may wait long for the answer
    if url.scheme == "smtps":
        return smtplib.SMTP_SSL(host, url.port or 465, name, timeout=TIMEOUT_SECONDS, context=encryption)
    connection = smtplib.SMTP(host, url.port or (587 if url.username else 25), name, timeout=TIMEOUT_SECONDS)
    if _loopback(url):
        return connection
    try:
        connection.ehlo()
        if connection.has_extn("starttls"):
            connection.starttls(context=encryption)
        elif not plain:
            raise AlertError(f"{host} offers no encryption; use another server, or set {ALLOW_PLAIN}=1")
    except BaseException:
        connection.close()
        raise
    return connection


def _sender(url: SplitResult) -> str:
    named = parse_qs(url.query).get("from", [])
    user = unquote(url.username or "")
    return named[0] if named else user if "@" in user else f"simclr@{socket.gethostname()}"


def _split(address: str, schemes: tuple[str, ...], example: str) -> SplitResult:
    try:
        url = urlsplit(address)
        usable = url.scheme in schemes and bool(url.hostname) and url.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise AlertError(f"the alert address is not a valid URL; expected something like {example}")
    return url


def _loopback(url: SplitResult) -> bool:
    try:
        return url.hostname == "localhost" or ipaddress.ip_address(url.hostname or "").is_loopback
    except ValueError:
        return False


def _kind(error: BaseException) -> str:
    """The kind of error, without its text: it may hold an address, which for Slack is the secret itself."""
    reason = getattr(error, "reason", error)
    return type(reason if isinstance(reason, BaseException) else error).__name__
