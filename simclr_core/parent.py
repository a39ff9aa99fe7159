"""A process that ends with the one that started it, also when that one is killed and can end nothing itself."""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
LIBRARY = ctypes.CDLL(None)  # loaded with this module: between fork and exec nothing may be loaded


def die_with(parent: int) -> None:
    """Have the kernel kill this process when ``parent``, which started it, is gone; kill it now if that has happened.

    Only Linux can do the first.
    """
    if sys.platform == "linux":
        LIBRARY.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
