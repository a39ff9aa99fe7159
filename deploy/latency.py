"""Measure an encoder on this machine: time to load, latency of one image, throughput of batches, and memory.

simclr-deploy bench models/bundle --json
"""

import io
import platform
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import numpy as np

from deploy.encoder import Encoder
from deploy.errors import ArgumentError
from deploy.images.full_depth import FULL
from deploy.images.npy import array_bytes
from deploy.plural import counted
from deploy.session import available_cpus

WIDTH, HEIGHT = 640, 480
WARM_UP, FEWEST_RUNS = 5, 20  # the first calls allocate; fewer than twenty runs give no percentiles
BATCH_SIZE = 32


@dataclass(frozen=True)
class Photo:
    """The image file that is embedded; ``bytes`` is its size."""

    format: str
    width: int
    height: int
    bytes: int


@dataclass(frozen=True)
class Percentiles:
    """Latency of ``runs`` runs with one image each, from the bytes of the file to the vector, in milliseconds."""

    p50: float
    p95: float
    p99: float
    runs: int


@dataclass(frozen=True)
class Batches:
    """Images in one run of the model, and the throughput."""

    size: int
    images_per_second: float


@dataclass(frozen=True)
class Report:
    """The result of ``measure``; memory is the peak of this process, ``reason`` says why this variant was chosen."""

    name: str
    version: str | None
    encoder: str
    threads: int
    providers: list[str]
    variant: str
    reason: str
    cpu: str
    cores: int
    image: Photo
    load_ms: float
    single_image_ms: Percentiles
    batch: Batches
    peak_rss_mb: float


def measure(load: Callable[[], Encoder], seconds: float) -> Report:
    """Load an encoder, then embed one image at a time for half of ``seconds``, and batches for the other half.

    Raises:
        ArgumentError: ``seconds`` is not positive.
        DeployError: ``load`` failed.
    """
    if not seconds > 0:
        raise ArgumentError(f"seconds={seconds:g}; give more than 0")
    began = time.perf_counter()
    encoder = load()
    loaded = time.perf_counter() - began
    channels = encoder.bundle.preprocessing.channels
    picture = samples(channels) if channels else photo()
    durations = latencies(encoder.embed, picture, seconds / 2)
    rate = throughput(encoder, picture, seconds / 2)
    p50, p95, p99 = (round(float(value) * 1000, 3) for value in np.percentile(durations, (50, 95, 99)))
    info = encoder.info
    return Report(
        name=info["name"],
        version=info["version"],
        encoder=encoder.id,
        **info["runtime"],
        cpu=processor(),
        cores=available_cpus(),
        image=Photo("NPY" if channels else "JPEG", WIDTH, HEIGHT, len(picture)),
        load_ms=round(loaded * 1000, 1),
        single_image_ms=Percentiles(p50, p95, p99, len(durations)),
        batch=Batches(BATCH_SIZE, round(rate, 1)),
        peak_rss_mb=round(peak_megabytes(), 1),
    )


def latencies(embed: Callable[[bytes], object], picture: bytes, seconds: float) -> list[float]:
    """Call ``embed`` repeatedly for ``seconds`` and return how many seconds each call takes."""
    for _ in range(WARM_UP):
        embed(picture)
    durations = list[float]()
    end = time.perf_counter() + seconds
    while len(durations) < FEWEST_RUNS or time.perf_counter() < end:
        began = time.perf_counter()
        embed(picture)
        durations.append(time.perf_counter() - began)
    return durations


def throughput(encoder: Encoder, picture: bytes, seconds: float) -> float:
    """Return images per second of a stream of the same image, after a first batch."""
    stream = encoder.embed_iter(repeat(picture), BATCH_SIZE)
    next(stream)
    images, began = 0, time.perf_counter()
    while not images or time.perf_counter() - began < seconds:
        images += len(next(stream).vectors)
    return images / (time.perf_counter() - began)


def photo() -> bytes:
    """Make a JPEG file with the smooth areas and the grain of a photograph, always the same bytes."""
    from PIL import Image

    random = np.random.default_rng(0)
    coarse = Image.fromarray(random.integers(0, 256, (HEIGHT // 16, WIDTH // 16, 3)).astype(np.uint8))
    smooth = np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), np.float32)
    grain = random.normal(0, 8, (HEIGHT, WIDTH, 3))
    content = io.BytesIO()
    Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8)).save(content, "JPEG", quality=85)
    return content.getvalue()


def samples(channels: int) -> bytes:
    """Make an ``.npy`` file of noise at full depth, always the same bytes."""
    random = np.random.default_rng(0)
    return array_bytes(random.integers(0, FULL, (HEIGHT, WIDTH, channels), np.uint16))


def processor() -> str:
    """Return the processor's name as its maker writes it, or else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def peak_megabytes() -> float:
    """Return the peak memory of this process, in MB."""
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes on macOS, kilobytes on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def table(report: Report) -> str:
    """Format the report as a table for a terminal."""
    single, batch, image = report.single_image_ms, report.batch, report.image
    version = f" {report.version}" if report.version else ""
    rows = [
        ("encoder", f"{report.name}{version}, {report.variant} ({report.encoder[:12]})"),
        ("processor", f"{report.cpu}, {counted(report.cores, 'core')}"),
        ("runs on", f"{', '.join(report.providers)}, {counted(report.threads, 'thread')}"),
        ("load", f"{report.load_ms:,.0f} ms"),
        ("one image", f"p50 {single.p50:.2f} ms   p95 {single.p95:.2f} ms   p99 {single.p99:.2f} ms"),
        ("", f"{counted(single.runs, 'run')}, from {image.width} x {image.height} {image.format} bytes to vector"),
        (f"batches of {batch.size}", f"{batch.images_per_second:,.1f} images/s"),
        ("peak memory", f"{report.peak_rss_mb:,.0f} MB"),
    ]
    return "\n".join(f"{name:14}{value}".rstrip() for name, value in rows)
