"""Whether new images have to wait, because a pretraining on the batches so far was interrupted and is finished first.

With a new batch it would begin again from its first step.
"""

from pipeline.dvc.client import changed_stages
from pipeline.params import read
from pipeline.workspace import Workspace
from simclr_core.pretraining.unfinished import Unfinished, find_unfinished

BEFORE = ("validate", "prepare", "initial")  # stages that make what pretraining reads
TRIES = 3  # that got no further: what ends the training each time must not keep new images away forever
ATTEMPTS = "attempts"  # file in the run directory: for each run that new images waited for, the step it began at


def find_interrupted(workspace: Workspace) -> Unfinished | None:
    """The pretraining that a run would continue, if it ingests nothing; None too if it got no further in some runs.

    Raises:
        DvcError, BusyError: DVC cannot say whether the data are as they were.
    """
    found = find_unfinished(workspace.root, read(workspace).pretrain)
    if found is None or _attempts(found).count(str(found.step)) >= TRIES:
        return None
    return None if changed_stages(workspace.root, *BEFORE) else found


def record_attempt(training: Unfinished) -> None:
    """Remember that a run continues it while new images wait."""
    with (training.folder / ATTEMPTS).open("a", encoding="utf-8") as file:
        file.write(f"{training.step}\n")


def _attempts(training: Unfinished) -> list[str]:
    path = training.folder / ATTEMPTS
    return path.read_text(encoding="utf-8").split() if path.exists() else []
