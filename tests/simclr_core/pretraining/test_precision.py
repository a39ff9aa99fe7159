"""Reduced precision is used where it is right, refused where it is not, and float16 survives its overflows."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from simclr_core.launch import Member
from simclr_core.model.encoder import build_encoder
from simclr_core.pretraining import precision, pretrain
from simclr_core.pretraining.choices import Choice, settle
from simclr_core.pretraining.precision import LossScaler, choose_precision, layer_fault, unchanged

ALONE = Member(0, 1, torch.device("cpu"))


def views(side: int = 16) -> Tensor:
    return torch.rand(8, 3, side, side, generator=torch.Generator().manual_seed(0))


def backward(network: nn.Module, batch: Tensor, dtype: torch.dtype) -> Tensor:
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        loss = network(batch).float().square().mean()
    torch.autograd.backward(loss)
    return loss.detach()


def choose(network: nn.Module, name: str = "bfloat16") -> Choice:
    return choose_precision(name, network, views(), ALONE, lambda batch, dtype: backward(network, batch, dtype))


class Wrong(nn.Conv2d):
    """Right in float32; in reduced precision its output is ``factor`` times too large, or its gradient is."""

    factor, what = 1.0, "output"

    def forward(self, input: Tensor) -> Tensor:
        output = super().forward(input)
        if torch.is_autocast_enabled("cpu"):
            if self.what == "output":
                return output * self.factor
            output.register_hook(lambda gradient: gradient * self.factor)
        return output


def network_with(factor: float, what: str) -> nn.Sequential:
    torch.manual_seed(0)
    wrong = Wrong(8, 8, 3)
    wrong.factor, wrong.what = factor, what
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), wrong, nn.Flatten(), nn.Linear(1152, 4))


@pytest.mark.seconds
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["resnet10", "mobilenet_v3_small"])
def test_right_kernels_pass(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(name, 0.125, "compact") if name == "resnet10" else build_encoder(name)
    assert layer_fault(encoder, views(32), dtype) is None


@pytest.mark.parametrize("factor", [1.05, 0.0, float("nan"), float("inf")])
@pytest.mark.parametrize("what", ["output", "gradient"])
def test_one_wrong_kernel_is_found_and_named(factor: float, what: str) -> None:
    fault = layer_fault(network_with(factor, what), views(), torch.bfloat16)
    assert fault is not None
    assert fault.startswith("Wrong(8, 8, kernel_size=(3, 3), stride=(1, 1)) on [8, 8, 14, 14] is off by")


def test_a_wrong_kernel_makes_an_explicit_precision_fall_back_with_the_reason() -> None:
    choice = choose(network_with(1.2, "gradient"))
    assert choice.value == "float32"
    assert choice.reason is not None
    assert choice.reason.startswith("bfloat16 gives wrong numbers here: Wrong(8, 8")


def test_a_loss_that_is_not_the_same_is_a_fault_too() -> None:
    class Attention(nn.Module):  # without a layer to compare
        def forward(self, batch: Tensor) -> Tensor:
            return batch * (float("nan") if torch.is_autocast_enabled("cpu") else 1.0)

    choice = choose(nn.Sequential(nn.Flatten(), nn.Linear(768, 4), Attention()))
    assert choice.value == "float32"
    assert "the loss of a batch is nan, in float32" in str(choice.reason)


@pytest.mark.parametrize("seconds", [0.5, 12.0])
def test_slowness_is_worth_a_warning_and_decides_nothing(
    seconds: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    passes = iter((1.0, seconds))
    monkeypatch.setattr(precision, "_timed", lambda *_: (1.0, next(passes)))
    assert choose(network_with(1.0, "output")) == Choice("bfloat16")
    assert ("bfloat16 takes 12.0 times as long as float32" in caplog.text) == (seconds == 12.0)


def test_auto_on_a_processor_is_float32_and_tests_nothing() -> None:
    assert choose(nn.Identity(), "auto") == Choice("float32")


def test_the_self_test_leaves_no_trace() -> None:
    network = network_with(1.0, "output")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert choose(network) == Choice("bfloat16")
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    with pytest.raises(RuntimeError, match="mat1 and mat2"), unchanged(network):
        network(torch.rand(4, 3, 9, 9))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_a_run_keeps_its_first_choice(tmp_path: Path) -> None:
    first = Choice("float32", "bfloat16 is not faster here")
    assert settle(tmp_path / "run", "precision", ALONE, lambda: first) == first
    assert settle(tmp_path / "run", "precision", ALONE, lambda: Choice("bfloat16")) == first
    assert settle(tmp_path / "run", "compile", ALONE, lambda: Choice("eager")) == Choice("eager")


@pytest.mark.parametrize(("begun", "expected"), [(False, "float16"), (True, "float32")])
def test_a_run_that_began_before_auto_took_float16_stays_in_float32(
    begun: bool, expected: str, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It settled on nothing: on a GPU without bfloat16 there was nothing to test."""
    monkeypatch.setattr(pretrain, "resolve_precision", lambda *_, **__: torch.float16)
    monkeypatch.setattr(pretrain, "choose_precision", lambda *_: Choice("float16"))
    inputs = pretrain.read_inputs(prepared)
    if begun:
        (inputs.folder / "roll-back-1" / "step-00000006").mkdir(parents=True)
    _, arithmetic = pretrain.build(inputs, inputs.batches(ALONE))
    assert arithmetic.precision.value == expected


def a_parameter() -> tuple[nn.Parameter, torch.optim.Optimizer]:
    weight = nn.Parameter(torch.ones(2))
    return weight, torch.optim.SGD([weight], lr=0.1)


def take(scaler: LossScaler, weight: nn.Parameter, optimizer: torch.optim.Optimizer, factor: float) -> bool:
    optimizer.zero_grad()
    torch.autograd.backward(scaler.scaled((factor * weight).sum()))
    scaler.unscale(optimizer)
    assert weight.grad is not None
    skipped = scaler.skips(float(weight.grad.norm()), float(scaler.multiple(torch.tensor(3.0))))
    scaler.step(optimizer)
    return skipped


def test_an_overflow_skips_the_step_is_counted_and_halves_the_scale() -> None:
    weight, optimizer = a_parameter()
    scaler = LossScaler(torch.float16, torch.device("cpu"))
    assert take(scaler, weight, optimizer, 1e36)  # 65,536 times as much is not a float32
    assert weight.tolist() == [1, 1]
    assert (scaler.skipped, scaler.state()["scale"]) == (1, 2.0**15)
    assert not take(scaler, weight, optimizer, 1.0)
    torch.testing.assert_close(weight.detach(), torch.full((2,), 0.9))


def test_a_gradient_that_overflows_at_every_scale_is_an_error() -> None:
    weight, optimizer = a_parameter()
    scaler = LossScaler(torch.float16, torch.device("cpu"))
    assert [take(scaler, weight, optimizer, float("inf")) for _ in range(17)] == [True] * 16 + [False]


def test_a_restored_scaler_continues_with_its_scale() -> None:
    weight, optimizer = a_parameter()
    scaler, later = (LossScaler(torch.float16, torch.device("cpu")) for _ in range(2))
    take(scaler, weight, optimizer, 1e36)
    take(scaler, weight, optimizer, 1.0)
    later.restore(scaler.state())
    assert later.state() == scaler.state()
    assert scaler.state()["_growth_tracker"] == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_types_pass_through_the_scaler(dtype: torch.dtype) -> None:
    weight, optimizer = a_parameter()
    scaler = LossScaler(dtype, torch.device("cpu"))
    assert not take(scaler, weight, optimizer, float("inf"))  # and the loop stops with NonFiniteLossError
    assert scaler.state() == {"skipped": 0}
