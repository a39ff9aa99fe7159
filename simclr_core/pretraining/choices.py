"""What a run settles for itself at its start, and never again: the same on every process and after every interruption.

A choice may depend on a measurement, and a measurement on the machine and the moment. It is made once, by all processes
together, and kept in the run directory next to the checkpoints, so that a training continues with the same arithmetic.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from deploy.artifact import write_atomically
from simclr_core.launch import Member


@dataclass(frozen=True)
class Choice:
    """``value`` is what the run uses; ``reason`` says why that is not what was asked for, None where it is."""

    value: str
    reason: str | None = None


def settle(folder: Path, name: str, member: Member, choose: Callable[[], Choice]) -> Choice:
    """The choice ``name`` of the run in ``folder``: what it settled on earlier, else what ``choose`` says now.

    Every process of the group calls this; ``choose`` may talk to the others, and the first process's word counts.
    """
    path = folder / f"{name}.json"
    known = Choice(**json.loads(path.read_text())) if member.rank == 0 and path.exists() else None
    earlier = member.from_first(known)
    if earlier is not None:
        return earlier
    chosen = member.from_first(choose())
    if member.rank == 0:
        write_atomically(path, json.dumps(asdict(chosen)) + "\n")
    return chosen


def first_fault(fault: str | None, member: Member) -> str | None:
    """The fault that the lowest rank found, None when no process found one."""
    return next((one for one in member.gathered(fault) if one is not None), None)
