"""Damage anywhere in a checkpoint is found before anything of it is used."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from deploy.artifact import verify
from deploy.errors import CorruptArtifactError
from simclr_core.errors import CheckpointError
from simclr_core.model.encoder import build_encoder
from simclr_core.model.model_directory import fill
from simclr_core.pretraining import checkpoint
from simclr_core.pretraining.checkpoint import TrainingState
from simclr_core.pretraining.pretrain import build_optimizer
from tests.repetitions import repeated, repetitions

FILES = ["MANIFEST.sha256", "network.safetensors", "optimizer.safetensors", "training.json"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a small network after a step."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 4))
    optimizer = build_optimizer("sgd", network, 0.9, 1e-4)
    network(torch.randn(4, 3, 4, 4)).square().sum().backward()
    optimizer.step()
    run = tmp_path_factory.mktemp("runs") / "run"
    tensors = checkpoint.optimizer_tensors(optimizer)
    checkpoint.save_training(run, TrainingState(1, network.state_dict(), tensors, [{"epoch": 1}], [(1.5, 0.25)]))
    (directory,) = run.iterdir()
    assert sorted(path.name for path in directory.iterdir()) == FILES
    return directory


def flips(directory: Path, count: int) -> Iterator[tuple[Path, bytes]]:
    """Files, each byte of each as likely as any other, and their content with one bit flipped."""
    chance = random.Random(0)
    contents = {directory / name: (directory / name).read_bytes() for name in FILES}
    weights = [len(content) for content in contents.values()]
    for path in chance.choices(list(contents), weights, k=count):
        damaged = bytearray(contents[path])
        damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
        yield path, bytes(damaged)


def truncations(directory: Path, count: int) -> Iterator[tuple[Path, bytes]]:
    chance = random.Random(1)
    for _ in range(count):
        path = directory / chance.choice(FILES)
        content = path.read_bytes()
        yield path, content[: chance.randrange(len(content))]


def undetected(directory: Path, damages: Iterator[tuple[Path, bytes]]) -> list[str]:
    """The files whose damage was not found."""
    missed = []
    for path, damaged in damages:
        whole = path.read_bytes()
        path.write_bytes(damaged)
        try:
            verify(directory)
            missed.append(path.name)
        except CorruptArtifactError:
            pass
        path.write_bytes(whole)
    verify(directory)  # the harness has put everything back
    return missed


def test_flips_and_truncations_are_found(saved: Path) -> None:
    assert undetected(saved, flips(saved, 150)) == []
    assert undetected(saved, truncations(saved, 50)) == []


@repeated
@pytest.mark.slow
def test_thousands_of_flips_and_truncations_are_found(saved: Path) -> None:
    assert undetected(saved, flips(saved, repetitions(1_000, all=10_000))) == []
    assert undetected(saved, truncations(saved, repetitions(200, all=2_000))) == []


def test_every_flip_of_a_line_feed_is_found(saved: Path) -> None:
    """One bit turns it into what Python's splitlines() takes for the end of a line, too."""
    path = saved / "MANIFEST.sha256"
    content = path.read_bytes()
    ends = [position for position, byte in enumerate(content) if byte == ord("\n")]
    assert len(ends) == 3
    damages = (
        (path, content[:end] + bytes([content[end] ^ 1 << bit]) + content[end + 1 :])
        for end in ends
        for bit in range(8)
    )
    assert undetected(saved, damages) == []
    assert undetected(saved, iter([(path, content[:-1])])) == []


def test_a_checkpoint_of_another_run_is_refused(saved: Path, tmp_path: Path) -> None:
    other = tmp_path / "0123456789abcdef" / saved.name
    other.parent.mkdir()
    saved.rename(other)
    try:
        with pytest.raises(CheckpointError, match="saved by run run, whose configuration, data or start differs"):
            checkpoint.load_training(other)
    finally:
        other.rename(saved)


def test_a_checkpoint_of_another_architecture_is_refused(saved: Path) -> None:
    state = checkpoint.load_training(saved)
    encoder = build_encoder("resnet10", 0.125, "compact")
    with pytest.raises(CheckpointError, match=r"the weights do not fit the network of params\.yaml: Missing key"):
        fill(encoder, state.network, saved, "the network of params.yaml")
    with pytest.raises(CheckpointError, match=r"momentum_buffer of parameter 0, of shape \[4, 3, 3, 3\], fits none"):
        checkpoint.restore_optimizer(build_optimizer("sgd", encoder, 0.9, 1e-4), state.optimizer)
    with pytest.raises(CheckpointError, match="of the 1 parameters of this network"):
        checkpoint.restore_optimizer(build_optimizer("sgd", nn.Linear(2, 2, bias=False), 0.9, 0.0), state.optimizer)
