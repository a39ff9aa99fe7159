"""Checkpoints: what comes back is what was saved, nothing damaged is used, and one process trains at a time."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from simclr_core.errors import CheckpointError, RunLockedError
from simclr_core.lars import LARS, parameter_groups
from simclr_core.pretraining import checkpoint
from simclr_core.pretraining.checkpoint import TrainingState


def state(step: int, value: float = 0.0) -> TrainingState:
    tensors = {"weight": torch.full((2, 3), value), "count": torch.tensor(step)}
    return TrainingState(
        step, tensors, {"0.momentum_buffer": torch.ones(3)}, [{"epoch": 1, "loss": 0.1 + value}], [(value, 2.0)]
    )


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_saved_training_state_is_loaded_completely(tmp_path: Path) -> None:
    saved = state(7, value=1 / 3)
    checkpoint.save_training(tmp_path / "run", saved)
    newest = checkpoint.newest_training(tmp_path / "run")
    assert newest == tmp_path / "run/step-00000007"
    loaded = checkpoint.load_training(newest)
    assert (loaded.step, loaded.history, loaded.unfinished) == (saved.step, saved.history, saved.unfinished)
    for mine, theirs in ((loaded.network, saved.network), (loaded.optimizer, saved.optimizer)):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_nothing_in_a_checkpoint_is_pickled(tmp_path: Path) -> None:
    checkpoint.save_training(tmp_path / "run", state(1))
    names = {path.name for path in (tmp_path / "run/step-00000001").iterdir()}
    assert names == {"network.safetensors", "optimizer.safetensors", "training.json", "MANIFEST.sha256"}


def test_two_generations_are_kept(tmp_path: Path) -> None:
    for step in (9, 10, 11):
        checkpoint.save_training(tmp_path / "run", state(step))
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["step-00000010", "step-00000011"]


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "no manifest"])
def test_a_damaged_newest_falls_back_to_the_one_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    run = tmp_path / "run"
    for step in (1, 2):
        checkpoint.save_training(run, state(step))
    victim = run / "step-00000002" / "network.safetensors"
    if damage == "flip":
        flip_a_bit(victim)
    elif damage == "truncate":
        os.truncate(victim, victim.stat().st_size // 2)
    elif damage == "remove":
        victim.unlink()
    else:
        (victim.parent / "MANIFEST.sha256").unlink()
    newest = checkpoint.newest_training(run)
    assert newest == run / "step-00000001"
    assert "damaged checkpoint set aside, continuing from step-00000001" in caplog.text
    assert (run / "step-00000002.corrupt").is_dir()
    checkpoint.save_training(run, state(2))  # and the step can be reached again
    assert [path.name for path in checkpoint._checkpoints(run)] == ["step-00000002", "step-00000001"]


def test_when_none_verifies_training_does_not_start_from_nothing(tmp_path: Path) -> None:
    for step in (1, 2):
        checkpoint.save_training(tmp_path / "run", state(step))
        flip_a_bit(tmp_path / f"run/step-0000000{step}/training.json")
    for _ in range(2):  # and asking again does not help
        with pytest.raises(CheckpointError, match="no checkpoint verifies"):
            checkpoint.newest_training(tmp_path / "run")
    assert checkpoint.newest_training(tmp_path / "another") is None


def test_a_full_disk_keeps_the_earlier_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    for step in (1, 2):
        checkpoint.save_training(run, state(step))
    monkeypatch.setenv("SIMCLR_FAILPOINT", "checkpoint.publish:enospc")
    with pytest.raises(CheckpointError, match=r"step 3 cannot be saved .No space left"):
        checkpoint.save_training(run, state(3))
    assert sorted(path.name for path in run.iterdir()) == ["step-00000001", "step-00000002"]
    assert checkpoint.newest_training(run) == run / "step-00000002"


def test_a_disk_that_fills_while_weights_are_written_is_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """safetensors has its own error, with the system's number in its words."""

    def full(*_: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(CheckpointError, match=r"step 1 cannot be saved .No space left on device."):
        checkpoint.save_training(tmp_path / "run", state(1))
    assert list((tmp_path / "run").iterdir()) == []


HOLD = """
import sys, time
from pathlib import Path
from simclr_core.pretraining.checkpoint import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.seconds
def test_the_second_trainer_learns_which_process_holds_the_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-c", HOLD, str(run)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(RunLockedError, match=f"process {holder.pid} on .* is training"), checkpoint.locked(run):
            pass
        holder.kill()  # SIGKILL: the kernel frees the lock
        holder.wait()
    with (
        checkpoint.locked(run),
        pytest.raises(RunLockedError, match=f"process {os.getpid()} on"),
        checkpoint.locked(run),
    ):
        pass
    with checkpoint.locked(run):
        pass


def train_a_little(network: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for group in optimizer.param_groups:
            group["lr"] = 0.1 / (step + 1)
        optimizer.zero_grad()
        network(torch.randn(4, 3, 8, 8, generator=generator)).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("kind", ["lars", "sgd", "sgd without momentum", "adamw"])
def test_an_optimizer_continues_bit_for_bit(kind: str, tmp_path: Path) -> None:
    def build() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(288, 2))
        network.to(memory_format=torch.channels_last)
        groups = parameter_groups([network], 1e-2)
        optimizers = {
            "lars": lambda: LARS(groups, lr=0.1),
            "sgd": lambda: torch.optim.SGD(groups, lr=0.1, momentum=0.9),
            "sgd without momentum": lambda: torch.optim.SGD(groups, lr=0.1),
            "adamw": lambda: torch.optim.AdamW(groups, lr=0.1),
        }
        return network, optimizers[kind]()

    whole, optimizer = build()
    train_a_little(whole, optimizer, range(6))

    first, optimizer = build()
    train_a_little(first, optimizer, range(3))
    tensors = checkpoint.optimizer_tensors(optimizer)
    checkpoint.save_training(tmp_path, TrainingState(3, first.state_dict(), tensors, [], []))

    second, optimizer = build()
    newest = checkpoint.newest_training(tmp_path)
    assert newest is not None
    loaded = checkpoint.load_training(newest)
    second.load_state_dict(loaded.network)
    checkpoint.restore_optimizer(optimizer, loaded.optimizer)
    train_a_little(second, optimizer, range(3, 6))
    for name, tensor in whole.state_dict().items():
        np.testing.assert_array_equal(second.state_dict()[name].numpy(), tensor.numpy(), err_msg=name)
