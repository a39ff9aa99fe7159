"""How a stage's command begins and ends when DVC, or a person, starts it: ``python -m pipeline.prepare``."""

import errno
import sys
from collections.abc import Callable
from pathlib import Path

from pipeline.errors import FORESEEN
from pipeline.workspace import Workspace, find
from simclr_core.reporter import emit

ADVICE: dict[int | None, str] = {
    errno.ENOSPC: "free some space on this disk and run again, nothing is lost",
    errno.EDQUOT: "free some space in this user's quota and run again, nothing is lost",
    errno.EACCES: "give this user access to it, or run as its owner",
    errno.EROFS: "this file system is read-only: choose another folder, or mount it writable",
}


def run_stage(name: str, stage: Callable[[Workspace], None]) -> None:
    """Run a stage in the workspace of the current folder; a foreseen error is one line and exit code 2."""
    emit("start", stage=name, message="started")
    try:
        stage(find(Path.cwd()))
    except FORESEEN as error:
        sys.exit(fail(str(error)))
    except OSError as error:
        if error.errno is None:
            raise
        sys.exit(fail(describe(error)))
    except KeyboardInterrupt:
        sys.exit(130)
    emit("end", stage=name, message="done")


def fail(message: str, code: int = 2) -> int:
    """Say what went wrong in one line; returns the exit code."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return code


def describe(error: OSError) -> str:
    """An error of the operating system, with the file it is about and what to do about it."""
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror}; {ADVICE.get(error.errno, 'mend the cause and run again')}"
