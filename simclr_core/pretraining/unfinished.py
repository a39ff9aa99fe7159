"""A pretraining that was interrupted: which one it is, and how far it came. Loads no torch."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.artifact import identity
from deploy.errors import ArtifactError
from simclr_core.config import PretrainConfig
from simclr_core.data.shards import read_card
from simclr_core.errors import DatasetError
from simclr_core.model import FORMAT_VERSION


@dataclass(frozen=True)
class Unfinished:
    """A run directory with checkpoints, the newest of them after ``step`` steps."""

    folder: Path
    step: int


def run_folders(workspace: Path) -> Path:
    """Where each training has its run directory, named by its key."""
    return workspace / ".simclr" / "runs"


def run_key(config: Mapping[str, Any], data_digest: str, initial: str) -> str:
    """Name of the run directory: 16 hexadecimal digits that change with any parameter (the seed is one), any image, and
    ``initial``, the identity of the weights that the training begins with."""
    content = json.dumps([FORMAT_VERSION, config, data_digest, initial], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def find_unfinished(workspace: Path, config: PretrainConfig) -> Unfinished | None:
    """The pretraining that the stage would continue, with this ``config`` and the data and start as they are now."""
    if not any(run_folders(workspace).glob("*/")):
        return None
    try:
        digest, initial = read_card(workspace / "data" / "prepared").digest, identity(workspace / "models" / "initial")
    except (DatasetError, ArtifactError):
        return None
    folder = run_folders(workspace) / run_key(config.model_dump(), digest, initial)
    step = max((int(path.name.removeprefix("step-")) for path in folder.rglob("step-*") if not path.suffix), default=0)
    return Unfinished(folder, step) if step else None
