"""The sheet shows what pretraining sees, and says how it was made."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from simclr_core import plots
from simclr_core.__main__ import main
from simclr_core.augmentation.augmentations import Augmentation
from simclr_core.config import AugmentationConfig, PretrainConfig
from simclr_core.data.dataset import TrainingImages
from simclr_core.data.order import Order
from simclr_core.data.shards import ShardedImages, read_card
from simclr_core.launch import Member
from simclr_core.params import read_block
from simclr_core.pretraining.augment_sheet import settings
from simclr_core.pretraining.batches import Batches


def test_the_sheet_is_written_to_the_requested_file(prepared: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    out = prepared / "new" / "views.png"
    assert main(["--workspace", str(prepared), "augment-sheet", "--out", str(out), "--images", "3"]) == 0
    assert f"{out}: 3 images, 2 views of each" in caplog.text
    assert main(["--workspace", str(prepared), "augment-sheet"]) == 0
    with Image.open(out) as three, Image.open(prepared / "reports" / "augment-sheet.png") as eight:
        assert three.format == "PNG"
        assert eight.width == three.width
        assert eight.height > three.height


def test_the_sheet_shows_the_first_batch_of_the_run(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[list[list[np.ndarray]]] = []
    monkeypatch.setattr(plots, "image_grid", lambda path, rows, names, title: drawn.append(rows))
    assert main(["--workspace", str(prepared), "augment-sheet", "--images", "4"]) == 0
    config = read_block(prepared / "params.yaml", "pretrain", PretrainConfig)
    folder = prepared / "data" / "prepared"
    images, member = ShardedImages(folder / "train"), Member(0, 1, torch.device("cpu"))
    augmentation = Augmentation(config.image_size, **config.augmentation.model_dump())
    pixels, order = TrainingImages(images), Order(config.seed, len(images))
    batches = Batches(pixels, read_card(folder), augmentation, config.batch_size, order, member)
    for row, expected in zip(drawn[0], batches.pictures(4, epochs=3), strict=True):
        np.testing.assert_array_equal(row[1:], expected)


def test_extra_crops_are_on_the_sheet(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = yaml.safe_load((prepared / "params.yaml").read_text())
    params["pretrain"]["augmentation"] = {"preset": "medical", "extra_crops": 2}
    (prepared / "params.yaml").write_text(yaml.safe_dump(params))
    drawn: list[tuple[int, str]] = []
    monkeypatch.setattr(plots, "image_grid", lambda path, rows, names, title: drawn.append((len(rows[0]), title)))
    assert main(["--workspace", str(prepared), "augment-sheet"]) == 0
    ((columns, title),) = drawn
    assert columns == 1 + 3 * 4
    assert "medical" in title


def test_the_title_names_every_setting() -> None:
    title = settings(AugmentationConfig(preset="cifar", crop_scale=(0.2, 1.0)), 32)
    assert title.startswith("32 px, cifar, crop_scale 0.2-1, ")
    assert all(name in title for name in AugmentationConfig().model_dump())


@pytest.mark.parametrize("images", ["1", "65", "-3", "97"])
def test_too_many_or_too_few_images_are_refused(
    prepared: Path, images: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--workspace", str(prepared), "augment-sheet", "--images", images]) == 2
    assert f"--images is {images}, with 96 training images; give 2 to 64" in capsys.readouterr().err
    assert not (prepared / "reports" / "augment-sheet.png").exists()
