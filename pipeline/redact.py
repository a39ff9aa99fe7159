"""Takes secrets out of text before it is logged, shown or stored.

A secret is what stands before the ``@`` of a URL, a signature or token in its query, the value of an environment
variable whose name says so (``AWS_SECRET_ACCESS_KEY``), what a person has put into ``.dvc/config.local``, and what has
a telling name in ``.dvc/config``.
"""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from pipeline.environment import WORKSPACE

HIDDEN = "***"
SHORTEST = 6  # a shorter value is likely to be part of ordinary words
SHORTEST_LINE = 16  # of a secret with several lines, such as a private key; its log shows it line by line

SECRET_NAME = re.compile(r"KEY|SECRET|TOKEN|PASSW|CREDENTIAL|WEBHOOK|SLACK", re.IGNORECASE)
# `KEYMAP=default` and `KEY_LAYOUT=german` are words; a password may be one.
CERTAIN_NAME = re.compile(r"SECRET|TOKEN|PASSW", re.IGNORECASE)
TELLING_SETTING = re.compile(r"connection_string|passphrase", re.IGNORECASE)
# Settings of .dvc/config.local that tell nothing; every other one is taken for a secret.
HARMLESS = {"url", "endpointurl", "region", "remote", "type", "profile", "dir", "user", "port", "autostage"}

# Before the @ of such an address stands no secret: a container (Azure) or the name of an account that has a key.
NAMES_BEFORE_AT = ("abfs", "abfss", "adl", "az", "sftp", "ssh")

_USERINFO = re.compile(r"(?<=://)[^/\s?#\"'<>]+@")
_PASSWORD = re.compile(r"://[^/\s?#:@]*:([^/\s?#]+)@")
# Names are bounded: without, a long line would take time by the square of its length.
_QUERY = re.compile(
    r"([?&;](?:[\w.~%-]{0,40}(?:signature|token|secret|passw(?:or)?d|credential|key)[\w.~%-]{0,40}|sig|auth|pwd)=)"
    r"[^&;\s#\"'<>\\]+",
    re.IGNORECASE,
)
_HEADER = re.compile(r"\b(Bearer|Basic) +[A-Za-z0-9._~+/=-]{8,}")
_SIGNATURE = re.compile(_QUERY.pattern.replace("[^&", "([^&") + ")", re.IGNORECASE)
_SETTING = re.compile(r"^\s*([\w-]+)\s*=\s*(.*?)\s*$", re.MULTILINE)


def redact(text: str) -> str:
    """``text`` with ``***`` for every secret; the workspace is ``SIMCLR_WORKSPACE`` or the current folder."""
    return redactor()(text)


def redactor(root: Path | None = None) -> Callable[[str], str]:
    """``redact`` for the workspace at ``root``, with today's environment: faster for many lines."""
    folder = root or Path(os.environ.get(WORKSPACE) or ".")
    found = {*_of_environment(os.environ), *_of_config(folder, "config.local"), *_of_config(folder, "config")}
    # The longest first, so that a secret which holds another goes whole.
    alternatives = "|".join(re.escape(secret) for secret in sorted(found, key=lambda one: (-len(one), one)))
    known = re.compile(alternatives) if alternatives else None

    def hide(text: str) -> str:
        if known:
            text = known.sub(HIDDEN, text)
        text = _USERINFO.sub(_without_userinfo, text)
        text = _QUERY.sub(rf"\1{HIDDEN}", text)
        return _HEADER.sub(rf"\1 {HIDDEN}", text)

    return hide


def current_redactor(root: Path) -> Callable[[str], str]:
    """A ``redactor`` for a process that lives long: it learns of secrets that are put into DVC's configuration."""
    known: tuple[object, Callable[[str], str]] | None = None

    def hide(text: str) -> str:
        nonlocal known
        state = [_stamp(root / ".dvc" / name) for name in ("config", "config.local")]
        if known is None or known[0] != state:
            known = state, redactor(root)
        return known[1](text)

    return hide


def hide_all(value: Any, hide: Callable[[str], str]) -> Any:
    """What JSON can hold, with every text in it redacted, also the keys."""
    if isinstance(value, str):
        return hide(value)
    if isinstance(value, Mapping):
        return {hide_all(key, hide): hide_all(inner, hide) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [hide_all(inner, hide) for inner in value]
    return value


def _of_environment(environment: Mapping[str, str]) -> Iterator[str]:
    for name, value in environment.items():
        yield from _of_url(value)
        if SECRET_NAME.search(name) and (CERTAIN_NAME.search(name) or not _ordinary(value)):
            yield from _forms(value)


def _of_config(root: Path, file: str) -> Iterator[str]:
    """In the committed file a telling name makes the secret; in the local one, that it stands there."""
    try:
        text = (root / ".dvc" / file).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for name, value in _SETTING.findall(text):
        value = value.strip("\"'")
        yield from _of_url(value)
        secret = SECRET_NAME.search(name) or TELLING_SETTING.search(name)
        if name.lower() in HARMLESS or (file == "config" and not secret):
            continue
        if CERTAIN_NAME.search(name) or not _ordinary(value):
            yield from _forms(value)


def _of_url(value: str) -> Iterator[str]:
    for password in _PASSWORD.findall(value):
        yield from _forms(password)
    for match in _SIGNATURE.finditer(value):
        if not _ordinary(match[2]):
            yield from _forms(unquote(match[2]))


def _without_userinfo(match: re.Match[str]) -> str:
    scheme = match.string[max(0, match.start() - 10) : match.start() - 3]
    named = scheme.endswith(NAMES_BEFORE_AT) and ":" not in match[0]
    return match[0] if named else f"{HIDDEN}@"


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def _ordinary(value: str) -> bool:
    """A path, a number or one lower-case word."""
    return value.startswith(("/", "./", "../", "~/")) or value.isdecimal() or (value.isalpha() and value.islower())


def _forms(value: str) -> Iterator[str]:
    """The ways in which a value may be written: as it is, in a URL, in JSON, and line by line."""
    lines = value.splitlines() if "\n" in value else []
    for part in (value.strip(), *(line for line in lines if len(line) >= SHORTEST_LINE)):
        if len(part) >= SHORTEST and part.strip("*"):
            yield from {part, quote(part, safe=""), json.dumps(part)[1:-1], json.dumps(part, ensure_ascii=False)[1:-1]}
