"""What the environment says of this machine: which device, how many processes, how long they wait. Loads no torch.

These are facts of a machine and not of a training: no result, no run directory and no stage of DVC depends on them.
"""

import math
import os

from simclr_core.errors import DeviceError, LaunchError

DEVICE = "SIMCLR_DEVICE"
DEVICES = ("auto", "cuda", "cpu")
PROCESSES = "SIMCLR_PROCESSES"
NODE = "SIMCLR_NODE"  # of several machines that start the command, each for all of its processes
COMPLETION_INDEX = "JOB_COMPLETION_INDEX"  # of a pod of an indexed Kubernetes job
LAUNCHER = "SIMCLR_LAUNCHER"  # the process of ``launch``, in the environment of those that it starts
# In seconds: for all processes to find each other; for one of them to wait for the others in a step, where the first
# one evaluates while others wait; from SIGTERM to SIGKILL, which has to be enough for a step and a checkpoint.
START_SECONDS, EXCHANGE_SECONDS, STOP_SECONDS = "SIMCLR_START_SECONDS", "SIMCLR_EXCHANGE_SECONDS", "SIMCLR_STOP_SECONDS"
SECONDS = {START_SECONDS: 60, EXCHANGE_SECONDS: 600, STOP_SECONDS: 30}


MOST = 1_000_000.0  # of anything: more processes, seconds or hours than that are a mistake


def read_number(variable: str, least: float, wanted: str, whole: bool = True) -> float | None:
    """The number that a variable of the environment holds; None if it is not set.

    Args:
        least: the smallest one that has a meaning; none is over ``MOST``.
        wanted: what to give, for the error.
        whole: digits alone, without a decimal point.

    Raises:
        LaunchError: it is not a finite number of that range.
    """
    given = os.environ.get(variable)
    if given is None:
        return None
    try:
        number = float(given)
    except ValueError:
        number = math.nan
    if not least <= number <= MOST or (whole and not given.isdecimal()):  # not a number is in no range
        raise LaunchError(f"{variable}={given!r:.80}; give {wanted}, or leave it out")
    return number


def wanted_device() -> str:
    """One of ``DEVICES``.

    Raises:
        DeviceError: the environment names another.
    """
    given = os.environ.get(DEVICE, DEVICES[0])
    if given not in DEVICES:
        raise DeviceError(f"{DEVICE}={given!r}; give {', '.join(DEVICES[:-1])} or {DEVICES[-1]}, or leave it out")
    return given


def wanted_processes() -> int | None:
    """How many processes the user wants on this machine; None: as many as suit it.

    Raises:
        LaunchError: the environment gives no number.
    """
    given = read_number(PROCESSES, 1, "a number of processes, 1 or more")
    return None if given is None else int(given)


def own_node(nodes: int) -> int:
    """The number of this machine among several that start the command, 0 for the first, where DVC runs.

    Raises:
        LaunchError: the environment gives another than a number from 0 to ``nodes`` - 1.
    """
    for variable in (NODE, COMPLETION_INDEX):
        given = read_number(variable, 0, f"the number of this machine, 0 to {nodes - 1}")
        if given is not None:
            if given >= nodes:
                raise LaunchError(f"{variable}={given:g} of {nodes} machines; give 0 to {nodes - 1}")
            return int(given)
    return 0


def seconds(variable: str) -> int:
    """The limit of that name, as the environment or else ``SECONDS`` has it.

    Raises:
        LaunchError: the environment gives no whole number of seconds.
    """
    given = read_number(variable, 1, "whole seconds, 1 or more")
    return SECONDS[variable] if given is None else int(given)
