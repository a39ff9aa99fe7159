"""What TensorBoard shows of the embeddings, read back from its files as TensorBoard reads them."""

import io
from pathlib import Path

import numpy as np
import pytest
import yaml
from google.protobuf import text_format
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import IMAGES, EventAccumulator
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

from simclr_core.monitoring.diagnostics import Monitor
from simclr_core.monitoring.embedding_board import add_to_projector
from simclr_core.pretraining import pretrain


def configure(workspace: Path, embedding_map_every: int) -> None:
    path = workspace / "params.yaml"
    params = yaml.safe_load(path.read_text(encoding="utf-8"))
    params["pretrain"]["epochs"] = 3
    params["watch"] = {"embedding_map_every": embedding_map_every}
    path.write_text(yaml.safe_dump(params), encoding="utf-8")


def projector(folder: Path) -> ProjectorConfig:
    config = ProjectorConfig()
    text_format.Parse((folder / "projector_config.pbtxt").read_text(), config)
    return config


def board(workspace: Path) -> Path:
    (folder,) = (workspace / ".simclr" / "tensorboard").iterdir()
    return folder


@pytest.mark.seconds
def test_maps_every_second_epoch_and_at_the_end(prepared: Path) -> None:
    configure(prepared, 2)
    pretrain.run(prepared)
    folder = board(prepared)
    events = EventAccumulator(str(folder), size_guidance={IMAGES: 0}).Reload()
    images = events.Images("embedding map")
    assert [image.step for image in images] == [2, 3]
    with Image.open(io.BytesIO(images[0].encoded_image_string)) as shown:
        with Image.open(folder / "maps" / "epoch-0002.png") as saved:
            assert np.array_equal(np.asarray(shown), np.asarray(saved.convert("RGB")))
        assert len(np.unique(np.asarray(shown))) > 10
    embeddings = projector(folder).embeddings
    assert [embedding.tensor_name for embedding in embeddings] == ["h after epoch-0002", "h after epoch-0003"]
    for embedding in embeddings:
        assert np.loadtxt(folder / embedding.tensor_path, delimiter="\t").shape == (96, 64)
        labels = (folder / embedding.metadata_path).read_text().splitlines()
        assert len(labels) == 96
        assert set(labels) == {"circle", "cross", "square", "stripes", "no label"}


@pytest.mark.seconds
def test_by_default_there_is_no_map_and_the_projector_has_the_last_epoch(prepared: Path) -> None:
    configure(prepared, 0)
    pretrain.run(prepared)
    folder = board(prepared)
    assert EventAccumulator(str(folder)).Reload().Tags()["images"] == []
    assert [embedding.tensor_name for embedding in projector(folder).embeddings] == ["h after epoch-0003"]


@pytest.mark.parametrize("side", [16, 100])
def test_every_sprite_is_in_its_place(tmp_path: Path, side: int) -> None:
    images = np.arange(0, 250, 25, dtype=np.uint8)[:, None, None, None] * np.ones((1, side, side, 3), np.uint8)
    monitor = Monitor(images, np.arange(10) - 1, (0.5,) * 3, (0.5,) * 3, [f"a\tname\n{n}" for n in range(9)])
    features = np.random.default_rng(0).normal(size=(10, 4)).astype(np.float32)
    for epoch in (4, 8, 8):  # an interruption repeats an epoch
        add_to_projector(tmp_path, epoch, features, monitor)
    first, second = projector(tmp_path).embeddings
    assert np.allclose(np.loadtxt(tmp_path / first.tensor_path, delimiter="\t"), features, rtol=1e-5)
    assert (tmp_path / second.metadata_path).read_text().splitlines()[:2] == ["no label", "a name 0"]
    width, height = first.sprite.single_image_dim
    assert width == height == min(side, 32)
    sprite = np.asarray(Image.open(tmp_path / first.sprite.image_path))
    assert sprite.shape == (4 * width, 4 * width, 3)
    for number in range(10):
        row, column = divmod(number, 4)
        tile = sprite[row * width : (row + 1) * width, column * width : (column + 1) * width]
        assert (tile == 25 * number).all()
