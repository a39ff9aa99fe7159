"""A pretraining that was interrupted: which one it is, and how far it came. Loads no torch.

DVC removes what a stage has published if it is killed before it has recorded that. Until then, the checkpoints of a
training that has ended are set aside, as ``<key>.published``.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.artifact import identity
from deploy.errors import ArtifactError
from deploy.failpoint import failpoint
from simclr_core.config import PretrainConfig
from simclr_core.data.shards import read_card
from simclr_core.errors import DatasetError
from simclr_core.model import FORMAT_VERSION

RECORDER = "SIMCLR_STAGE_RUN"  # of the environment: what runs this stage calls ``remove_recorded`` after it
PUBLISHED = ".published"
DEVICES = ("cpu", "cuda")  # on which views may differ
LATER = {  # parameters of later versions, named by the keys that lead to them, with the values that change nothing
    "positives": "group",
    "deterministic": True,
    "tf32": False,
    "monitor_every": 1,
    "clip_gradient_norm": None,
    "average_decay": None,
    "order": "images",
    "decode": "cpu",
    "augmentation.interpolation": "bilinear",
    "augmentation.second_blur": None,
    "augmentation.second_solarize": None,
    "augmentation.extra_crop_size": None,
    "early_stopping": {"measure": "knn_top1", "patience": None, "keep": "last"},
    "initialization": {
        "scheme": "torch",
        "zero_last_gamma": False,
        "without_last_beta": False,
        "frozen_first_layer": False,
    },
}
_OTHER = object()  # equal to no value


@dataclass(frozen=True)
class Unfinished:
    """A run directory with checkpoints, the newest of them after ``step`` steps."""

    folder: Path
    step: int


def run_folders(workspace: Path) -> Path:
    """Where each training has its run directory, named by its key."""
    return workspace / ".simclr" / "runs"


def run_key(config: Mapping[str, Any], data_digest: str, initial: str, device: str = DEVICES[0]) -> str:
    """Name of the run directory: 16 hexadecimal digits that change with any parameter (the seed is one), any image, and
    ``initial``, the identity of the weights that the training begins with.

    Parameters that came later are left out where they change nothing, so that an earlier version's run is continued;
    positives by group, since the digest has the groups. The type of ``device`` counts where a GPU computes other views:
    fused, a CPU rounds to whole levels.
    """
    named = _without_later(config)
    if device != DEVICES[0] and config["augmentation"]["mode"] == "fused":
        named["device"] = device
    content = json.dumps([FORMAT_VERSION, named, data_digest, initial], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _without_later(config: Mapping[str, Any], parents: str = "") -> dict[str, Any]:
    kept = {key: value for key, value in config.items() if LATER.get(parents + key, _OTHER) != value}
    return {
        key: _without_later(value, f"{parents}{key}.") if isinstance(value, Mapping) else value
        for key, value in kept.items()
    }


def find_unfinished(workspace: Path, config: PretrainConfig) -> Unfinished | None:
    """The pretraining that the stage would continue, with this ``config`` and the data and start as they are now."""
    if not any(run_folders(workspace).glob("*/")):
        return None
    try:
        digest, initial = read_card(workspace / "data" / "prepared").digest, identity(workspace / "models" / "initial")
    except (DatasetError, ArtifactError):
        return None
    keys = dict.fromkeys(run_key(config.model_dump(), digest, initial, device) for device in DEVICES)
    found = [Unfinished(folder, _newest(folder)) for folder in (run_folders(workspace) / key for key in keys)]
    furthest = max(found, key=lambda one: one.step)
    return furthest if furthest.step else None


def _newest(folder: Path) -> int:
    kept = (path for one in (folder, folder.with_suffix(PUBLISHED)) for path in one.rglob("step-*") if not path.suffix)
    return max((int(path.name.removeprefix("step-")) for path in kept), default=0)


def end_training(folder: Path) -> None:
    """The model of a training is published: remove its checkpoints, or set them aside where that has to be recorded."""
    if RECORDER not in os.environ:
        return _remove(folder)
    published = folder.with_suffix(PUBLISHED)
    if published.exists():
        _remove(published)
    folder.rename(published)
    return failpoint("pretrain.set_aside")


def take_back(folder: Path) -> None:
    """Continue from the checkpoints that were set aside: the model was not recorded, or else nothing would train."""
    published = folder.with_suffix(PUBLISHED)
    if published.exists() and not folder.exists():
        published.rename(folder)


def remove_recorded(workspace: Path) -> None:
    """The results of pretraining are recorded: remove the checkpoints that were set aside until then."""
    for folder in run_folders(workspace).glob(f"*{PUBLISHED}"):
        _remove(folder)


def _remove(folder: Path) -> None:
    """A kill on the way leaves all of it or none."""
    finished = folder.with_suffix(".finished")
    shutil.rmtree(finished, ignore_errors=True)
    folder.rename(finished)
    failpoint("checkpoint.remove")
    shutil.rmtree(finished)
