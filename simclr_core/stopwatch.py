"""Where the time of a training goes: every moment belongs to exactly one part, or to ``other``.

    with Stopwatch(device) as stopwatch:
        with part("forward"):
            ...
            with part("communication"):      # deep inside a loss that knows no stopwatch; "forward" stands still
                ...
        seconds = stopwatch.lap()            # {"forward": ..., "communication": ..., "other": ...}

``part`` finds the stopwatch that runs in its thread, and costs a microsecond; without one it does nothing. On a GPU
nothing waits inside a step: events are queued on the stream and read by ``lap``, so a part is what the stream spent in
it, idle or at work. (Written from CUDA's documentation; it has never run on a GPU.)

Communication is what the processor waits for: the gathers of the loss and, under gloo, BatchNorm's sums. The exchange
of gradients runs next to the backward pass, and DDP itself measures how much of it does not: see ``with_exchange``.
On GPUs what BatchNorm exchanges stays inside forward and backward: it would be a hundred events a step.
"""

import threading
from collections.abc import Iterator, Mapping
from time import perf_counter
from typing import Any, Self, TypeVar

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

PARTS = ("data", "augment", "forward", "backward", "communication", "watch", "other")

Item = TypeVar("Item")


class _End:
    pass


_END = _End()
_running = threading.local()  # .stopwatch: the one that counts in this thread


class Stopwatch:
    """Counts the time of the thread that entered it, on one device."""

    def __init__(self, device: torch.device) -> None:
        self._clock = _StreamClock() if device.type == "cuda" else _ProcessorClock()
        self._part = "other"

    def __enter__(self) -> Self:
        _running.stopwatch = self
        self.lap()
        return self

    def __exit__(self, *_: object) -> None:
        _running.stopwatch = None

    def turn(self, name: str) -> str:
        """From now on the time belongs to part ``name``; returns the part it belonged to."""
        assert name in PARTS, name
        before, self._part = self._part, name
        self._clock.charge(before)
        return before

    def lap(self) -> dict[str, float]:
        """Seconds of each of PARTS since the last lap; their sum is the time that has passed."""
        self._clock.charge(self._part)
        seconds = self._clock.read()
        return {name: seconds.get(name, 0.0) for name in PARTS}


class part:  # noqa: N801 (a context manager, of which a class is the cheapest kind)
    """``with part("forward"):`` charges to that part what no part inside it takes. Parts nest."""

    __slots__ = ("_before", "_name", "_stopwatch")

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        self._stopwatch: Stopwatch | None = getattr(_running, "stopwatch", None)
        if self._stopwatch is not None:
            self._before = self._stopwatch.turn(self._name)

    def __exit__(self, *_: object) -> None:
        if self._stopwatch is not None:
            self._stopwatch.turn(self._before)


def timed(name: str, items: Iterator[Item]) -> Iterator[Item]:
    """The same items; the wait for each belongs to part ``name``."""
    while True:
        with part(name):
            item = next(items, _END)
        if isinstance(item, _End):
            return
        yield item


def with_exchange(seconds: Mapping[str, float], model: nn.Module, steps: int) -> dict[str, float]:
    """A lap of ``steps`` steps, with DistributedDataParallel's exchange of gradients moved out of the backward pass.

    DDP's own count of what is not hidden by computation: from the first bucket's start to the last one's end, less the
    backward pass that ran meanwhile, a mean over the first ten steps of the process and every hundredth from then on.
    """
    ddp = find_data_parallel(model)
    if ddp is None:
        return dict(seconds)
    # No public way tells; a hook on the buckets would, and change how they are summed.
    counted: Mapping[str, Any] = ddp._get_ddp_logging_data()  # type: ignore[no-untyped-call]  # noqa: SLF001
    nanoseconds = counted.get("avg_backward_comm_time", 0) - counted.get("avg_backward_compute_comm_overlap_time", 0)
    exposed = min(max(0.0, float(nanoseconds) / 1e9 * steps), seconds["backward"])
    moved = {"backward": seconds["backward"] - exposed, "communication": seconds["communication"] + exposed}
    return {**seconds, **moved}


def find_data_parallel(model: nn.Module) -> DistributedDataParallel | None:
    """``model`` itself, or what torch.compile has wrapped; None where there is one process."""
    return next((one for one in model.modules() if isinstance(one, DistributedDataParallel)), None)


class _ProcessorClock:
    """Sums as it goes: nothing grows with the number of steps."""

    def __init__(self) -> None:
        self._last = perf_counter()
        self._seconds: dict[str, float] = {}

    def charge(self, name: str) -> None:
        now = perf_counter()
        self._seconds[name] = self._seconds.get(name, 0.0) + now - self._last
        self._last = now

    def read(self) -> dict[str, float]:
        seconds, self._seconds = self._seconds, {}
        return seconds


class _StreamClock:
    """Marks on the current stream, about ten a step, that are read when the stream has passed the last of them."""

    def __init__(self) -> None:
        self._marks = [("other", mark_stream())]

    def charge(self, name: str) -> None:
        self._marks.append((name, mark_stream()))

    def read(self) -> dict[str, float]:
        seconds: dict[str, float] = {}
        self._marks[-1][1].synchronize()
        for (_, start), (name, end) in zip(self._marks, self._marks[1:], strict=False):
            seconds[name] = seconds.get(name, 0.0) + start.elapsed_time(end) / 1000
        del self._marks[:-1]
        return seconds


def mark_stream() -> torch.cuda.Event:
    """A mark on the current stream: what is queued before it has been computed when the mark is reached."""
    mark = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    mark.record()
    return mark
