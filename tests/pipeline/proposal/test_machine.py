"""What parameters are proposed for: the GPUs that training would have, not those that are built in."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pipeline.proposal.machine import read_machine
from simclr_core.errors import DeviceError
from simclr_core.machine import devices


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SIMCLR_DEVICE", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda gpu: SimpleNamespace(total_memory=80 * 10**9))


@pytest.mark.usefixtures("two_gpus")
def test_gpus_are_counted_unless_they_are_to_be_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_machine(tmp_path / "not-there-yet").gpu_gigabytes == (80.0, 80.0)
    monkeypatch.setenv("SIMCLR_DEVICE", "cpu")
    assert read_machine(tmp_path).gpu_gigabytes == ()


@pytest.mark.usefixtures("two_gpus")
def test_a_gpu_that_does_not_start_is_refused_before_anything_is_proposed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver still counts its GPUs when it is too old for torch."""
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(devices, "DEVICE_FILES", tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="nvidia0 is there, but CUDA does not start"):
        read_machine(tmp_path)
