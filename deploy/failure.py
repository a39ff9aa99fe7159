"""What a command says: a failure as one line on standard error and an exit code, and text made fit to be shown."""

import errno
import os
import select
import signal
import sys
import unicodedata
from contextlib import suppress

INTERRUPTED = "interrupted; run the same command again to continue"
ADVICE: dict[int | None, str] = {
    errno.ENOSPC: "free some space on this disk and run again, nothing is lost",
    errno.EDQUOT: "free some space in this user's quota and run again, nothing is lost",
    errno.EACCES: "give this user access to it, or run as its owner",
    errno.EPERM: "give this user access to it, or run as its owner",
    errno.EROFS: "this file system is read-only: choose another folder, or mount it writable",
}
CLONE = "in a clone of the repository"
"""Where the package is installed from: on an index the name could be anyone's, and installation runs code."""
INSTALL_EVERYTHING = f"`pip install --no-deps -r requirements.lock` {CLONE}"
"""For the pipeline; pip refuses ``.[pipeline]``, because the lock overrides a requirement: CONTRIBUTING, "The lock"."""


def install_command(extra: str) -> str:
    """The command that installs an extra of this package, and where it works."""
    return f"`pip install '.[{extra}]'` {CLONE}"


def fail(message: object, code: int = 2) -> int:
    """Print what went wrong as one line, and return the exit code."""
    print(f"error: {one_line(message)}", file=sys.stderr)
    return code


def notice(message: object) -> None:
    """Print a sentence that is not an error where errors go, so that it does not mix with the output."""
    print(one_line(message), file=sys.stderr)


class Outlet:
    """Writes to a file descriptor whose reader may be gone, or may have stopped to read, as behind a terminal that is
    paused: what is not taken is dropped, because the process that prints must not stand still for it."""

    def __init__(self, descriptor: int, patience: float) -> None:
        """``patience``: seconds to wait for room; none after a wait without success, until there is some."""
        self._descriptor = descriptor
        self._patience = self._left = patience

    def write(self, text: bytes) -> None:
        with suppress(OSError):  # the reader is gone, or the disk is full: the next line may find room
            for start in range(0, len(text), select.PIPE_BUF):  # so much a pipe with room takes at once
                if not self._has_room():
                    return
                os.write(self._descriptor, text[start : start + select.PIPE_BUF])

    def _has_room(self) -> bool:
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        found = bool(poll.poll(1000 * self._left))
        self._left = self._patience if found else 0.0
        return found


LOG_PATIENCE = 0.05  # seconds that a server stands still at most, once, for a log that is not read
_outlets: dict[int, Outlet] = {}


def print_error(line: str) -> None:
    """Print a line of a log to standard error, and drop it where it is not taken."""
    try:
        descriptor = sys.stderr.fileno()
    except (OSError, ValueError, AttributeError):  # not a file, as in a test
        with suppress(OSError):
            sys.stderr.write(f"{line}\n")
        return
    _outlets.setdefault(descriptor, Outlet(descriptor, LOG_PATIENCE)).write(f"{line}\n".encode(errors="replace"))


def one_line(message: object) -> str:
    """The text without line breaks; for an empty text, the name of the type."""
    return " ".join(str(message).split()) or type(message).__name__


def printable(text: str, limit: int | None = 200) -> str:
    """``text`` from a stranger, such as a path or label, with what is not meant to be seen spelled out: \\u202e.

    At most ``limit`` characters are shown.
    """
    hidden = ("C", "Zl", "Zp")  # control, format, surrogate, unassigned; line and paragraph separators
    shown = text[:limit]
    if not shown.isprintable():
        shown = "".join(
            one.encode("unicode_escape").decode() if unicodedata.category(one).startswith(hidden) else one
            for one in shown
        )
    return shown[:limit] + ("…" if limit is not None and max(len(text), len(shown)) > limit else "")


def killed_by(code: int) -> str:
    """Which signal ended a process with this exit code of ``subprocess``, such as -9; empty if none did."""
    if -code not in set(signal.Signals):
        return ""
    memory = ", most often by the kernel when memory runs out" if -code == signal.SIGKILL else ""
    return f"was killed by {signal.Signals(-code).name}{memory}"


def describe(error: OSError) -> str:
    """Describe an error of the operating system: the file, the cause, and what to do."""
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror}; {ADVICE.get(error.errno, 'fix the cause and run again')}"
