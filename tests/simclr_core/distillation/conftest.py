"""A workspace with a network that was fine-tuned on a tenth of the labels, and ways to change what is distilled."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from simclr_core.evaluation import finetune
from simclr_core.pretraining import pretrain
from tests.conftest import write_prepared
from tests.processes.once import make_once

QUICK = {
    "teacher": "0.1",
    "epochs": 2,
    "batch_size": 16,
    "optimizer": "sgd",
    "learning_rate": 0.1,
    "warmup_epochs": 0,
    "crop_scale": [0.8, 1.0],
    "checkpoint_every_steps": 4,
}


@pytest.fixture
def tuned(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, pictures_by_digest: None) -> Path:
    """A copy of one that is made once."""

    def make(folder: Path) -> None:
        workspace = write_prepared(folder)
        pretrain.run(workspace)
        change(workspace, "finetune", seeds=[0])
        finetune.run(workspace, "0.1")

    made = make_once(tmp_path_factory, "tuned", make)
    workspace = tmp_path / "workspace"
    shutil.copytree(made, workspace)
    change(workspace, "distill", **QUICK)
    return workspace


def change(workspace: Path, block: str, **values: Any) -> None:
    path = workspace / "params.yaml"
    params = yaml.safe_load(path.read_text(encoding="utf-8"))
    params[block] = params.get(block, {}) | values
    path.write_text(yaml.safe_dump(params), encoding="utf-8")
