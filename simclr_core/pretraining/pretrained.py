"""What pretraining leaves behind: ``models/pretrained``, and for people and gates its reports."""

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from torch import nn

from deploy.artifact import publish, write_atomically
from deploy.failpoint import failpoint
from deploy.images.preprocess import Preprocessing
from simclr_core import plots
from simclr_core.config import PretrainConfig
from simclr_core.data.dataset import evaluation_images
from simclr_core.data.shards import DatasetCard
from simclr_core.loss.objective import chance_loss
from simclr_core.model.encoder import Encoder
from simclr_core.model.model_directory import save_model
from simclr_core.monitoring.diagnostics import MEASURED, Record, is_collapsed
from simclr_core.monitoring.history import write_history
from simclr_core.pretraining.batches import Batches
from simclr_core.pretraining.initial import Start
from simclr_core.schedule import Schedule

SHEET_EPOCHS = 3  # of augmentations.png: two views in each


def publish_pretrained(
    workspace: Path,
    config: PretrainConfig,
    card: DatasetCard,
    preprocessing: Preprocessing,
    start: Start,
    schedule: Schedule,
    network: nn.Sequential,
    history: Sequence[Record],
    arithmetic: Mapping[str, object],
) -> None:
    """The model with its card, ``pretrain.json``, ``pretrain.csv`` and ``curves.png``: the same for the same run.

    ``arithmetic``: the precision and the like that the run settled on, and why not on what was asked for.
    """
    encoder, head = network
    assert isinstance(encoder, Encoder)
    queue_size = None if config.queue is None else config.queue.size
    metrics = {
        "init": str(start),
        "epochs": schedule.epochs,
        "steps": schedule.steps,
        "loss_first": history[0]["loss"],
        "loss_last": history[-1]["loss"],
        "loss_chance": round(chance_loss(config.loss, config.batch_size, queue_size), 6),
        "finite": True,  # or the run would have ended
        "collapsed": is_collapsed(history[-1]),
        "learning_rate_scale": history[-1]["learning_rate_scale"],
        **{name: history[-1][name] for name in MEASURED},
        "parameters": sum(parameter.numel() for parameter in encoder.parameters()),
        **arithmetic,
    }
    model = {
        "kind": "pretrained",
        "encoder": config.encoder.model_dump(),
        "feature_dim": encoder.feature_dim,
        "preprocessing": preprocessing.to_json(),
        "mean": card.mean,
        "std": card.std,
        "classes": None,
        "init": str(start),
        "config": config.model_dump(),
        "data_digest": card.digest,
        "producer": f"simclr-pipeline {version('simclr-pipeline')}",
        "metrics": metrics,
    }
    with publish(workspace / "models" / "pretrained", replace=True) as directory:
        save_model(directory, encoder, head.state_dict(), model)
    failpoint("pretrain.published")
    write_history(workspace / "reports", history)
    write_atomically(workspace / "reports" / "pretrain.json", json.dumps(metrics, indent=2) + "\n")


def draw_views(path: Path, batches: Batches, preprocessing: Preprocessing, images: int = 8, title: str = "") -> None:
    """A row per image: as evaluation sees it, then its views in each of the first epochs."""
    positions = batches.positions(0)[:images]
    originals = evaluation_images(batches.images, positions, preprocessing)
    views = batches.pictures(len(positions), SHEET_EPOCHS)
    rows = [[original, *row] for original, row in zip(originals, views, strict=True)]
    plots.image_grid(path, rows, [batches.images.key(position)[:8] for position in positions], title=title)
