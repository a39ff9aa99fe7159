"""Latency: both encoders in turn on the same files, and a file that says of which bundles it speaks."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import deploy
from deploy.artifact import identity
from deploy.errors import CorruptArtifactError
from simclr_core.errors import DatasetError
from simclr_core.export import latency
from tests.conftest import write_prepared
from tests.simclr_core.pixel_encoders import CANDIDATE, damage_champion, mixing, put_bundle, put_champion


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    write_prepared(tmp_path, train=8, test=6)
    put_bundle(tmp_path / "models" / "bundle", mixing(1), CANDIDATE)
    put_champion(tmp_path, mixing(2))
    return tmp_path


class Clock:
    """Time passes only while an encoder works."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Timed:
    """Stands in for an encoder that takes its time, and notes its calls."""

    def __init__(self, name: str, clock: Clock, seconds: list[float], calls: list[tuple[str, bytes]]) -> None:
        self.name, self.clock, self.seconds, self.calls = name, clock, seconds, calls

    def embed(self, picture: bytes) -> None:
        self.clock.now += self.seconds[len(self.calls) % len(self.seconds)]
        self.calls.append((self.name, picture))


def measured(workspace: Path) -> dict[str, Any]:
    latency.run(workspace)
    report: dict[str, Any] = json.loads((workspace / ".simclr" / "timings" / "latency.json").read_text())
    return report


def test_the_report_names_the_measured_bundles(workspace: Path) -> None:
    report = measured(workspace)
    assert report["bundle"] == identity(workspace / "models" / "bundle")
    assert report["champion"] == identity(workspace / "models" / "champion" / "bundle")
    assert 0 < report["p50_ms"] < 1000
    assert 0 < report["champion_p50_ms"] < 1000


def test_without_a_champion_the_candidate_is_measured_alone(workspace: Path) -> None:
    put_champion(workspace, None)
    report = measured(workspace)
    assert report["champion"] is None
    assert report["champion_p50_ms"] is None
    assert report["p50_ms"] > 0


def test_the_encoders_take_turns_on_the_same_files(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, calls = Clock(), []
    monkeypatch.setattr(latency, "time", clock)
    encoders: list[Any] = [Timed("a", clock, [2.0], calls), Timed("b", clock, [3.0], calls)]
    assert latency.latencies(encoders, [b"one", b"two", b"three"], rounds=7) == [2.0, 3.0]
    rounds = [calls[start : start + 2] for start in range(0, len(calls), 2)]
    assert len(rounds) == 7 + latency.WARM_UP
    assert all({name for name, _ in pair} == {"a", "b"} for pair in rounds)
    assert all(len({picture for _, picture in pair}) == 1 for pair in rounds)
    first = [pair[0][0] for pair in rounds]
    assert first[:4] in (["a", "b", "a", "b"], ["b", "a", "b", "a"])  # neither always follows the other


def test_a_few_interruptions_and_the_first_calls_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, calls = Clock(), []
    monkeypatch.setattr(latency, "time", clock)
    seconds = [50.0] * latency.WARM_UP + [9.0, 1.0, 1.0, 1.0, 9.0, 1.0, 1.0]
    encoder: Any = Timed("a", clock, seconds, calls)
    assert latency.latencies([encoder], [b"one"], rounds=7) == [1.0]


def test_training_images_are_used_without_a_test_split(tmp_path: Path) -> None:
    write_prepared(tmp_path, train=8, test=0)
    assert len(latency.files(tmp_path / "data" / "prepared")) == 8
    write_prepared(tmp_path / "empty", train=0, test=0)
    with pytest.raises(DatasetError, match="no images to measure with"):
        latency.files(tmp_path / "empty" / "data" / "prepared")


def test_a_damaged_bundle_is_not_measured(workspace: Path) -> None:
    damage_champion(workspace)
    with pytest.raises(CorruptArtifactError):
        latency.run(workspace)
    assert not (workspace / ".simclr" / "timings" / "latency.json").exists()


@pytest.mark.seconds
def test_the_measurement_does_not_import_torch() -> None:
    program = "import simclr_core.export.latency, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "torch" not in done.stdout.split()


def test_the_slower_of_two_encoders_is_found(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real clock and a real encoder, one copy of which idles a while in every call."""
    bundle = workspace / "models" / "bundle"
    quick, slow = deploy.load(bundle, threads=1), deploy.load(bundle, threads=1)
    embed = slow.embed

    def idling(picture: bytes) -> deploy.Embeddings:
        until = time.perf_counter() + 0.005
        while time.perf_counter() < until:
            pass
        return embed(picture)

    monkeypatch.setattr(slow, "embed", idling)
    one, other = latency.latencies([quick, slow], latency.files(workspace / "data" / "prepared"), rounds=20)
    assert other > one + 0.004
