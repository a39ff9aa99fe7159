"""Counters and histograms in the text format of Prometheus (version 0.0.4)."""

import threading
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable
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
        "counter", "New models, by outcome: changed, refused, or failed, which is tried again."
    ),
    "simclr_reloads_total": Family("counter", "Changed files of tokens or certificate, by outcome: changed or failed."),
    "simclr_request_seconds": Family("histogram", "Time from the head of a request to its answer, by route.", SECONDS),
    "simclr_queue_seconds": Family("histogram", "Time that an image waited for a thread.", SECONDS),
    "simclr_decode_seconds": Family("histogram", "Time to decode and resize an image.", SECONDS),
    "simclr_infer_seconds": Family("histogram", "Time of one run of the model.", SECONDS),
    "simclr_batch_images": Family("histogram", "Images in one run of the model.", IMAGES),
    "simclr_waiting_images": Family("gauge", "Images admitted and not yet answered."),
    "simclr_held_bytes": Family("gauge", "Bytes of request bodies in memory."),
    "simclr_decoding_bytes": Family("gauge", "Memory of the large images that are decoded now."),
    "simclr_ready": Family("gauge", "1 if the server accepts requests, 0 during shutdown."),
    "simclr_model_info": Family("gauge", "1 for the current model."),
    "simclr_model_behind": Family("gauge", "1 if CURRENT names a model that is not served, by state; 0 otherwise."),
}


class _Histogram:
    def __init__(self, buckets: tuple[float, ...]) -> None:
        self.counts = [0] * (len(buckets) + 1)
        self.sum = 0.0


class Metrics:
    """Counters and histograms of the families in FAMILIES. Safe to use from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters: dict[tuple[str, Labels], int] = defaultdict(int)
        self._histograms: dict[tuple[str, Labels], _Histogram] = {}

    def count(self, name: str, **labels: str) -> None:
        with self._lock:
            self._counters[name, tuple(labels.items())] += 1

    def observe(self, name: str, value: float, **labels: str) -> None:
        buckets, key = FAMILIES[name].buckets, (name, tuple(labels.items()))
        with self._lock:
            histogram = self._histograms.setdefault(key, _Histogram(buckets))
            histogram.counts[bisect_left(buckets, value)] += 1
            histogram.sum += value

    def text(self, gauges: Iterable[tuple[str, Labels, float]]) -> str:
        """Return every sample in text format, including the given current values of the gauges."""
        samples: dict[str, list[str]] = defaultdict(list)
        with self._lock:
            for (name, labels), value in self._counters.items():
                samples[name].append(_sample(name, labels, value))
            for (name, labels), histogram in self._histograms.items():
                samples[name] += _histogram_samples(name, labels, histogram)
        for name, labels, gauge in gauges:
            samples[name].append(_sample(name, labels, gauge))
        lines = []
        for name, family in FAMILIES.items():
            lines += [f"# HELP {name} {family.help}", f"# TYPE {name} {family.kind}", *samples[name]]
        return "\n".join(lines) + "\n"


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
