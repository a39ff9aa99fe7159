"""The checks of a GPU, run on the CPU at tiny sizes: their whole path, and that a wrong number is found."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import gpu_check
from benchmarks.gpu import arithmetic
from benchmarks.gpu.scale import Result, Scale, WrongError, error
from simclr_core.loss.nt_xent import LOSSES

TINY = Scale(torch.device("cpu"), tiny=True)


@pytest.mark.slow
def test_every_check_passes_on_a_cpu(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    assert gpu_check.main(["--device", "cpu", "--tiny", "--json", str(file)]) == 0
    checks = json.loads(file.read_text())["checks"]
    assert [name for name, found in checks.items() if "skipped" in found] == []
    assert list(checks) == [check.__name__.removeprefix("check_") for check in gpu_check.CHECKS]
    assert checks["processes"]["processes"] == 2
    assert checks["resume"]["files"] > 3
    assert "lower pretrain.batch_size" in checks["memory_message"]["message"]


def test_a_wrong_gradient_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the pass on the device alone, the first of the two in float32."""
    right, passes = LOSSES["dcl"], []

    def wrong(first: Tensor, second: Tensor, temperature: float) -> Tensor:
        passes.append(first.dtype)
        once = passes.count(torch.float32) == 1 and first.dtype == torch.float32
        return right(first, second.roll(1, 0) if once else second, temperature)

    monkeypatch.setitem(LOSSES, "dcl", wrong)
    with pytest.raises(WrongError, match=r"off by .*, where float32 on the CPU is off by"):
        arithmetic.check_losses(TINY)


def test_a_fault_a_missing_package_and_too_little_time_are_results(capsys: pytest.CaptureFixture[str]) -> None:
    def check_fault(scale: Scale) -> Result:
        raise RuntimeError("no kernel image")

    def check_missing(scale: Scale) -> Result:
        raise ModuleNotFoundError("No module named 'torchvision'")

    found = gpu_check.check_all([check_fault, check_missing], TINY, 60)
    assert found["fault"]["wrong"] == "RuntimeError: no kernel image"
    assert found["missing"]["skipped"] == "No module named 'torchvision'"
    assert gpu_check.check_all([check_fault], TINY, -1)["fault"]["skipped"] == "no time left"
    assert "fault: {'wrong'" in capsys.readouterr().out


def test_an_error_is_relative_and_infinite_where_a_number_is_not_finite() -> None:
    one = torch.tensor([3.0, 4.0])
    assert error([one * 1.5], [one]) == pytest.approx(0.5)
    assert error([one / 0], [one]) == float("inf")
