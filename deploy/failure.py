"""Report the failure of a command: one line on standard error, and an exit code."""

import errno
import signal
import sys

ADVICE: dict[int | None, str] = {
    errno.ENOSPC: "free some space on this disk and run again, nothing is lost",
    errno.EDQUOT: "free some space in this user's quota and run again, nothing is lost",
    errno.EACCES: "give this user access to it, or run as its owner",
    errno.EPERM: "give this user access to it, or run as its owner",
    errno.EROFS: "this file system is read-only: choose another folder, or mount it writable",
}


def fail(message: object, code: int = 2) -> int:
    """Print what went wrong as one line, and return the exit code."""
    print(f"error: {one_line(message)}", file=sys.stderr)
    return code


def notice(message: object) -> None:
    """Print a sentence that is not an error where errors go, so that it does not mix with the output."""
    print(one_line(message), file=sys.stderr)


def one_line(message: object) -> str:
    """The text without line breaks; for an empty text, the name of the type."""
    return " ".join(str(message).split()) or type(message).__name__


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
