"""Tokens and the certificate: read at the start, and again when their files change."""

import errno
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from deploy.errors import ArgumentError
from deploy.failure import describe
from deploy.server import background
from deploy.server.metrics import Metrics
from deploy.server.transport.expiry import find_expiry

TOKEN_LENGTH = 16
MOST_BYTES = 1_000_000
"""Of one file; a chain of certificates has some thousands."""

T = TypeVar("T")
Report = Callable[[ArgumentError | None], None]


class FromFiles(Generic[T]):
    """What was made from files. If the files change, it is made again; if that fails, it stays as it was."""

    def __init__(
        self,
        name: str,
        files: Sequence[Path],
        make: Callable[[list[bytes]], T],
        report: Report,
        check: Callable[[T], object] = lambda _: None,
    ) -> None:
        """``make`` gets the contents of the files; ``report`` is called after each attempt but the first.

        ``check`` raises ArgumentError for what is good enough to start with, and must not replace what is there.

        Raises:
            ArgumentError: a file cannot be read, or ``make`` refuses what is in it.
        """
        self.name, self._files, self._make, self._report, self._check = name, files, make, report, check
        self._lock = threading.Lock()
        self._tried, contents = self._look(_read)
        if contents is None:
            raise ArgumentError(self._tried)
        self.current = make(contents)

    def refresh(self) -> None:
        """Make it again if the files changed since the last attempt."""
        with self._lock:
            found, contents = self._look(_read_again)
            if found == self._tried:
                return
            self._tried = found
            if contents is None:
                self._report(ArgumentError(found))
                return
            try:
                made = self._make(contents)
                self._check(made)
            except ArgumentError as error:
                self._report(error)
            else:
                self.current = made
                self._report(None)

    def _look(self, read: Callable[[Path], bytes]) -> tuple[str, list[bytes] | None]:
        """Return what tells this state of the files from others, without a second copy of a key; and their contents."""
        try:
            contents = [read(file) for file in self._files]
        except OSError as error:
            return describe(error), None
        return ",".join(sha256(content).hexdigest() for content in contents), contents


def _read(file: Path) -> bytes:
    with file.open("rb") as opened:
        content = opened.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise OSError(errno.EFBIG, f"over {MOST_BYTES:,} bytes", str(file))
    return content


def _read_again(file: Path) -> bytes:
    """Read a regular file; a pipe, as of a shell's ``<(command)``, can be read once, and would then wait forever."""
    if file.exists() and not file.is_file():
        raise OSError(errno.EINVAL, "not a regular file", str(file))
    return _read(file)


def watch(sources: Sequence[FromFiles[Any]], metrics: Metrics) -> None:
    """Start a thread for each of the sources, which refreshes it."""
    for source in sources:
        background.watch(source.name, metrics, source.refresh)


def read_tokens(text: bytes) -> tuple[bytes, ...]:
    """Return the tokens that requests may carry, one on each line that is not blank.

    Raises:
        ArgumentError: there is none, or one is short, has spaces or is not ASCII.
    """
    tokens = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not tokens or any(
        len(token) < TOKEN_LENGTH or not token.isascii() or token.split() != [token] for token in tokens
    ):
        raise ArgumentError(
            f"a token is empty, too short, not ASCII or has spaces; use {TOKEN_LENGTH} characters or more in each "
            "line, such as from `openssl rand -hex 32`"
        )
    return tokens


class Certificate(NamedTuple):
    """What new connections use, and when the first certificate of its chain expires, in seconds since 1970."""

    context: ssl.SSLContext
    expires: float

    def check(self) -> None:
        """Raise ArgumentError if it has expired: clients refuse it, so it must not replace one that has not."""
        if self.expires < time.time():
            day = datetime.fromtimestamp(self.expires, UTC).date()
            raise ArgumentError(f"the certificate, or another one of its chain, expired on {day}; renew it")


def open_certificate(certificate: Path, key: Path, chain: bytes) -> Certificate:
    """Return TLS 1.2 or newer with a chain of certificates and its private key, both in PEM; ``chain`` is the former.

    Raises:
        ArgumentError: a file cannot be used, or they do not belong together.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])

    def refuse_password() -> str:
        raise ArgumentError(f"--tls-key {key}: is encrypted; give it without a password, as from `openssl pkey`")

    try:
        context.load_cert_chain(certificate, key, refuse_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            fault = "the key does not belong to the certificate; give the key that it was made with"
        else:
            fault = f"not a certificate chain and its private key in PEM ({error.reason or error}); give such files"
        raise ArgumentError(f"--tls-cert {certificate} --tls-key {key}: {fault}") from None
    except OSError as error:
        raise ArgumentError(f"--tls-cert {certificate} --tls-key {key}: {error.strerror or error}") from None
    try:
        return Certificate(context, find_expiry(chain))
    except ValueError:  # OpenSSL, which reads the file again, has found another one
        raise ArgumentError(f"--tls-cert {certificate}: changed while it was read; it is read again") from None
