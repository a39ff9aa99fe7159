"""How pretraining computes: in less precision, compiled, or forward twice; and what it does where that goes wrong."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from simclr_core.errors import CompileError
from simclr_core.model.model_directory import load_model
from simclr_core.pretraining import compilation, precision, pretrain
from tests.processes.programs import needs_compiler
from tests.simclr_core.conftest import STEPS, configure, interrupt, metrics_of, results, weights

pytestmark = pytest.mark.usefixtures("pictures_by_digest")


@pytest.mark.seconds
def test_bfloat16_trains_too(prepared: Path, undisturbed: dict[str, bytes]) -> None:
    configure(prepared, precision="bfloat16")
    pretrain.run(prepared)
    loss = metrics_of(prepared)["loss_first"]
    assert loss == pytest.approx(json.loads(undisturbed["reports/pretrain.json"])["loss_first"], abs=0.2)


@pytest.mark.seconds
def test_a_precision_that_fails_its_test_falls_back_and_says_so(
    prepared: Path,
    tmp_path: Path,
    undisturbed: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("SIMCLR_EVENTS", str(tmp_path / "events"))
    monkeypatch.setattr(precision, "layer_fault", lambda *_: "Conv2d is off by 3 of its norm")
    configure(prepared, precision="bfloat16")
    pretrain.run(prepared)
    reason = "bfloat16 gives wrong numbers here: Conv2d is off by 3 of its norm"
    assert caplog.text.count(f"continuing in float32: {reason}") == 1
    assert f"float32, because {reason}" in json.loads((tmp_path / "events").read_text().splitlines()[0])["message"]
    assert (metrics_of(prepared)["precision"], metrics_of(prepared)["precision_fallback"]) == ("float32", reason)
    assert load_model(prepared / "models" / "pretrained").card["metrics"]["precision_fallback"] == reason
    assert weights(results(prepared)) == weights(undisturbed)  # and the test itself has left no trace


@pytest.mark.seconds
def test_an_interrupted_run_keeps_the_precision_it_began_with(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(prepared, precision="bfloat16", epochs=1)
    interrupt(prepared, monkeypatch, "pretrain.step:raise@4")
    with monkeypatch.context() as patch:
        patch.setattr(precision, "layer_fault", lambda *_: "this would be wrong now")
        pretrain.run(prepared)
    resumed = results(prepared)
    assert metrics_of(prepared)["precision"] == "bfloat16"
    pretrain.run(prepared)
    assert results(prepared) == resumed


@pytest.mark.seconds
def test_float16_skips_what_overflows_counts_it_and_continues_after_an_interruption(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradient_scaler = torch.amp.GradScaler
    monkeypatch.setattr(
        torch.amp, "GradScaler", lambda *_, **given: gradient_scaler("cpu", init_scale=2.0**20, **given)
    )
    configure(prepared, precision="float16")
    interrupt(prepared, monkeypatch, "pretrain.step:raise@4")
    pretrain.run(prepared)
    resumed = results(prepared)
    assert metrics_of(prepared)["precision"] == "float16"
    assert 0 < metrics_of(prepared)["skipped_steps"] < STEPS
    pretrain.run(prepared)
    assert results(prepared) == resumed


@pytest.mark.seconds
def test_gradient_checkpointing_changes_no_bit(prepared: Path, undisturbed: dict[str, bytes]) -> None:
    configure(prepared, gradient_checkpointing=True)
    pretrain.run(prepared)
    assert weights(results(prepared)) == weights(undisturbed)


@needs_compiler
@pytest.mark.slow
def test_a_compiled_run_continues_to_the_same_bytes(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(prepared / "compiled"))  # else what earlier runs left in /tmp
    configure(prepared, compile=True, epochs=1)
    interrupt(prepared, monkeypatch, "pretrain.step:raise@4")
    pretrain.run(prepared)
    resumed = results(prepared)
    assert metrics_of(prepared)["compile_fallback"] is None
    assert metrics_of(prepared)["compiled"] is True
    pretrain.run(prepared)
    assert results(prepared) == resumed
    configure(prepared, compile=False)
    pretrain.run(prepared)
    eager, compiled = json.loads(resumed["reports/pretrain.json"])["loss_last"], metrics_of(prepared)["loss_last"]
    assert compiled == pytest.approx(eager, abs=1e-3)


def without_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(model: nn.Module) -> nn.Module:
        def broken(graph: object, inputs: object) -> Any:
            raise FileNotFoundError("g++ is not there")

        return torch.compile(model, backend=broken)

    monkeypatch.setattr(compilation, "torch_compile", no_compiler)


@pytest.mark.seconds
def test_without_a_compiler_the_run_is_eager_and_says_why(
    prepared: Path, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    without_compiler(monkeypatch)
    configure(prepared, compile=True)
    pretrain.run(prepared)
    assert metrics_of(prepared)["compiled"] is False
    assert "g++ is not there" in metrics_of(prepared)["compile_fallback"]
    assert caplog.text.count("continuing in eager: torch.compile failed") == 1
    assert weights(results(prepared)) == weights(undisturbed)


@pytest.mark.seconds
def test_a_run_that_began_compiled_does_not_resume_otherwise(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(prepared, compile=True)
    with monkeypatch.context() as patch:
        patch.setattr(compilation, "torch_compile", lambda model: model)  # a compiler, as far as the run can tell
        interrupt(prepared, patch, "pretrain.step:raise@4")
    without_compiler(monkeypatch)
    with pytest.raises(CompileError, match=r"was compiled until it was interrupted, and torch\.compile fails now"):
        pretrain.run(prepared)
    assert results(prepared) == {}
