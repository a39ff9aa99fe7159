"""How many cores and threads a process has, of those that were started with it on its machine. Loads no torch.

torchrun sets OMP_NUM_THREADS=1 for several processes on a machine where the variable is missing, lest they overload it.
A process that does not notice computes, makes views, and judges features on one core, and leaves the others idle.
"""

import os
from pathlib import Path

from deploy.plural import counted
from simclr_core.machine.settings import LAUNCHER

LOCAL_PROCESSES = "LOCAL_WORLD_SIZE"  # of this machine, as torch's launchers tell each of them
STARTED_BY_TORCH = "TORCHELASTIC_RUN_ID"
THREADS = "OMP_NUM_THREADS"
PROCESSES = Path("/proc")


def own_cores() -> int:
    """The cores that this process may use, over the processes that were started next to it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes = os.environ.get(LOCAL_PROCESSES, "")
    return max(1, cores // max(1, int(processes))) if processes.isdecimal() else cores


def choose_threads() -> str | None:
    """Give this process a thread for each of its cores, if torchrun gave it one unasked; returns a line for the log.

    What a user has set stays, also 1. None: there is nothing to say. torch must not have been imported yet.
    """
    cores = own_cores()
    is_foreign = STARTED_BY_TORCH in os.environ and LAUNCHER not in os.environ
    if not is_foreign or os.environ.get(THREADS) != "1" or cores == 1:
        return None
    if _is_given_by_the_user():
        return (
            f"{THREADS}=1, as the environment says: this process computes on one of its {counted(cores, 'core')}; "
            f"without the variable it takes all of them"
        )
    os.environ[THREADS] = str(cores)
    return f"{THREADS}={cores}: torchrun set 1 unasked, and this process has {counted(cores, 'core')}"


def _is_given_by_the_user() -> bool:
    """Whether torchrun, the parent of this process, was itself started with the variable. So is whatever else starts
    this process, and what cannot be looked at."""
    try:
        given = (PROCESSES / str(os.getppid()) / "environ").read_bytes()
    except OSError:
        return True
    return f"{THREADS}=".encode() in (entry[: len(THREADS) + 1] for entry in given.split(b"\0"))
