"""From which step the processes of a training continue, each of which may have its own disk.

``launch.member`` has compared what they train; with an older checkpoint on one rank they would still train apart.
"""

import logging
import shutil
import socket
import tempfile
from pathlib import Path

from simclr_core.launch import Member
from simclr_core.pretraining import checkpoint
from simclr_core.pretraining.collapse import attempt_folder, roll_backs

logger = logging.getLogger(__name__)


def resume_point(run: Path, member: Member) -> int:
    """The step from which the group continues the training in ``run``, 0 for a start: the furthest on any disk.

    Every process calls it at once. The first one, which hands out what it continues from, gets the run directory of
    another rank if that is ahead, as after a restart with swapped roles.
    """
    if member.rank == 0:  # the others look only when it has set aside what is damaged: the disk may be shared
        checkpoint.newest_training(attempt_folder(run, roll_backs(run)))
    member.from_first(None)
    attempt = roll_backs(run)
    reached = member.gathered((attempt, checkpoint.newest_step(attempt_folder(run, attempt))))
    hosts = member.gathered(socket.gethostname())
    furthest = max(reached)
    if furthest > reached[0]:
        source = reached.index(furthest)
        _copy(run, member, source)
        if member.rank == 0:
            logger.info("step %d is on rank %d (%s), and is copied from there", furthest[1], source, hosts[source])
    return furthest[1]


def _copy(run: Path, member: Member, source: int) -> None:
    """Replace the first process's run directory by that of another rank; all processes call this at once."""
    found = sorted(path.relative_to(run) for path in run.rglob("*") if path.is_file() and _lasts(path.relative_to(run)))
    names = member.from_one(source, found)
    run.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{run.name}.partial-", dir=run.parent)) if member.rank == 0 else None
    for name in names:
        content = member.from_one(source, (run / name).read_bytes() if member.rank == source else b"")
        if work is not None:
            (work / name).parent.mkdir(parents=True, exist_ok=True)
            (work / name).write_bytes(content)
    if work is not None:
        work.chmod(0o755)
        shutil.rmtree(run, ignore_errors=True)
        work.rename(run)


def _lasts(name: Path) -> bool:
    """Neither set aside as damaged nor about to be published."""
    return not any(part.startswith(".") or part.endswith(".corrupt") for part in name.parts)
