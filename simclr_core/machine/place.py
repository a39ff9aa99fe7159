"""The place that the environment gives this process in a group: the variables of torch's launcher, of Slurm's srun, or
of an indexed Kubernetes job.

Loads no torch. What is only half there, or was left by another tool, is named and not believed: a process that takes
itself for one of several waits for the others, and one that does not know of them trains alone.
"""

import os
import re
from dataclasses import dataclass

from simclr_core.errors import LaunchError
from simclr_core.machine.settings import COMPLETION_INDEX, NODE

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
STARTERS = {"OMPI_COMM_WORLD_SIZE": "mpirun", "PMI_SIZE": "mpiexec"}  # whose tasks have no address of the first one
TORCH_PORT = 29_500  # torchrun's own
FIRST_PORT, PORTS = 20_000, 20_000  # for tasks of Slurm, below those that Linux hands out


@dataclass(frozen=True)
class Place:
    """``host`` and ``port`` are where the first of ``size`` processes waits for the others; ``local_rank`` counts those
    of one machine."""

    rank: int
    size: int
    local_rank: int
    host: str
    port: int


def find_place() -> Place | None:
    """None: no launcher has started this process, and it is alone.

    Raises:
        LaunchError: several processes were started, but the environment does not say where they meet.
    """
    if all(os.environ.get(name) for name in VARIABLES):
        return _checked(_place_in_torch())
    if _of_several("SLURM_STEP_NUM_TASKS") and NODE not in os.environ:
        return _checked(_place_in_slurm())
    if all(os.environ.get(name) for name in (COMPLETION_INDEX, "WORLD_SIZE", "MASTER_ADDR")) and NODE not in os.environ:
        return _checked(_place_in_kubernetes())
    missing = [name for name in VARIABLES if not os.environ.get(name)]
    if _of_several("WORLD_SIZE") or _given("RANK") > 0:
        raise LaunchError(
            f"{_shown(VARIABLES)}: one of several processes, but without {' and '.join(missing)}; start them with "
            "torchrun, set what is missing, or unset RANK and WORLD_SIZE to train alone"
        )
    for name, starter in STARTERS.items():
        if _of_several(name):
            raise LaunchError(
                f"{name}={os.environ[name]}: {starter} has started several processes that do not know where to meet; "
                "start them with torchrun or srun, or run the command once"
            )
    return None


def leftovers() -> str | None:
    """A sentence on variables of a launcher that has not started this process, which is alone."""
    if not any(name in os.environ for name in VARIABLES):
        return None
    return f"{_shown(VARIABLES)} in the environment, but nothing has started several processes: this one is alone"


def first_host(nodes: str) -> str:
    """The first of Slurm's list of machines.

    Examples:
        >>> first_host("gpu[007-009,12],login1"), first_host("a,b")
        ('gpu007', 'a')
    """
    found = re.match(r"([^,\[]+)(?:\[(\d+)[^\]]*\]([^,\[]*))?", nodes)
    if found is None:
        raise LaunchError(f"SLURM_STEP_NODELIST={nodes!r} names no machine; set MASTER_ADDR and MASTER_PORT")
    return "".join(part or "" for part in found.groups())


def _place_in_torch() -> Place:
    """A scheduler that gives each process a container for itself sets no local rank."""
    return Place(
        rank=_number("RANK"),
        size=_number("WORLD_SIZE"),
        local_rank=_number("LOCAL_RANK") if "LOCAL_RANK" in os.environ else _given("SLURM_LOCALID"),
        host=os.environ["MASTER_ADDR"],
        port=_number("MASTER_PORT"),
    )


def _place_in_slurm() -> Place:
    """Each task of srun is a process. The first machine of the step has task 0; the port follows from the job."""
    port = FIRST_PORT + (_given("SLURM_JOB_ID") + _given("SLURM_STEP_ID")) % PORTS
    return Place(
        rank=_number("SLURM_PROCID"),
        size=_number("SLURM_STEP_NUM_TASKS"),
        local_rank=_number("SLURM_LOCALID"),
        host=os.environ.get("MASTER_ADDR") or first_host(os.environ.get("SLURM_STEP_NODELIST", "")),
        port=_number("MASTER_PORT") if os.environ.get("MASTER_PORT") else port,
    )


def _place_in_kubernetes() -> Place:
    """Each pod of an indexed job is a process; the manifest gives WORLD_SIZE and MASTER_ADDR, the name of pod 0."""
    port = _number("MASTER_PORT") if os.environ.get("MASTER_PORT") else TORCH_PORT
    return Place(_number(COMPLETION_INDEX), _number("WORLD_SIZE"), 0, os.environ["MASTER_ADDR"], port)


def _checked(place: Place) -> Place:
    if not place.rank < place.size:
        raise LaunchError(
            f"rank {place.rank} of {place.size} processes; ranks go from 0 to {place.size - 1}: correct RANK or "
            "WORLD_SIZE, or start the processes with torchrun"
        )
    return place


def _of_several(name: str) -> bool:
    return _given(name) > 1


def _given(name: str) -> int:
    """0 where it is missing."""
    return _number(name) if os.environ.get(name) else 0


def _number(name: str) -> int:
    given = os.environ.get(name, "")
    if not given.isdecimal():
        raise LaunchError(f"{name}={given!r} is not a number; start the processes with torchrun, or unset {name}")
    return int(given)


def _shown(names: tuple[str, ...]) -> str:
    return ", ".join(f"{name}={os.environ[name]}" for name in names if name in os.environ)
