"""Takes secrets out of text before it is logged, shown or stored.

A secret is what stands before the ``@`` of a URL, a signature or token in its query, the value of an environment
variable whose name says so (``AWS_SECRET_ACCESS_KEY``), and what a person has put into ``.dvc/config.local``.
"""

import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

VARIABLE = "SIMCLR_WORKSPACE"
HIDDEN = "***"
SHORTEST = 6  # a shorter value is likely to be part of ordinary words
SHORTEST_LINE = 16  # of a secret with several lines, such as a private key; its log shows it line by line

SECRET_NAME = re.compile(r"KEY|SECRET|TOKEN|PASSW|CREDENTIAL|WEBHOOK|SLACK", re.IGNORECASE)
# `KEYMAP=default` and `KEY_LAYOUT=german` are words; a password may be one.
CERTAIN_NAME = re.compile(r"SECRET|TOKEN|PASSW", re.IGNORECASE)
# Settings of .dvc/config.local that tell nothing; every other one is taken for a secret.
HARMLESS = {"url", "endpointurl", "region", "remote", "type", "profile", "dir", "user", "port", "autostage"}

_USERINFO = re.compile(r"(?<=://)[^/\s?#\"'<>]+@")
_PASSWORD = re.compile(r"://[^/\s?#:@]*:([^/\s?#]+)@")
# Names are bounded: without, a long line would take time by the square of its length.
_QUERY = re.compile(
    r"([?&;](?:[\w.~%-]{0,40}(?:signature|token|secret|passw(?:or)?d|credential|key)[\w.~%-]{0,40}|sig|auth|pwd)=)"
    r"[^&;\s#\"'<>]+",
    re.IGNORECASE,
)
_HEADER = re.compile(r"\b(Bearer|Basic) +[A-Za-z0-9._~+/=-]{8,}")
_SETTING = re.compile(r"^\s*([\w-]+)\s*=\s*(.*?)\s*$", re.MULTILINE)


def redact(text: str) -> str:
    """``text`` with ``***`` for every secret; the workspace is ``SIMCLR_WORKSPACE`` or the current folder."""
    return redactor()(text)


def redactor(root: Path | None = None) -> Callable[[str], str]:
    """``redact`` for the workspace at ``root``, with today's environment: faster for many lines."""
    found = set(_of_environment(os.environ)) | set(_of_config(root or Path(os.environ.get(VARIABLE) or ".")))
    # The longest first, so that a secret which holds another goes whole.
    alternatives = "|".join(re.escape(secret) for secret in sorted(found, key=lambda one: (-len(one), one)))
    known = re.compile(alternatives) if alternatives else None

    def hide(text: str) -> str:
        if known:
            text = known.sub(HIDDEN, text)
        text = _USERINFO.sub(f"{HIDDEN}@", text)
        text = _QUERY.sub(rf"\1{HIDDEN}", text)
        return _HEADER.sub(rf"\1 {HIDDEN}", text)

    return hide


class RedactingFilter(logging.Filter):
    """Takes secrets out of every record, its traceback included: ``handler.addFilter(RedactingFilter())``."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = redact(record.getMessage()), None
        if record.exc_info and not record.exc_text:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        if record.exc_text:
            record.exc_text = redact(record.exc_text)
        return True


def _of_environment(environment: Mapping[str, str]) -> Iterator[str]:
    for name, value in environment.items():
        for password in _PASSWORD.findall(value):
            yield from _forms(password)
        if SECRET_NAME.search(name) and (CERTAIN_NAME.search(name) or not _ordinary(value)):
            yield from _forms(value)


def _of_config(root: Path) -> Iterator[str]:
    try:
        text = (root / ".dvc" / "config.local").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for name, value in _SETTING.findall(text):
        value = value.strip("\"'")
        if name.lower() not in HARMLESS and (CERTAIN_NAME.search(name) or not _ordinary(value)):
            yield from _forms(value)


def _ordinary(value: str) -> bool:
    """A path, a number or one lower-case word."""
    return value.startswith(("/", "./", "../", "~/")) or value.isdecimal() or (value.isalpha() and value.islower())


def _forms(value: str) -> Iterator[str]:
    """The ways in which a value may be written: as it is, in a URL, in JSON, and line by line."""
    lines = value.splitlines() if "\n" in value else []
    for part in (value.strip(), *(line for line in lines if len(line) >= SHORTEST_LINE)):
        if len(part) >= SHORTEST and part.strip("*"):
            yield from {part, quote(part, safe=""), json.dumps(part)[1:-1], json.dumps(part, ensure_ascii=False)[1:-1]}
