"""Named places where a test can make the process fail, to prove that a crash there loses nothing.

    SIMCLR_FAILPOINT=artifact.rename:kill@2 simclr ingest photos/

kills the process when it reaches ``failpoint("artifact.rename")`` for the second time. Without the variable a failpoint
costs one dictionary lookup.
"""

import errno
import os
import signal
from collections import Counter

VARIABLE = "SIMCLR_FAILPOINT"
_reached: Counter[str] = Counter()


def failpoint(name: str) -> None:
    """Fail here if ``SIMCLR_FAILPOINT`` names this place: ``name:action``, or ``name:action@n`` for the n-th time.

    Actions: ``kill`` (SIGKILL to this process), ``raise`` (RuntimeError), ``enospc`` (OSError: the disk is full), and
    ``stop`` (SIGSTOP), which lets a test act while the process stands exactly here.
    """
    armed = os.environ.get(VARIABLE)
    if not armed:
        return
    place, _, action = armed.partition(":")
    action, _, turn = action.partition("@")
    if place != name:
        return
    _reached[name] += 1
    if _reached[name] != int(turn or 1):
        return
    if action in ("kill", "stop"):
        os.kill(os.getpid(), signal.SIGKILL if action == "kill" else signal.SIGSTOP)
        return
    if action == "enospc":
        raise OSError(errno.ENOSPC, "No space left on device (failpoint)", name)
    assert action == "raise", f"{VARIABLE}={armed}: the action must be kill, stop, raise or enospc"
    raise RuntimeError(f"failpoint {name}")
