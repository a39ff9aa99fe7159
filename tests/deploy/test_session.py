"""The session uses the requested threads and execution providers."""

import math
import os
from pathlib import Path

import onnxruntime
import pytest

from deploy import load
from deploy.errors import ArgumentError, ProviderError
from deploy.session import available_cpus, cpu_quota


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, math.inf),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, math.inf),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        # The smallest quota of a group and its parents applies.
        (
            {
                "proc/self/cgroup": "0::/pod/app\n",
                "sys/fs/cgroup/pod/app/cpu.max": "800000 100000\n",
                "sys/fs/cgroup/pod/cpu.max": "200000 100000\n",
            },
            2.0,
        ),
        # In a container, the path in /proc is often the host's.
        ({"proc/self/cgroup": "0::/docker/1f\n", "sys/fs/cgroup/cpu.max": "300000 100000\n"}, 3.0),
        # Version 1.
        (
            {
                "proc/self/cgroup": "5:memory:/x\n4:cpu,cpuacct:/x\n0::/\n",
                "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "50000\n",
                "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000\n",
            },
            0.5,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            math.inf,
        ),
    ],
)
def test_the_cpu_quota_of_control_groups(files: dict[str, str], expected: float, tmp_path: Path) -> None:
    assert cpu_quota(tree(tmp_path, files)) == expected


def test_available_cpus_is_the_smaller_of_affinity_and_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    for quota, expected in ((math.inf, 6), (2.3, 3), (0.1, 1), (64.0, 6)):
        monkeypatch.setattr("deploy.session.cpu_quota", lambda quota=quota: quota)
        assert available_cpus() == expected


def test_threads_reach_the_session_and_sleep_when_idle(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[int, int, str]] = []

    class Spy(onnxruntime.InferenceSession):
        def __init__(self, model: bytes, options: onnxruntime.SessionOptions, **rest: object) -> None:
            spinning = options.get_session_config_entry("session.intra_op.allow_spinning")
            given.append((options.intra_op_num_threads, options.inter_op_num_threads, spinning))
            super().__init__(model, options, **rest)

    monkeypatch.setattr(onnxruntime, "InferenceSession", Spy)
    monkeypatch.setattr("deploy.encoder.available_cpus", lambda: 5)
    assert load(bundle).info["runtime"]["threads"] == 5
    assert load(bundle, threads=3).info["runtime"]["threads"] == 3
    assert given == [(5, 1, "0"), (3, 1, "0")]
    with pytest.raises(ArgumentError, match="threads=0"):
        load(bundle, threads=0)


def test_a_provider_that_is_not_installed_is_an_error(bundle: Path) -> None:
    with pytest.raises(ProviderError, match=r"TensorrtExecutionProvider.*choose from.*CPUExecutionProvider"):
        load(bundle, providers=["TensorrtExecutionProvider", "CPUExecutionProvider"])
    with pytest.raises(ProviderError):
        load(bundle, providers=[])


def test_a_silent_fall_back_to_another_provider_is_an_error(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ("CUDAExecutionProvider", "CPUExecutionProvider")

    class FallBack(onnxruntime.InferenceSession):
        def __init__(self, model: bytes, options: object, providers: object, **rest: object) -> None:
            super().__init__(model, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(asked))
    monkeypatch.setattr(onnxruntime, "InferenceSession", FallBack)
    with pytest.raises(ProviderError, match=r"asked for .*CUDA.* got .*CPU"):
        load(bundle, providers=asked)
