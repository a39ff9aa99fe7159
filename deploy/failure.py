"""How a command says that it failed: one line on the standard error, and an exit code."""

import errno
import sys

ADVICE: dict[int | None, str] = {
    errno.ENOSPC: "free some space on this disk and run again, nothing is lost",
    errno.EDQUOT: "free some space in this user's quota and run again, nothing is lost",
    errno.EACCES: "give this user access to it, or run as its owner",
    errno.EPERM: "give this user access to it, or run as its owner",
    errno.EROFS: "this file system is read-only: choose another folder, or mount it writable",
}


def fail(message: object, code: int = 2) -> int:
    """Say what went wrong in one line; returns the exit code."""
    print(f"error: {' '.join(str(message).split())}", file=sys.stderr)
    return code


def describe(error: OSError) -> str:
    """An error of the operating system, with the file it is about and what to do about it."""
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror}; {ADVICE.get(error.errno, 'fix the cause and run again')}"
