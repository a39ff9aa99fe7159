"""Model directories: what comes back is what was saved, and nothing damaged is used."""

from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from deploy.artifact import publish
from deploy.errors import CorruptArtifactError, MissingArtifactError
from simclr_core.errors import CheckpointError
from simclr_core.model import model_directory
from simclr_core.model.encoder import build_encoder

CARD = {
    "kind": "pretrained",
    "encoder": {"name": "resnet10", "width": 0.125, "stem": "compact"},
    "feature_dim": 64,
    "preprocessing": {"size": 16, "resize": 18},
    "mean": [0.5, 0.5, 0.5],
    "std": [0.2, 0.2, 0.2],
    "classes": None,
}


def save_model(target: Path, seed: int = 0, **changes: object) -> nn.Module:
    torch.manual_seed(seed)
    encoder = build_encoder("resnet10", 0.125, "compact").to(memory_format=torch.channels_last)
    head = nn.Linear(64, 4)
    with publish(target) as directory:
        model_directory.save_model(directory, encoder, head.state_dict(), {**CARD, **changes})
    return nn.Sequential(encoder, head).eval()


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_saved_model_is_loaded_completely(tmp_path: Path) -> None:
    network = save_model(tmp_path / "model")
    model = model_directory.load_model(tmp_path / "model")
    assert model.card == {"format_version": 1, **CARD}
    assert (model.preprocessing.size, model.preprocessing.resize) == (16, 18)
    images = torch.randn(2, 3, 16, 16)
    assert not model.encoder.training
    loaded = nn.functional.linear(model.encoder(images), model.head["weight"], model.head["bias"])
    torch.testing.assert_close(loaded, network(images))


def test_equal_models_have_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_model(tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_the_weights_file_has_torchvisions_names(tmp_path: Path) -> None:
    save_model(tmp_path / "model")
    names = safetensors.torch.load_file(tmp_path / "model/encoder.safetensors").keys()
    assert {"conv1.weight", "bn1.running_mean", "layer4.0.conv2.weight"} <= names


@pytest.mark.parametrize("name", ["encoder.safetensors", "head.safetensors", "model.json", "MANIFEST.sha256"])
def test_a_flipped_bit_is_found_before_anything_is_parsed(tmp_path: Path, name: str) -> None:
    save_model(tmp_path / "model")
    flip_a_bit(tmp_path / "model" / name)
    with pytest.raises(CorruptArtifactError):
        model_directory.load_model(tmp_path / "model")


def test_a_missing_model_and_one_of_another_format_or_shape(tmp_path: Path) -> None:
    with pytest.raises(MissingArtifactError):
        model_directory.load_model(tmp_path / "model")
    save_model(tmp_path / "future", format_version=2)
    with pytest.raises(CheckpointError, match="format version 2, this release reads 1"):
        model_directory.load_model(tmp_path / "future")
    save_model(tmp_path / "wider", encoder={"name": "resnet10", "width": 0.25, "stem": "compact"})
    with pytest.raises(CheckpointError, match=r"do not fit .*size mismatch for conv1.weight"):
        model_directory.load_model(tmp_path / "wider")


def test_weights_only_load_into_the_same_architecture(tmp_path: Path) -> None:
    saved = save_model(tmp_path / "model")
    encoder, head = build_encoder("resnet10", 0.125, "compact"), nn.Linear(64, 4)
    model_directory.load_weights(tmp_path / "model", encoder, head)
    found = nn.Sequential(encoder, head).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in saved.state_dict().items())
    with pytest.raises(
        CheckpointError, match=r"model: the weights do not fit the encoder of params\.yaml: size mismatch"
    ):
        model_directory.load_weights(tmp_path / "model", build_encoder("resnet10", 0.25, "compact"), head)
    with pytest.raises(CheckpointError, match=r"do not fit the projection head of params\.yaml: size mismatch"):
        model_directory.load_weights(tmp_path / "model", encoder, nn.Linear(64, 5))


def test_weights_for_rgb_are_spread_over_the_channels_of_the_images(tmp_path: Path) -> None:
    rgb, head = build_encoder("resnet10", 0.125, "compact").eval(), nn.Linear(64, 4)
    with publish(tmp_path / "model") as work:
        model_directory.save_model(work, rgb, head.state_dict(), CARD)
    five = build_encoder("resnet10", 0.125, "compact", channels=5).eval()
    model_directory.load_weights(tmp_path / "model", five, head)
    gray = torch.rand(2, 1, 16, 16)
    with torch.no_grad():
        expected, found = rgb(gray.expand(-1, 3, -1, -1)), five(gray.expand(-1, 5, -1, -1))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_a_model_of_channels_comes_back_with_them(tmp_path: Path) -> None:
    encoder = build_encoder("resnet10", 0.125, "compact", channels=5)
    card = {**CARD, "preprocessing": {"size": 16, "resize": 16, "channels": 5}, "mean": [0.5] * 5, "std": [0.2] * 5}
    with publish(tmp_path / "model") as work:
        model_directory.save_model(work, encoder, {}, card)
    model = model_directory.load_model(tmp_path / "model")
    assert model.preprocessing.channels == 5
    assert torch.equal(model.encoder.backbone.conv1.weight, encoder.backbone.conv1.weight)  # type: ignore[union-attr, arg-type]
