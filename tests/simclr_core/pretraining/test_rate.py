"""The rate is images over seconds of whole steps, and measuring it writes nothing."""

import json
from pathlib import Path

import pytest
import torch

from simclr_core.config import PretrainConfig
from simclr_core.launch import Member
from simclr_core.monitoring.unit_costs import UnitCosts
from simclr_core.params import read_block
from simclr_core.pretraining import rate

CPU = Member(0, 1, torch.device("cpu"))


def test_the_rate_is_the_batch_over_the_middle_step(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = read_block(prepared / "params.yaml", "pretrain", PretrainConfig)
    clock = iter([10.0, 10.5, 20.0, 22.0, 30.0, 31.0])  # after the first step three of 0.5, 2 and 1 seconds
    monkeypatch.setattr(rate, "perf_counter", lambda: next(clock))
    assert rate.measure_rate(config, CPU, seconds=0.0) == config.batch_size / 1.0


def test_two_batches_give_the_cost_of_a_step_and_of_an_image() -> None:
    assert rate._line({16: 0.5, 64: 1.46}) == pytest.approx((0.18, 0.02))
    assert rate._line({16: 0.5, 64: 0.4}) == (0.4, 0.0)


def test_the_command_prints_one_line_and_writes_nothing(
    prepared: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate, "SECONDS", 0.0)
    before = {path: path.stat().st_mtime_ns for path in prepared.rglob("*")}
    rate.run(prepared)
    found = json.loads(capsys.readouterr().out)
    measured = UnitCosts(**{name: value for name, value in found.items() if name != "measured_seconds"})
    assert measured.images_per_second > 0
    assert min(measured.forward_seconds, measured.axes_seconds, *measured.descent_seconds) > 0
    assert 50_000_000 < measured.memory_bytes < 20e9
    assert measured.feature_dim == 64
    assert found["measured_seconds"] > 0
    assert {path: path.stat().st_mtime_ns for path in prepared.rglob("*")} == before
