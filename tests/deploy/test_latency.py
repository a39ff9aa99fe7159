"""The measurements are those of the encoder, and name the machine."""

import platform
from pathlib import Path

import numpy as np
import pytest

import deploy
from deploy import latency
from deploy.encoder import Encoder
from deploy.errors import ArgumentError
from deploy.images.preprocess import decode


def test_percentiles_are_of_single_images_in_milliseconds(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "latencies", lambda *_: [n / 1000 for n in range(1, 102)])
    report = latency.measure(lambda: deploy.load(bundle, threads=1), seconds=0.01)
    assert report.single_image_ms == latency.Percentiles(51, 96, 100, 101)
    assert report.encoder == deploy.load(bundle).id
    assert report.cores == deploy.session.available_cpus()
    assert "p50 51.00 ms   p95 96.00 ms   p99 100.00 ms" in latency.table(report)
    assert "(" + report.encoder[:12] + ")" in latency.table(report)


def test_loading_is_timed(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def load() -> Encoder:
        nonlocal now
        now += 2.5
        return deploy.load(bundle, threads=1)

    def tick() -> float:
        nonlocal now
        now += 1e-3
        return now

    monkeypatch.setattr("time.perf_counter", tick)
    assert latency.measure(load, seconds=1e-3).load_ms == 2501.0  # and one tick


def test_short_measurements_still_have_enough_runs(bundle: Path) -> None:
    encoder = deploy.load(bundle, threads=1)
    assert len(latency.latencies(encoder.embed, latency.photo(), 1e-9)) == latency.FEWEST_RUNS
    assert latency.throughput(encoder, latency.photo(), 1e-9) > 0


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_an_invalid_duration_is_refused_before_loading(seconds: float) -> None:
    with pytest.raises(ArgumentError, match=r"seconds=.*give more than 0"):
        latency.measure(lambda: pytest.fail("loaded"), seconds)


def test_the_image_is_a_photograph_of_the_reported_size() -> None:
    picture = latency.photo()
    pixels = decode(picture)
    assert pixels.shape == (latency.HEIGHT, latency.WIDTH, 3)
    assert picture == latency.photo()
    assert 0.5 < 8 * len(picture) / (latency.HEIGHT * latency.WIDTH) < 4  # bits a pixel, as cameras write


def test_the_processor_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert latency.processor()
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "flags\t: fpu\nmodel name\t: Fast 9000\n")
    assert latency.processor() == "Fast 9000"

    def absent(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", absent)
    assert latency.processor() in (platform.processor(), platform.machine())


def test_peak_memory_never_decreases() -> None:
    before = latency.peak_megabytes()
    held = np.ones(20_000_000)  # 160 MB
    after = latency.peak_megabytes()
    del held
    assert 5 < before <= after <= latency.peak_megabytes()
    assert after - before < 200
