"""Decoding threads and inference threads. Clients take turns, one image at a time."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from deploy.errors import ImageError
from deploy.images.full_depth import Samples
from deploy.server import background
from deploy.server.limits import BYTES_PER_PIXEL, Limits
from deploy.server.metrics import Metrics
from deploy.server.models import Model

LARGE_PIXELS = 1_000_000
"""Larger images have separate decoding threads, so that small ones never wait for them."""

Image = bytes | Samples | ImageError
"""An encoded image, pixels [size, size, channels] that are ready for the model, or the reason why there are none."""

Result = NDArray[np.float32] | ImageError


@dataclass(eq=False)
class Job:
    """The images of one request, and their results: raw features float32 [dim], or an ImageError.

    The engine calls ``on_finished`` once, from one of its threads, when every image has a result or an internal
    ``error`` occurred. Set ``abandoned`` when the client no longer needs the results.
    """

    model: Model
    client: str
    images: list[Image]
    on_finished: Callable[[], object]
    results: list[Result] = field(default_factory=list)
    error: Exception | None = None
    abandoned: bool = False
    large: int = 0  # images that were found to be large so far
    _missing: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._missing = len(self.images)
        self.results = [ImageError("io_error", "not processed")] * self._missing

    @property
    def is_finished(self) -> bool:
        """Whether every image has a result."""
        return not self._missing

    def resolve(self, position: int, result: Result) -> None:
        with self._lock:
            self.results[position] = result
            self._missing -= 1
            complete = self._missing == 0 and self.error is None
        if complete:
            self.on_finished()

    def count_large(self) -> None:
        with self._lock:
            self.large += 1

    def fail(self, error: Exception) -> None:
        with self._lock:
            first, self.error = self.error is None and self._missing > 0, self.error or error
            self.abandoned = True
        if first:
            self.on_finished()


class Item(NamedTuple):
    job: Job
    position: int
    image: Image
    since: float
    """When it began to wait, in seconds of ``time.perf_counter``."""


class FairQueue:
    """A queue in which clients take turns, and so do the requests of one client.

    A request with one image waits one turn for a request with many, and one turn for a client with many requests.
    """

    def __init__(self) -> None:
        self._clients: dict[str, dict[Job, deque[Item]]] = {}  # both in the order of the turns
        self._changed = threading.Condition()
        self._closed = False

    def put(self, items: list[Item]) -> None:
        with self._changed:
            for item in items:
                self._clients.setdefault(item.job.client, {}).setdefault(item.job, deque()).append(item)
            self._changed.notify(len(items))

    @property
    def is_empty(self) -> bool:
        return not self._clients

    def wait(self) -> bool:
        """Wait for an item, which another thread may take first; return whether the queue is still open."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._clients)
            return not self._closed

    def take(self, most: int) -> list[Item]:
        """Return up to ``most`` items for the same model: none if nothing waits, or once the queue is closed."""
        taken: list[Item] = []
        with self._changed:
            while self._clients and not self._closed and len(taken) < most:
                client, jobs = next(iter(self._clients.items()))
                job, items = next(iter(jobs.items()))
                if taken and job.model is not taken[0].job.model:
                    break
                taken.append(items.popleft())
                del self._clients[client], jobs[job]  # what is left goes to the end of both orders
                if items:
                    jobs[job] = items
                if jobs:
                    self._clients[client] = jobs
        return taken

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class DecodingMemory:
    """Memory for the large images that are decoded at the same time, in order; one image is always allowed."""

    def __init__(self, limit: int) -> None:
        """``limit`` is in bytes."""
        self._limit, self.held = limit, 0
        self._line, self._changed = threading.Lock(), threading.Condition()

    @contextmanager
    def hold(self, pixels: int) -> Iterator[None]:
        """Wait until there is memory for this number of pixels, and hold it during the block."""
        size = pixels * BYTES_PER_PIXEL
        with self._line, self._changed:  # the first in the line waits for memory, the others for the first
            self._changed.wait_for(lambda: not self.held or self.held + size <= self._limit)
            self.held += size
        try:
            yield
        finally:
            with self._changed:
                self.held -= size
                self._changed.notify()


class Engine:
    """Decodes in ``decoders`` threads, large images in others of the same number; ``runs`` threads run the model.

    A thread that has decoded an image runs the model as well if nothing else waits: to wake another thread can take as
    long as a small model. A batch consists of the images of any requests, up to ``max_batch``, that wait when the model
    becomes free; no image waits for a batch to fill.
    """

    def __init__(self, metrics: Metrics, limits: Limits, decoders: int, max_batch: int = 1, runs: int = 1) -> None:
        self._metrics, self._max_pixels, self._max_batch = metrics, limits.pixels, max_batch
        self._decoders, self._runs = decoders, runs
        self._encoded, self._large, self._decoded = FairQueue(), FairQueue(), FairQueue()
        self.decoding = DecodingMemory(limits.decoding_bytes)
        self._model_free = threading.Semaphore(runs)
        self._decode_seconds, self._large_seconds, self._infer_seconds = 0.0, 0.0, 0.0
        # Daemon threads: an image that takes minutes to decode must not keep the process from exiting.
        targets: list[tuple[str, FairQueue, Callable[[], None]]] = [
            *[("infer", self._decoded, self._infer_next)] * runs,
            *[("decode", self._encoded, partial(self._decode_next, self._encoded, LARGE_PIXELS))] * decoders,
            *[("large", self._large, partial(self._decode_next, self._large, self._max_pixels))] * decoders,
        ]
        for name, queue, step in targets:
            background.start(name, metrics, queue.wait, step)

    @property
    def seconds_per_image(self) -> float:
        """Recent mean time from one result to the next while every thread is busy, for images that are not large."""
        return max(self._decode_seconds / self._decoders, self._infer_seconds / self._runs)

    @property
    def seconds_per_large_image(self) -> float:
        """The same for large images: one can take a hundred times what another does, and has separate threads."""
        return max(self._large_seconds / self._decoders, self._infer_seconds / self._runs)

    def submit(self, job: Job) -> None:
        now = time.perf_counter()
        items = [Item(job, position, image, now) for position, image in enumerate(job.images)]
        for queue, kind in ((self._encoded, bytes), (self._decoded, np.ndarray)):
            if chosen := [item for item in items if isinstance(item.image, kind)]:
                queue.put(chosen)
        for item in items:
            if isinstance(item.image, ImageError):
                self._resolve(item, item.image)

    def close(self) -> None:
        self._encoded.close()
        self._large.close()
        self._decoded.close()

    def _decode_next(self, queue: FairQueue, most: int) -> None:
        for item in queue.take(1):
            if not item.job.abandoned:
                self._decode(item, most)

    def _decode(self, item: Item, most: int) -> None:
        """Decode an image, or pass it on to the threads for large ones if it has over ``most`` pixels."""
        assert isinstance(item.image, bytes)
        self._observe_wait([item])
        try:
            model = item.job.model
            image = model.open(item.image, self._max_pixels)
            size = model.weight(image)
            if size > most:
                item.job.count_large()
                self._large.put([item._replace(since=time.perf_counter())])
                return
            with self.decoding.hold(size) if size > LARGE_PIXELS else nullcontext():
                started = time.perf_counter()
                pixels = model.pixels(image)
        except ImageError as error:  # without its traceback, which refers to this item and so keeps it in memory
            self._resolve(item, ImageError(error.reason, str(error)))
        except Exception as error:  # noqa: BLE001  the request fails; the thread must survive
            item.job.fail(error)
        else:
            done = time.perf_counter()
            self._metrics.observe("simclr_decode_seconds", done - started)
            item.job.model.statistics.add("compute_input", done - started)
            if size > LARGE_PIXELS:
                self._large_seconds = _update_mean(self._large_seconds, done - started)
            else:
                self._decode_seconds = _update_mean(self._decode_seconds, done - started)
            self._infer_or_queue(Item(item.job, item.position, pixels, done))

    def _infer_or_queue(self, item: Item) -> None:
        if self._encoded.is_empty and self._decoded.is_empty and self._model_free.acquire(blocking=False):
            try:
                self._infer([item])
            finally:
                self._model_free.release()
        else:
            self._decoded.put([item])

    def _infer_next(self) -> None:
        with self._model_free:  # before they are taken: what waits meanwhile is in the same batch
            taken = self._decoded.take(self._max_batch)
            if items := [item for item in taken if not item.job.abandoned]:
                self._infer(items)

    def _infer(self, items: list[Item]) -> None:
        started = self._observe_wait(items)
        try:
            features = items[0].job.model.features([item.image for item in items if isinstance(item.image, np.ndarray)])
            pairs = list(zip(items, features, strict=True))
        except Exception as error:  # noqa: BLE001  onnxruntime's errors have no common base class
            for item in items:
                item.job.fail(error)
            return
        seconds = time.perf_counter() - started
        self._metrics.observe("simclr_infer_seconds", seconds)
        items[0].job.model.statistics.add_run(len(items), seconds)
        self._infer_seconds = _update_mean(self._infer_seconds, seconds / len(items))
        self._metrics.observe("simclr_batch_images", len(items))
        for item, row in pairs:
            self._resolve(item, row)

    def _observe_wait(self, items: list[Item]) -> float:
        """Record how long the items waited, and return the current time."""
        now = time.perf_counter()
        for item in items:
            self._metrics.observe("simclr_queue_seconds", now - item.since)
            item.job.model.statistics.add("queue", now - item.since)
        return now

    def _resolve(self, item: Item, result: Result) -> None:
        self._metrics.count("simclr_images_total", outcome=result.reason if isinstance(result, ImageError) else "ok")
        item.job.resolve(item.position, result)


def _update_mean(before: float, now: float) -> float:
    """Update an exponential moving average; the last ten values have two thirds of the weight."""
    return now if before == 0.0 else 0.9 * before + 0.1 * now
