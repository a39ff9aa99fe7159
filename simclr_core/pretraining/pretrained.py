"""What pretraining leaves behind: ``models/pretrained``, and for people and gates its reports."""

from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from torch import nn

from deploy.artifact import publish
from deploy.failpoint import failpoint
from deploy.images.preprocess import Preprocessing
from deploy.images.preview import preview
from simclr_core import plots, reports
from simclr_core.config import PretrainConfig
from simclr_core.data.dataset import evaluation_images
from simclr_core.data.shards import DatasetCard
from simclr_core.loss.objective import chance_loss
from simclr_core.model.encoder import Encoder
from simclr_core.model.model_directory import save_model
from simclr_core.monitoring.diagnostics import Record, is_collapsed
from simclr_core.monitoring.history import write_history
from simclr_core.pretraining.batches import Batches
from simclr_core.pretraining.choices import Choice
from simclr_core.pretraining.initial import Start
from simclr_core.reports import PretrainReport
from simclr_core.schedule import Schedule

SHEET_EPOCHS = 3  # of augmentations.png: two views in each


class Arithmetic(NamedTuple):
    """How the numbers of a run are computed, where that is not only a matter of configuration."""

    precision: Choice
    execution: Choice
    processes: int = 1


def describe(
    config: PretrainConfig,
    start: Start,
    schedule: Schedule,
    encoder: nn.Module,
    history: Sequence[Record],
    kept: Record,
    arithmetic: Arithmetic,
) -> PretrainReport:
    """What came of a run, of which the epoch of the record ``kept`` is published, and what it settled on: the same for
    the same run."""
    queue_size, epochs = None if config.queue is None else config.queue.size, history[-1]["epoch"]
    return PretrainReport(
        init=str(start),
        epochs=epochs,
        steps=epochs * schedule.steps_per_epoch,
        kept_epoch=kept["epoch"],
        loss_first=history[0]["loss"],
        loss_last=history[-1]["loss"],
        loss_chance=round(chance_loss(config.loss, config.batch_size, queue_size), 6),
        finite=True,  # or the run would have ended
        collapsed=is_collapsed(kept),
        learning_rate_scale=kept["learning_rate_scale"],
        knn_top1=kept["knn_top1"],
        probe_top1=kept["probe_top1"],
        effective_rank=kept["effective_rank"],
        feature_std=kept["feature_std"],
        effective_rank_z=kept["effective_rank_z"],
        feature_std_z=kept["feature_std_z"],
        alignment=kept["alignment"],
        uniformity=kept["uniformity"],
        parameters=sum(parameter.numel() for parameter in encoder.parameters()),
        precision=arithmetic.precision.value,
        precision_fallback=arithmetic.precision.reason,
        compiled=arithmetic.execution.value == "compiled",
        compile_fallback=arithmetic.execution.reason,
        processes=arithmetic.processes,
    )


def served_preprocessing(config: PretrainConfig, card: DatasetCard) -> Preprocessing:
    """How evaluation and serving make of a file what training has seen of it."""
    side = config.resize or config.image_size
    return Preprocessing(config.image_size, side, card.background, card.letterbox, card.channels)


def publish_pretrained(
    workspace: Path,
    config: PretrainConfig,
    card: DatasetCard,
    start: Start,
    network: nn.Sequential,
    history: Sequence[Record],
    report: PretrainReport,
) -> None:
    """The model with its card, ``pretrain.json``, ``pretrain.csv`` and ``curves.png``: the same for the same run."""
    encoder, head = network
    assert isinstance(encoder, Encoder)
    model = {
        "kind": "pretrained",
        "encoder": config.encoder.model_dump(),
        "feature_dim": encoder.feature_dim,
        "preprocessing": served_preprocessing(config, card).to_json(),
        "mean": card.mean,
        "std": card.std,
        "classes": None,
        "init": report.init,
        **({"normalized_by": "weights"} if start.statistics else {}),
        "config": config.model_dump(),
        "data_digest": card.digest,
        "producer": f"simclr-pipeline {version('simclr-pipeline')}",
        "metrics": asdict(report),
    }
    with publish(workspace / "models" / "pretrained", replace=True) as directory:
        save_model(directory, encoder, head.state_dict(), model)
    failpoint("pretrain.published")
    write_history(workspace / "reports", history)
    reports.write(workspace, report)


def draw_views(path: Path, batches: Batches, preprocessing: Preprocessing, images: int = 8, title: str = "") -> None:
    """A row per image: as evaluation sees it, then its views in each of the first epochs."""
    positions = batches.positions(0)[:images]
    originals = evaluation_images(batches.images, positions, preprocessing)
    views = batches.pictures(len(positions), SHEET_EPOCHS)
    rows = [[original, *row] for original, row in zip(preview(originals), views, strict=True)]
    said = f"Left: an image; then its views in {SHEET_EPOCHS} epochs. A person should still see what it shows. {title}"
    plots.image_grid(path, rows, [batches.images.key(position)[:8] for position in positions], title=said.strip())
