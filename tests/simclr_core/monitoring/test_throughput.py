"""Floating-point operations by hand, and the share of a GPU's peak that a speed is."""

import pytest
import torch
from torch import nn

from simclr_core.launch import Member
from simclr_core.model.encoder import build_encoder
from simclr_core.monitoring.throughput import Pace, choose_pace, forward_flops, peak_bytes, peak_flops

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def test_the_operations_of_a_pass_are_two_for_each_product() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 6 * 6, 5)).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert forward_flops(network, (3, 8, 8)) == 2 * (6 * 6 * 4 * 3 * 3 * 3) + 2 * (4 * 6 * 6 * 5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(module.training for module in network.modules())


def test_a_resnet_50_takes_4_giga_products() -> None:
    with torch.device("meta"):
        encoder = build_encoder("resnet50", 1.0, "imagenet")
    assert forward_flops(encoder, (3, 224, 224)) == pytest.approx(2 * 4.09e9, rel=0.01)  # torchvision's GFLOPS column


def test_the_peak_is_that_of_the_gpu_and_the_type(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "NVIDIA H100 80GB HBM3"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    assert peak_flops(GPU, torch.bfloat16) == 989e12
    assert (peak_flops(GPU, torch.float32), peak_flops(GPU, torch.float32, tf32=True)) == (67e12, 495e12)
    name = "NVIDIA A100-SXM4-40GB"
    assert peak_flops(GPU, torch.float16) == 312e12
    name = "NVIDIA GeForce RTX 9090"
    assert peak_flops(GPU, torch.bfloat16) is None
    assert peak_flops(CPU, torch.bfloat16) is None


def test_the_share_of_the_peak_of_all_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA A100-SXM4-80GB")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 40_000_000_000)
    network, gpus = nn.Linear(10, 10), Member(0, 8, GPU)
    pace = choose_pace(network, {(10,): 4}, (torch.bfloat16, False), gpus, 4096, every=10)
    assert (pace.flops, pace.peak) == (4 * 200, 8 * 312e12)
    assert pace.numbers(312e9) == {
        "images_per_second": 312e9,
        "mfu": pytest.approx(0.1),
        "memory_gigabytes": 40.0,
    }
    assert choose_pace(network, {(10,): 6}, (torch.bfloat16, False), gpus, 4096, every=0).peak is None


@pytest.mark.parametrize(("device", "shown"), [(CPU, [3, 7, 11]), (GPU, [2, 6, 10])])
def test_a_record_shows_a_step_of_which_the_numbers_were_read(device: torch.device, shown: list[int]) -> None:
    """Every fourth step, counted from 0, has a record; on a GPU it has the numbers of the step before."""
    assert [step for step in range(12) if Pace(device, 4, every=4).shows(step)] == shown
    assert not any(Pace(device, 4).shows(step) for step in range(12))


def test_on_a_processor_memory_is_that_of_the_process() -> None:
    pace = choose_pace(nn.Linear(1, 1), {(1,): 6}, (torch.float32, False), Member(0, 1, CPU), 4, every=1)
    assert pace.numbers(100.0).keys() == {"images_per_second", "memory_gigabytes"}
    assert peak_bytes(CPU) > 10_000_000
