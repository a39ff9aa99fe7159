"""From which step the processes of a training continue, each of which may have its own disk.

``launch.member`` has compared what they train; with an older checkpoint on one rank they would still train apart.
"""

import socket
from pathlib import Path

from simclr_core.errors import CheckpointError
from simclr_core.launch import Member
from simclr_core.pretraining import checkpoint
from simclr_core.pretraining.collapse import attempt_folder, roll_backs


def resume_point(run: Path, member: Member) -> int:
    """The step from which the group continues the training in ``run``, 0 for a start; the first process's disk counts.

    Every process calls it at once. Others may lack what the first one has, which hands it out; none may be ahead of it.

    Raises:
        CheckpointError: on every process; another rank has a later checkpoint, as after a restart with swapped roles.
    """
    if member.rank == 0:  # the others look only when it has set aside what is damaged: the disk may be shared
        checkpoint.newest_training(attempt_folder(run, roll_backs(run)))
    member.from_first(None)
    attempt = roll_backs(run)
    own = (attempt, checkpoint.newest_step(attempt_folder(run, attempt)))
    everyone = member.gathered((own, f"rank {member.rank} on {socket.gethostname()}: {run}"))
    first = everyone[0][0]
    (furthest, step), place = max(everyone, key=lambda one: one[0])
    if (furthest, step) > first:
        raise CheckpointError(
            f"this training stands at step {step} for {place}, but the first process has {_described(first[1])}: "
            "start the processes so that rank 0 is where that folder is, or copy the folder to rank 0's machine; to "
            "train from the start, remove the folder"
        )
    return first[1]


def _described(step: int) -> str:
    return f"step {step}" if step else "no checkpoint of it"
