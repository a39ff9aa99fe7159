"""One training of the search: this product's pretraining, in a folder that has the training images alone.

The folder is removed when the result is recorded. Until then, the same call after a kill continues from the last
checkpoint, or judges what was trained.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, process_time

import yaml

from deploy.failpoint import failpoint
from deploy.session import available_cpus
from simclr_core.config import OnCollapseConfig, PretrainConfig
from simclr_core.data.shards import read_card
from simclr_core.errors import (
    AugmentationError,
    BatchSizeError,
    CollapseError,
    DeviceMemoryError,
    NonFiniteFeaturesError,
    NonFiniteLossError,
    NtXentError,
)
from simclr_core.launch import Member
from simclr_core.machine.devices import own_device
from simclr_core.model.model_directory import load_model
from simclr_core.monitoring.unit_costs import TrainingSet
from simclr_core.pretraining import initial, pretrain
from simclr_core.pretraining.rate import measure_rate
from simclr_core.tune.judge import Judge, Score

OWN_RESULTS = (
    AugmentationError,
    BatchSizeError,
    CollapseError,
    DeviceMemoryError,
    NonFiniteFeaturesError,
    NonFiniteLossError,
    NtXentError,
)
"""What settings can do wrong: a result, not the end of the search."""
MEASURED_SECONDS = 2.0
MONITORED = 256  # images; their numbers change no weight, and show a collapse


@dataclass(frozen=True)
class Trainings:
    """Trains settings on the images of a workspace, below ``folder``, and judges the encoders."""

    workspace: Path
    folder: Path
    judge: Judge

    def epoch_seconds(self, config: PretrainConfig) -> float:
        """Of one epoch with these settings on this machine, by a few steps. Without a GPU that is the CPU time, shared
        by all cores: a clock would also count what other programs do.

        Raises:
            SimclrError: one of OWN_RESULTS.
        """
        card, device = read_card(self.workspace / "data" / "prepared"), own_device()
        images = card.images["train"]
        data = TrainingSet(images, max(1, len(card.classes)), card.channels)
        began, began_cpu = perf_counter(), process_time()
        seconds = images / measure_rate(config, data, Member(0, 1, device), MEASURED_SECONDS)
        if device.type != "cpu":
            return seconds
        return seconds * (process_time() - began_cpu) / (perf_counter() - began) / available_cpus()

    def train(self, name: str, config: PretrainConfig) -> Score:
        """Train and judge; ``name`` is that of the run, the same one for the same settings.

        Raises:
            SimclrError: one of OWN_RESULTS, or whatever is wrong with the workspace.
            SystemExit: 128 + the signal that asked to stop; everything up to the last step is saved.
        """
        home = self.folder / name
        _set_out(self.workspace, home, config)
        trained = home / "models" / "pretrained"
        if not trained.exists():
            pretrain.run(home)
        failpoint("tune.trained")
        return self.judge.score(load_model(trained))

    def forget(self, name: str) -> None:
        """Remove what a training has left, once its result is recorded."""
        shutil.rmtree(self.folder / name, ignore_errors=True)


def shortened(config: PretrainConfig, epochs: int, seed: int) -> PretrainConfig:
    """The settings for a training of the search: the warm-up keeps its share, a look is taken at the end, and a
    collapse ends it."""
    warmup = config.warmup_epochs * epochs / config.epochs
    stopping = config.early_stopping.model_copy(update={"patience": None, "keep": "last"})
    return config.model_copy(
        update={
            "epochs": epochs,
            "seed": seed,
            "warmup_epochs": warmup,
            "early_stopping": stopping,
            "on_collapse": OnCollapseConfig(action="stop", patience=1),
            "monitor_every": epochs,
            "monitor_images": min(MONITORED, config.monitor_images),
        }
    )


def _set_out(workspace: Path, home: Path, config: PretrainConfig) -> None:
    """A folder as ``pretrain`` reads a workspace, without the test images."""
    prepared = home / "data" / "prepared"
    prepared.mkdir(parents=True, exist_ok=True)
    for part in ("dataset.json", "train"):
        if not (prepared / part).is_symlink():
            (prepared / part).symlink_to(workspace / "data" / "prepared" / part)
    blocks = {"pretrain": config.model_dump(mode="json"), "watch": {}}
    (home / "params.yaml").write_text(yaml.safe_dump(blocks), encoding="utf-8")
    start = home / "models" / "initial"
    if config.init == "scratch":
        if not start.exists():
            initial.run(home)
    elif not start.is_symlink():
        start.parent.mkdir(exist_ok=True)
        start.symlink_to(workspace / "models" / "initial")
