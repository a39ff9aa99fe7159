"""The record of an epoch, and where it is shown."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from simclr_core.monitoring import throughput
from simclr_core.monitoring.diagnostics import Record
from simclr_core.monitoring.history import Progress, record, summary, write_history
from simclr_core.monitoring.throughput import Pace, Reading

MEASURED = {
    "knn_top1": 51.25,
    "probe_top1": 60.0,
    "effective_rank": 12.0,
    "feature_std": 0.5,
    "effective_rank_z": 5.0,
    "feature_std_z": 0.4,
    "alignment": 0.4,
    "uniformity": -2.0,
}
SHOWN = ("loss", "gradient_norm", "learning_rate", "images_per_second", "mfu", "memory_gigabytes")
SECONDS = {"data": 0.02, "augment": 0.5, "forward": 0.18, "backward": 0.3}


def epoch(number: int, **changes: float | None) -> Record:
    return record(number, [(3.0, 1.0), (2.0, 2.0)], 0.05, 0.5, {**MEASURED, **changes})


def test_a_record_holds_means_of_the_steps_and_what_was_measured() -> None:
    rates = {"learning_rate": 0.05, "learning_rate_scale": 0.5}
    assert epoch(3) == {"epoch": 3, "loss": 2.5, **rates, "gradient_norm": 1.5, **MEASURED}
    assert record(1, [(1 / 3, 1.0)], 1 / 7, 1.0, MEASURED)["loss"] == 0.333333


def test_the_summary_lists_the_available_numbers_and_raises_the_alarm() -> None:
    assert summary(epoch(1)) == "loss 2.5000, kNN 51.2 %, probe 60.0 %, effective rank 12.0"
    assert summary(epoch(1, knn_top1=None, probe_top1=None)) == "loss 2.5000, effective rank 12.0"
    for number in ("effective_rank", "feature_std", "effective_rank_z", "feature_std_z"):
        assert summary(epoch(1, **{number: 0.001})).endswith("COLLAPSED")


def test_the_history_as_a_table_and_as_curves(tmp_path: Path) -> None:
    write_history(tmp_path, [epoch(1, knn_top1=None), epoch(2)])
    first, second, third = (tmp_path / "pretrain.csv").read_text().splitlines()
    assert first.startswith("epoch,loss,learning_rate,learning_rate_scale,knn_top1,")
    assert second.startswith("1,2.5,0.05,0.5,,")
    assert third.startswith("2,2.5,0.05,0.5,51.25,")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_an_epoch_is_a_line_an_event_and_a_point_in_tensorboard(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIMCLR_EVENTS", str(tmp_path / "events"))
    with Progress(4, 400, tmp_path / "board", quiet=False) as progress:
        progress.start(0)
        for number in (1, 2, 3):
            progress.step(100)
            progress.epoch(epoch(number), SECONDS)
        assert progress.images_per_second == pytest.approx(300 / progress.seconds, rel=0.1)
    # Killed before the third epoch was saved: it is done again.
    with Progress(4, 400, tmp_path / "board", quiet=False) as progress:
        progress.start(200)
        progress.step(100)
        progress.epoch(epoch(3, knn_top1=None), SECONDS)
        assert progress.images_per_second == pytest.approx(100 / progress.seconds, rel=0.1)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines] == [f"epoch {n}/4: loss 2.5000" for n in (1, 2, 3, 3)]
    assert lines[2].endswith("; 100 images/s, 00:00 left; augment 50 %, backward 30 %, forward 18 %")
    events = [json.loads(line) for line in (tmp_path / "events").read_text().splitlines()]
    assert [(event["event"], event["epoch"], event["loss"]) for event in events] == [
        ("progress", number, 2.5) for number in (1, 2, 3, 3)
    ]
    assert (events[0]["images_per_second"], events[0]["time_data"], events[0]["time_augment"]) == (100.0, 0.02, 0.5)
    board = EventAccumulator(str(tmp_path / "board")).Reload()
    assert [point.step for point in board.Scalars("training/loss")] == [1, 2, 3]
    assert [point.step for point in board.Scalars("features/knn_top1")] == [1, 2]
    assert [point.value for point in board.Scalars("time/images_per_second")] == [100, 100, 100]
    assert "time/augment" in board.Tags()["scalars"]


def test_a_step_is_a_line_and_a_point_apart_from_the_epochs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(throughput, "peak_bytes", lambda _: 61_250_000_000)
    pace = Pace(torch.device("cpu"), 100, every=2, flops=5e9, peak=1e12)
    sent: list[tuple[object, ...]] = []
    tracker = SimpleNamespace(log=lambda *given: sent.append(given), close=lambda _: None, lost=0)
    with Progress(4, 1200, tmp_path / "board", False, [tracker], 0, pace) as progress:  # type: ignore[list-item]
        progress.start(0)
        progress.step(100)  # nothing was read yet
        for number in range(3):
            progress.step(100, Reading(number, 2.0 - number, 0.5), 0.1)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(";")[0] for line in lines] == ["step 1/12: loss 2.0000", "step 3/12: loss 0.0000"]
    assert lines[0].endswith("61.2 GB")
    board = EventAccumulator(str(tmp_path / "board" / "steps")).Reload()
    assert [(one.step, one.value) for one in board.Scalars("step/loss")] == [(1, 2.0), (3, 0.0)]
    rate, share = board.Scalars("step/images_per_second")[0].value, board.Scalars("step/mfu")[0].value
    assert share == pytest.approx(5e-3 * rate, rel=1e-3)
    ((numbers, epoch_of_first, step), (_, epoch_of_second, _)) = sent
    assert (step, epoch_of_first, epoch_of_second) == (1, pytest.approx(1 / 3), pytest.approx(1))
    assert numbers == {f"step/{name}": pytest.approx(numbers[f"step/{name}"]) for name in SHOWN}  # type: ignore[index]


def test_each_time_that_steps_collapse_one_warning_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    spreads = [(9.0, 0.5), (1.2, 0.5), (1.0, 0.0), None, (9.0, 0.001), (9.0, 0.5)]
    with Progress(1, 600, tmp_path / "board", False, pace=Pace(torch.device("cpu"), 100, every=1)) as progress:
        progress.start(0)
        for number, spread in enumerate(spreads):
            progress.step(100, Reading(number, 2.0, 0.5, spread), 0.1)
    assert [message.split(":")[0] for message in caplog.messages] == ["step 2", "step 5"]
    lines = capsys.readouterr().out.splitlines()
    assert ["COLLAPSED" in line for line in lines] == [False, True, True, False, True, False]
    board = EventAccumulator(str(tmp_path / "board" / "steps")).Reload()
    assert [one.value for one in board.Scalars("step/effective_rank_z")] == pytest.approx([9, 1.2, 1, 9, 9])


def test_all_processes_but_the_first_are_quiet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(4, 400, tmp_path / "board", quiet=True) as progress:
        progress.start(0)
        progress.step(100)
    assert capsys.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []
