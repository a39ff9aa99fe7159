"""Which stages a run can leave alone, asked once: a DVC process for each of them would take half a second."""

from pathlib import Path

from pipeline.dvc.client import exclusive
from pipeline.dvc.project import Stage, find_unchanged

DEFINED_IN = ("dvc.yaml", "dvc.lock", "params.yaml", "data/raw.dvc", "models/champion.dvc")


class Unchanged:
    """What is up to date in the workspace at ``root``, for as long as one run changes nothing."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.seen: object = None
        self.names: frozenset[str] = frozenset()

    def has(self, stage: Stage, run_id: str) -> bool:
        """Whether nothing that the stage reads or writes has changed, and its results are there now.

        Raises:
            BusyError: another process holds the workspace.
        """
        with exclusive(self.root, f"stage {stage.name}"):
            now = (run_id, *(stamp(self.root / name) for name in DEFINED_IN))
            if now != self.seen:
                self.seen, self.names = now, find_unchanged(self.root)
        return stage.name in self.names and all((self.root / out.path).exists() for out in stage.outs)

    def forget(self) -> None:
        """A stage has run, and what depends on it may have changed."""
        self.seen = None


def stamp(path: Path) -> list[int] | None:
    """What changes each time the file is written; None if it does not exist."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return [status.st_ino, status.st_size, status.st_mtime_ns]
