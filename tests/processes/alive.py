"""Whether a process that a test saw is still there: it may end between any two questions about it."""

from contextlib import suppress

import psutil


def is_alive(pid: int) -> bool:
    """Return whether a process exists and is not a zombie."""
    with suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False
