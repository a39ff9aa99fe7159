"""A picture of what pretraining with the present ``params.yaml`` will see, before it costs hours.

    python -m simclr_core augment-sheet --out views.png --images 8

Writes nothing else: the same views are those of the first batch of the run, in its first epochs.
"""

import logging
from pathlib import Path

import torch

from simclr_core.augmentation.augmentations import Augmentation
from simclr_core.config import AugmentationConfig, PretrainConfig
from simclr_core.data.dataset import TrainingImages
from simclr_core.data.shards import ShardedImages, read_card
from simclr_core.errors import AugmentationError
from simclr_core.launch import Member
from simclr_core.params import read_block
from simclr_core.pretraining.batches import Batches, choose_groups, choose_order
from simclr_core.pretraining.pretrained import draw_views, served_preprocessing

MOST_IMAGES = 64

logger = logging.getLogger(__name__)


def run(workspace: Path, out: Path | None, images: int) -> None:
    """Draw ``images`` rows: an image, then all its views in each of the first epochs.

    Raises:
        SimclrError: the parameters or the data cannot be used, or ``images`` is out of range.
    """
    config = read_block(workspace / "params.yaml", "pretrain", PretrainConfig)
    prepared = workspace / "data" / "prepared"
    card, source = read_card(prepared), ShardedImages(prepared / "train")
    if not 2 <= images <= min(MOST_IMAGES, len(source)):
        most = min(MOST_IMAGES, len(source))
        raise AugmentationError(f"--images is {images}, with {len(source)} training images; give 2 to {most}")
    augmentation = Augmentation(config.image_size, **config.augmentation.model_dump())
    alone, groups = Member(0, 1, torch.device("cpu")), choose_groups(config, source)
    order = choose_order(config, source)
    batches = Batches(TrainingImages(source), card, augmentation, images, order, alone, groups)
    path = out or workspace / "reports" / "augment-sheet.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    draw_views(
        path, batches, served_preprocessing(config, card), images, settings(config.augmentation, config.image_size)
    )
    logger.info("%s: %d images, %d views of each in every epoch", path, images, augmentation.views)


def settings(augmentation: AugmentationConfig, size: int) -> str:
    """One line: the mode and every value."""
    values = augmentation.model_dump()
    preset = f"{augmentation.preset}, " if augmentation.preset else ""
    return f"{size} px, {preset}" + ", ".join(f"{name} {_shown(value)}" for name, value in values.items())


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return "-".join(map(_shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
