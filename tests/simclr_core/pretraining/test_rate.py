"""The rate is images over seconds of whole steps, and measuring it writes nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from simclr_core.augmentation.augmentations import Augmentation
from simclr_core.config import PretrainConfig
from simclr_core.launch import Member
from simclr_core.monitoring.unit_costs import TrainingSet, UnitCosts
from simclr_core.params import read_block
from simclr_core.pretraining import rate

CPU = Member(0, 1, torch.device("cpu"))
DATA = TrainingSet(20, 2)


def test_the_rate_is_the_batch_over_the_middle_step(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = read_block(prepared / "params.yaml", "pretrain", PretrainConfig)
    clock = iter([10.0, 10.5, 20.0, 22.0, 30.0, 31.0])  # after the first step three of 0.5, 2 and 1 seconds
    monkeypatch.setattr(rate, "perf_counter", lambda: next(clock))
    assert rate.measure_rate(config, DATA, CPU, seconds=0.0) == config.batch_size / 1.0


def test_two_batches_give_the_cost_of_a_step_and_of_an_image() -> None:
    assert rate._line({16: 0.5, 64: 1.46}) == pytest.approx((0.18, 0.02))
    assert rate._line({16: 0.5, 64: 0.4}) == (0.4, 0.0)


@pytest.mark.seconds
def test_the_command_prints_one_line_and_writes_nothing(
    prepared: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate, "SECONDS", 0.0)
    before = {path: path.stat().st_mtime_ns for path in prepared.rglob("*")}
    rate.run(prepared, 20, 2, sizes=[(32, 32), (32, 64)])
    found = json.loads(capsys.readouterr().out)
    measured = UnitCosts(**{name: value for name, value in found.items() if name != "measured_seconds"})
    assert measured.images_per_second > 0
    assert min(measured.forward_seconds, measured.axes_seconds, *measured.descent_seconds) > 0
    assert 50_000_000 < measured.memory_bytes < 20e9
    assert measured.feature_dim == 64
    assert found["measured_seconds"] > 0
    assert {path: path.stat().st_mtime_ns for path in prepared.rglob("*")} == before


@pytest.mark.seconds
def test_images_at_full_depth_are_measured_with_their_channels_and_sizes(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate, "SECONDS", 0.0)
    config = read_block(prepared / "params.yaml", "pretrain", PretrainConfig)
    seen = []
    view = Augmentation.view

    def spy(self: Augmentation, images: Tensor, sizes: Tensor, *rest: Any) -> Tensor:
        seen.append((images.dtype, images.shape[1], sizes[:3].tolist()))
        return view(self, images, sizes, *rest)

    monkeypatch.setattr(Augmentation, "view", spy)
    assert rate.measure_rate(config, TrainingSet(20, 2, 5, ((32, 40), (64, 32))), CPU, seconds=0.0) > 0
    assert seen[0] == (torch.uint16, 5, [[32, 40], [64, 32], [32, 40]])
