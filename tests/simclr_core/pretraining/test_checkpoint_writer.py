"""Saving in the background: what is on the disk is the state at the call, errors arrive, and leaving waits."""

import threading
from pathlib import Path

import pytest
import torch

from simclr_core.errors import CheckpointError
from simclr_core.pretraining import checkpoint, checkpoint_writer
from simclr_core.pretraining.checkpoint import TrainingState, newest_training
from simclr_core.pretraining.checkpoint_writer import CheckpointWriter
from tests.simclr_core.fake_cuda import count, fake_cuda


def state(step: int) -> TrainingState:
    network = {"weight": torch.full((4, 3, 2, 2), float(step)).to(memory_format=torch.channels_last)}
    return TrainingState(
        step, network, {"0.momentum_buffer": torch.full((3,), float(step))}, [{"epoch": 1}], [(1.0, 2.0)]
    )


def saved(run: Path) -> TrainingState:
    newest = newest_training(run)
    assert newest is not None
    return checkpoint.load_training(newest)


class SlowDisk:
    """Stands in for ``save_training``: writes nothing before it is reported to continue."""

    def __init__(self) -> None:
        self.begun, self.resume = threading.Event(), threading.Event()
        self.at_once = self.most_at_once = 0

    def __call__(self, run: Path, state: TrainingState) -> None:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.begun.set()
        assert self.resume.wait(60)
        checkpoint.save_training(run, state)
        self.at_once -= 1


def test_what_changes_after_the_call_is_not_in_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = SlowDisk()
    monkeypatch.setattr(checkpoint_writer, "save_training", disk)
    live = state(1)
    with CheckpointWriter(tmp_path / "run") as writer:
        writer.save(live)
        assert disk.begun.wait(60)  # the call has returned, and nothing is written
        assert newest_training(tmp_path / "run") is None
        live.network["weight"].zero_()
        live.optimizer["0.momentum_buffer"].zero_()
        live.history.append({"epoch": 2})
        live.unfinished.clear()
        disk.resume.set()
    found, expected = saved(tmp_path / "run"), state(1)
    assert torch.equal(found.network["weight"], expected.network["weight"])
    assert torch.equal(found.optimizer["0.momentum_buffer"], expected.optimizer["0.momentum_buffer"])
    assert (found.history, found.unfinished) == (expected.history, expected.unfinished)


def test_one_write_at_a_time_and_every_state_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = SlowDisk()
    monkeypatch.setattr(checkpoint_writer, "save_training", disk)
    with CheckpointWriter(tmp_path / "run") as writer:
        writer.save(state(1))
        assert disk.begun.wait(60)
        second = threading.Thread(target=writer.save, args=[state(2)])
        second.start()
        disk.resume.set()
        second.join(60)
        writer.save(state(3))
    assert disk.most_at_once == 1
    assert [path.name for path in checkpoint._checkpoints(tmp_path / "run")] == ["step-00000003", "step-00000002"]
    assert torch.equal(saved(tmp_path / "run").network["weight"], state(3).network["weight"])


def test_the_copy_needs_no_new_memory(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path / "run") as writer:
        first = writer._copied(state(1))
        again = writer._copied(state(2))
        assert again.network["weight"].data_ptr() == first.network["weight"].data_ptr()
        assert again.network["weight"].is_contiguous(memory_format=torch.channels_last)
        grown = writer._copied(TrainingState(3, {"weight": torch.ones(5)}, {}, [], []))
        assert torch.equal(grown.network["weight"], torch.ones(5))


def test_on_a_gpu_the_thread_that_writes_waits_for_the_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And for nothing that was queued after them; the training thread waits for nothing."""
    order: list[str] = []

    class Mark:
        def synchronize(self) -> None:
            order.append(f"waited in {threading.current_thread().name}")

    def mark_stream() -> Mark:
        order.append("marked")
        return Mark()

    def save_training(run: Path, state: TrainingState) -> None:
        order.append(f"step {state.step}")

    monkeypatch.setattr(checkpoint_writer, "mark_stream", mark_stream)
    monkeypatch.setattr(checkpoint_writer, "save_training", save_training)
    with fake_cuda() as gpu, CheckpointWriter(tmp_path / "run") as writer:
        weights = {"weight": torch.ones(4, device=gpu)}
        for step in (1, 2):
            counts = count(lambda step=step: writer.save(TrainingState(step, weights, weights, [], [])))
            assert (counts.waits, counts.read_backs, counts.blocking_copies) == (0, 0, 0), counts.names
    assert order == ["marked", "waited in checkpoint_0", "step 1", "marked", "waited in checkpoint_0", "step 2"]


def test_a_full_disk_is_reported_by_the_next_save_and_earlier_checkpoints_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with CheckpointWriter(tmp_path / "run") as writer:
        writer.save(state(1))
        writer.wait()
        monkeypatch.setenv("SIMCLR_FAILPOINT", "checkpoint.publish:enospc")
        writer.save(state(2))
        with pytest.raises(CheckpointError, match=r"step 2 cannot be saved .No space left"):
            writer.save(state(3))
        writer.wait()  # reported once
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["step-00000001"]


def test_a_failure_of_the_last_save_is_reported_on_leaving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMCLR_FAILPOINT", "checkpoint.network:enospc")
    with pytest.raises(CheckpointError, match="step 1 cannot be saved"), CheckpointWriter(tmp_path / "run") as writer:
        writer.save(state(1))


def test_a_failure_of_the_last_save_does_not_hide_the_error_that_ended_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SIMCLR_FAILPOINT", "checkpoint.publish:enospc")

    def train() -> None:
        with CheckpointWriter(tmp_path / "run") as writer:
            writer.save(state(1))
            raise KeyError("the reason")

    with pytest.raises(KeyError, match="the reason"):
        train()
    assert "step 1 cannot be saved" in caplog.text


def test_a_disk_slower_than_the_training_is_mentioned_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(checkpoint_writer, "NOTICEABLE", -1.0)
    with CheckpointWriter(tmp_path / "run") as writer:
        for step in (1, 2, 3):
            writer.save(state(step))
    assert caplog.text.count("raise pretrain.checkpoint_every_steps") == 1
