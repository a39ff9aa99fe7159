"""What a stage reads, and how a worker gets it: from a path that every node sees, or by hash from the DVC remote."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from simclr_core.errors import LaunchError

PARAMS = "params.yaml"
INPUTS = {
    "pretrain": ("data/prepared", "models/initial"),
    "linear_eval": ("data/prepared", "data/manifest", "models/initial", "models/pretrained"),
    "finetune": ("data/prepared", "models/pretrained"),
}
"""By stage what dvc.yaml calls its ``deps``."""
SMALL = 1 << 16  # bytes of a file that is compared; larger ones are named by hash in one that is small


@dataclass(frozen=True)
class Shared:
    """An input that is on a path that every node sees, as the driver does; ``fingerprint`` is what it finds there."""

    name: str
    path: Path
    fingerprint: str

    def require(self) -> None:
        """Raise LaunchError if this node does not have it, or has another one."""
        advice = "mount the workspace on every node under the same path, or set data: remote in .simclr/compute.yaml"
        if not self.path.exists():
            raise LaunchError(f"{self.path} is not there; {advice}")
        if fingerprint(self.path) != self.fingerprint:
            raise LaunchError(f"{self.path} is not what the driver has under this path; {advice}")

    def place(self, workspace: Path) -> None:
        """Link it into a worker's folder. Raises what ``require`` raises."""
        self.require()
        target = workspace / self.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(self.path)


def shared(workspace: Path, stage: str) -> Sequence[Shared]:
    """The inputs of a stage, by the paths of this machine; what is not there is left to the stage to report."""
    found = ((name, workspace.resolve() / name) for name in INPUTS[stage])
    return [Shared(name, path, fingerprint(path)) for name, path in found if path.exists()]


def fingerprint(folder: Path) -> str:
    """Of the names and sizes of all files below, and of the content of small ones, among them cards and manifests."""
    seen = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        size = path.stat().st_size
        seen.update(f"{path.relative_to(folder).as_posix()}\0{size}\0".encode())
        if size <= SMALL:
            seen.update(path.read_bytes())
    return seen.hexdigest()
