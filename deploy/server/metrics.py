"""Counters and histograms in the text format of Prometheus (version 0.0.4), and statistics of a model.

The metrics of the process have the names that Prometheus' client libraries give them.
"""

import math
import os
import re
import resource
import threading
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
IMAGES = (1, 2, 4, 8, 16, 32, 64)

Labels = tuple[tuple[str, str], ...]


class Family(NamedTuple):
    kind: str
    help: str
    buckets: tuple[float, ...] = ()


FAMILIES = {
    "simclr_requests_total": Family(
        "counter", "Requests, by route and status class; a client that left (499) counts as 4xx."
    ),
    "simclr_connections_refused_total": Family("counter", "Connections closed before a request, by reason."),
    "simclr_images_total": Family("counter", "Images, by outcome: ok, or the reason of the error."),
    "simclr_model_changes_total": Family(
        "counter",
        "New models, by outcome: changed, refused, or failed, which is tried again; revoked: no key vouches for it.",
    ),
    "simclr_reloads_total": Family("counter", "Changed files of tokens or certificate, by outcome: changed or failed."),
    "simclr_background_failures_total": Family(
        "counter", "Unforeseen failures of a thread in the background, which continues; see the log."
    ),
    "simclr_watch_age_seconds": Family(
        "gauge", "Seconds since registry, tokens, certificate, and trusted keys were last looked at."
    ),
    "simclr_request_seconds": Family("histogram", "Time from the head of a request to its answer, by route.", SECONDS),
    "simclr_queue_seconds": Family("histogram", "Time that an image waited for a thread.", SECONDS),
    "simclr_decode_seconds": Family("histogram", "Time to decode and resize an image.", SECONDS),
    "simclr_infer_seconds": Family("histogram", "Time of one run of the model.", SECONDS),
    "simclr_batch_images": Family("histogram", "Images in one run of the model.", IMAGES),
    "simclr_waiting_images": Family("gauge", "Images admitted and not yet answered."),
    "simclr_held_bytes": Family("gauge", "Bytes of request bodies in memory."),
    "simclr_decoding_bytes": Family("gauge", "Memory of the large images that are decoded now."),
    "simclr_ready": Family(
        "gauge", "1 if the server accepts requests; 0 during shutdown, or while no key vouches for the model."
    ),
    "simclr_model_info": Family("gauge", "1 for the current model."),
    "simclr_model_behind": Family("gauge", "1 if CURRENT names a model that is not served, by state; 0 otherwise."),
    "simclr_certificate_expires_seconds": Family(
        "gauge", "Seconds until the first certificate of the served chain expires, negative afterwards."
    ),
    "process_cpu_seconds_total": Family("counter", "Total user and system CPU time spent in seconds."),
    "process_virtual_memory_bytes": Family("gauge", "Virtual memory size in bytes."),
    "process_resident_memory_bytes": Family("gauge", "Resident memory size in bytes."),
    "process_start_time_seconds": Family("gauge", "Start time of the process since unix epoch in seconds."),
    "process_open_fds": Family("gauge", "Number of open file descriptors."),
    "process_max_fds": Family("gauge", "Maximum number of open file descriptors."),
    "process_threads": Family("gauge", "Number of threads."),
}


class _Histogram:
    def __init__(self, buckets: tuple[float, ...]) -> None:
        self.counts = [0] * (len(buckets) + 1)
        self.sum = 0.0


class Metrics:
    """Counters, histograms and ages of the families in FAMILIES. Safe to use from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters: dict[tuple[str, Labels], int] = defaultdict(int)
        self._histograms: dict[tuple[str, Labels], _Histogram] = {}
        self._marks: dict[tuple[str, Labels], float] = {}

    def count(self, name: str, **labels: str) -> None:
        with self._lock:
            self._counters[name, tuple(labels.items())] += 1

    def observe(self, name: str, value: float, **labels: str) -> None:
        buckets, key = FAMILIES[name].buckets, (name, tuple(labels.items()))
        with self._lock:
            histogram = self._histograms.setdefault(key, _Histogram(buckets))
            histogram.counts[bisect_left(buckets, value)] += 1
            histogram.sum += value

    def mark(self, name: str, **labels: str) -> None:
        """Let a gauge show the seconds since now."""
        with self._lock:
            self._marks[name, tuple(labels.items())] = time.monotonic()

    def text(self, gauges: Iterable[tuple[str, Labels, float]]) -> str:
        """Return every sample in text format, including the given current values of the gauges."""
        samples: dict[str, list[str]] = defaultdict(list)
        with self._lock:
            for (name, labels), value in self._counters.items():
                samples[name].append(_sample(name, labels, value))
            for (name, labels), histogram in self._histograms.items():
                samples[name] += _histogram_samples(name, labels, histogram)
            for (name, labels), moment in self._marks.items():
                samples[name].append(_sample(name, labels, time.monotonic() - moment))
        for name, labels, gauge in gauges:
            samples[name].append(_sample(name, labels, gauge))
        lines = []
        for name, family in FAMILIES.items():
            lines += [f"# HELP {name} {family.help}", f"# TYPE {name} {family.kind}", *samples[name]]
        return "\n".join(lines) + "\n"


def process_samples(proc: Path = Path("/proc")) -> list[tuple[str, Labels, float]]:
    """Return the current values of the metrics of this process; none on a system without /proc."""
    try:
        stat = (proc / "self/stat").read_text(encoding="utf-8", errors="replace")
        boot = re.search(r"^btime (\d+)$", (proc / "stat").read_text(encoding="utf-8"), re.MULTILINE)
        files = len(list((proc / "self/fd").iterdir()))
    except OSError:
        return []
    assert boot
    fields = ["", "", *stat.rpartition(")")[2].split()]  # without the name, which may hold spaces and parentheses
    user, system, threads, started, virtual, pages = (int(fields[number - 1]) for number in (14, 15, 20, 22, 23, 24))
    ticks, most = os.sysconf("SC_CLK_TCK"), resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    values: dict[str, float] = {
        "process_cpu_seconds_total": (user + system) / ticks,
        "process_virtual_memory_bytes": virtual,
        "process_resident_memory_bytes": pages * resource.getpagesize(),
        "process_start_time_seconds": int(boot[1]) + started / ticks,
        "process_open_fds": files,
        "process_max_fds": math.inf if most == resource.RLIM_INFINITY else most,
        "process_threads": threads,
    }
    return [(name, (), value) for name, value in values.items()]


@dataclass
class Duration:
    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.seconds += seconds


@dataclass
class Statistics:
    """What a model has done. Safe to use from many threads.

    Attributes:
        stages: by the name of what took the time: success and fail of whole requests; of single images queue, for each
            wait, and compute_input, the decoding; compute_infer of runs.
        runs: of the model, by the number of images.
        last: when the last run ended, in seconds of ``time.time``.
    """

    stages: dict[str, Duration] = field(default_factory=dict)
    runs: dict[int, Duration] = field(default_factory=dict)
    last: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, stage: str, seconds: float) -> None:
        with self._lock:
            self.stages.setdefault(stage, Duration()).add(seconds)

    def add_run(self, images: int, seconds: float) -> None:
        with self._lock:
            self.stages.setdefault("compute_infer", Duration()).add(seconds)
            self.runs.setdefault(images, Duration()).add(seconds)
            self.last = time.time()

    @contextmanager
    def request(self) -> Iterator[None]:
        """Time a request, as success or fail."""
        began = time.perf_counter()
        try:
            yield
        except BaseException:
            self.add("fail", time.perf_counter() - began)
            raise
        self.add("success", time.perf_counter() - began)

    def snapshot(self) -> "Statistics":
        with self._lock:
            return Statistics(
                {stage: replace(duration) for stage, duration in self.stages.items()},
                {images: replace(duration) for images, duration in self.runs.items()},
                self.last,
            )


def _histogram_samples(name: str, labels: Labels, histogram: _Histogram) -> list[str]:
    lines, total = [], 0
    for bound, count in zip((*map(str, FAMILIES[name].buckets), "+Inf"), histogram.counts, strict=True):
        total += count
        lines.append(_sample(f"{name}_bucket", (*labels, ("le", bound)), total))
    return [*lines, _sample(f"{name}_sum", labels, histogram.sum), _sample(f"{name}_count", labels, total)]


def _sample(name: str, labels: Labels, value: float) -> str:
    inner = ",".join(f'{key}="{_escape(text)}"' for key, text in labels)
    return f"{name}{{{inner}}} {value}" if inner else f"{name} {value}"


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
