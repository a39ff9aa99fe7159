"""A machine with a GPU that does not start is refused; what NVIDIA's driver says is made up by files and fakes."""

from pathlib import Path

import pytest
import torch

from simclr_core.errors import DeviceError, DeviceMemoryError, LaunchError
from simclr_core.machine import devices, settings
from simclr_core.machine.devices import (
    choose_device,
    describe_versions,
    find_gpu,
    memory_explained,
    resolve_precision,
    usable_gpus,
)
from tests.sentences import assert_plain

OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build  (archlinux)\n"
CLOSED = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.82.01  Wed Oct 27 21:21:55 UTC 2021\nGCC version: gcc 9\n"


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without GPU and driver, and the folder of its device files."""
    for name in (settings.DEVICE, "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "dev").mkdir()
    monkeypatch.setattr(devices, "DEVICE_FILES", tmp_path / "dev")
    monkeypatch.setattr(devices, "DRIVER_FILE", tmp_path / "version")
    monkeypatch.setattr(devices, "LIBRARY", "libnothing-of-this-name.so")
    see(monkeypatch, 0)
    return tmp_path


def see(monkeypatch: pytest.MonkeyPatch, gpus: int) -> None:
    """CUDA starts with this many GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)


def put_gpu(machine: Path, version: str = CLOSED) -> None:
    (machine / "dev" / "nvidia0").touch()
    (machine / "dev" / "nvidiactl").touch()
    (machine / "version").write_text(version)


def test_without_a_gpu_the_processors_compute() -> None:
    assert choose_device() == torch.device("cpu")
    assert usable_gpus() == 0
    assert find_gpu() is None


def test_a_gpu_is_taken_and_can_be_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    see(monkeypatch, 4)
    assert [choose_device(rank) for rank in (0, 3)] == [torch.device("cuda", 0), torch.device("cuda", 3)]
    assert usable_gpus() == 4
    monkeypatch.setenv(settings.DEVICE, "cpu")
    assert choose_device() == torch.device("cpu")
    assert usable_gpus() == 0


@pytest.mark.parametrize(
    ("has_bfloat16", "capability", "scaled", "unscaled"),
    [
        (True, (8, 0), torch.bfloat16, torch.bfloat16),
        (False, (7, 0), torch.float16, torch.float32),  # V100
        (False, (7, 5), torch.float16, torch.float32),  # T4
        (False, (6, 1), torch.float32, torch.float32),
    ],
)
def test_auto_is_the_type_of_the_tensor_cores(
    has_bfloat16: bool,
    capability: tuple[int, int],
    scaled: torch.dtype,
    unscaled: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """float16 only where the loss is scaled: fine-tuning scales none."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: has_bfloat16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    gpu = torch.device("cuda", 0)
    assert resolve_precision("auto", gpu, scales_loss=True) == scaled
    assert resolve_precision("auto", gpu) == unscaled
    assert resolve_precision("auto", torch.device("cpu"), scales_loss=True) == torch.float32
    assert resolve_precision("float32", gpu, scales_loss=True) == torch.float32


def test_each_process_may_see_its_own_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    see(monkeypatch, 1)
    assert choose_device(7) == torch.device("cuda", 0)


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    see(monkeypatch, 2)
    with pytest.raises(LaunchError, match="this is process 3 on its machine, but 2 GPUs are visible; start at most 2"):
        choose_device(2)


@pytest.mark.parametrize("wanted", ["auto", "cuda"])
def test_an_old_driver_is_refused_with_its_version_and_that_of_torch(
    wanted: str, bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_gpu(bare)
    monkeypatch.setenv(settings.DEVICE, wanted)
    monkeypatch.setattr(torch, "__version__", "2.14.1+cu130")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(DeviceError) as caught:
        choose_device()
    said = str(caught.value)
    assert said.startswith(
        f"{bare}/dev/nvidia0 is there, but CUDA does not start: driver 470.82.01, torch 2.14.1+cu130"
    )
    assert "for CUDA 13.0, which needs driver 580 or newer; update the driver" in said
    assert said.endswith("SIMCLR_DEVICE=cpu computes on the processors")
    assert_plain(said)


def test_a_torch_without_cuda_is_named(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_gpu(bare, OPEN)
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(
        DeviceError, match=r"driver 570\.86\.15, torch \S+ without CUDA; install a torch that is built for"
    ):
        choose_device()


@pytest.mark.parametrize("hidden", ["", "-1", "NoDevFiles"])
def test_hidden_gpus_are_a_decision(hidden: str, bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_gpu(bare)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert choose_device() == torch.device("cpu")


def test_a_gpu_that_only_the_driver_knows_of(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a virtual machine, or a container without device files."""
    monkeypatch.setattr(devices, "_ask_driver", lambda: (2, "535.104.05"))
    with pytest.raises(
        DeviceError, match=r"a GPU that the driver names \(2 in all\) is there, .* driver 535\.104\.05,"
    ):
        choose_device()


def test_a_gpu_that_is_asked_for_and_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(settings.DEVICE, "cuda")
    with pytest.raises(
        DeviceError, match="this machine has no GPU that can be seen: no driver of NVIDIA, torch"
    ) as caught:
        choose_device()
    assert_plain(str(caught.value))


def test_rocm_has_no_driver_of_nvidia(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert describe_versions() == f"torch {torch.__version__} for ROCm 6.4"


def test_memory_that_runs_out_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (10**9, 80 * 10**9))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 70 * 10**9)
    with pytest.raises(DeviceMemoryError) as caught, memory_explained("lower the batch"):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
    assert str(caught.value) == (
        "the GPU has no memory left (80 GB, of which 1.0 are free and 70.0 are this process's tensors); lower the batch"
    )


def test_memory_of_the_machine_too() -> None:
    said = "this machine has no memory left; lower the batch"
    with pytest.raises(DeviceMemoryError, match=said), memory_explained("lower the batch"):
        torch.empty(2**60, dtype=torch.uint8)


def test_another_fault_stays_what_it_is() -> None:
    with pytest.raises(RuntimeError, match="shape"), memory_explained("lower the batch"):
        torch.zeros(2).view(3)
