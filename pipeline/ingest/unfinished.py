"""Whether new images have to wait, because a run on the batches so far was interrupted and is finished first.

With a new batch it would begin again. What pretraining has done shows in its checkpoints; of what comes after it, a
file in the scratch folder tells: a run that goes as far as the release writes it, and its end removes it.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from deploy.artifact import write_atomically
from pipeline.dvc.client import changed_stages
from pipeline.dvc.project import RAW, read_tracked
from pipeline.workspace import Workspace
from simclr_core.config import PretrainConfig
from simclr_core.params import read_block
from simclr_core.pretraining.unfinished import Unfinished, find_unfinished

BEFORE = ("validate", "prepare", "initial")  # stages that make what pretraining reads
PRETRAIN = "pretrain"
DISTILL = "distill"  # is continued as well, by the stage itself
BEGUN = "begun"  # in the scratch folder: what data/raw.dvc says of the batches of the run that has not ended
ATTEMPTS = "attempts"  # the mark of a run, once for each time that new images waited for it and it got no further
TRIES = 3  # that got no further: what ends the run each time must not keep new images away forever


@dataclass(frozen=True)
class Interrupted:
    """A run that has not ended: "before export" says how far it came, and ``mark`` changes when it gets further."""

    mark: str
    progress: str


def begin(workspace: Workspace) -> None:
    """Remember that a run, which goes as far as the release, works on the batches that are there now."""
    write_atomically(workspace.scratch / BEGUN, read_tracked(workspace.root, RAW).md5)


def end(workspace: Workspace) -> None:
    """Forget it: the candidate was released or refused, and nothing is left to do."""
    (workspace.scratch / BEGUN).unlink(missing_ok=True)


def find_interrupted(workspace: Workspace) -> Interrupted | None:
    """The run that would be continued, if nothing is ingested; None too if it got no further in some runs.

    Raises:
        DvcError, BusyError: DVC cannot say whether the data are as they were.
    """
    if not look(workspace):
        return None
    found = describe(workspace, changed_stages(workspace.root))
    return None if found is None or _attempts(workspace).count(found.mark) >= TRIES else found


def look(workspace: Workspace) -> str:
    """A name for what may have been interrupted, empty if nothing was. Cheap: DVC is not asked what is up to date."""
    training = _training(workspace)
    return training.folder.name if training else _trained(workspace)


def describe(workspace: Workspace, changed: Iterable[str]) -> Interrupted | None:
    """What of the run is left to do, given the stages that DVC would bring up to date.

    None if pretraining begins again in any case, so that nothing can be lost.
    """
    left = sorted(changed)
    if not {*BEFORE}.isdisjoint(left):
        return None
    if PRETRAIN in left:
        training = _training(workspace)
        if training is None:
            return None
        return Interrupted(f"{training.folder.name} {training.step}", f"in pretraining, at step {training.step}")
    if not _trained(workspace):
        return None
    lock = hashlib.sha256((workspace.root / "dvc.lock").read_bytes()).hexdigest()[:16]
    return Interrupted(lock, f"before {', '.join(left)}" if left else "before the last gates and the release")


def record_attempt(workspace: Workspace, run: Interrupted) -> None:
    """Remember that it is continued while new images wait."""
    before = [mark for mark in _attempts(workspace) if mark == run.mark]
    write_atomically(workspace.scratch / ATTEMPTS, "\n".join([*before, run.mark]))


def _training(workspace: Workspace) -> Unfinished | None:
    return find_unfinished(workspace.root, read_block(workspace.params, PRETRAIN, PretrainConfig))


def _trained(workspace: Workspace) -> str:
    """The hash of the raw batches on which a run trained a model without finishing, or an empty string."""
    begun, tracked = workspace.scratch / BEGUN, workspace.raw.with_suffix(".dvc")
    if not (begun.exists() and tracked.exists() and (workspace.root / "models" / "pretrained").is_dir()):
        return ""
    raw = begun.read_text(encoding="utf-8")
    return raw if raw == read_tracked(workspace.root, RAW).md5 else ""


def _attempts(workspace: Workspace) -> list[str]:
    path = workspace.scratch / ATTEMPTS
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []
