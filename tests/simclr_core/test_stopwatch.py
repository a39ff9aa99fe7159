"""Every second belongs to one part; counting is cheap, and on a GPU waits for nothing inside a step."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from simclr_core import stopwatch
from simclr_core.loss.nt_xent import nt_xent
from simclr_core.stopwatch import PARTS, Stopwatch, part, timed, with_exchange

CPU = torch.device("cpu")


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def pass_(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(stopwatch, "perf_counter", clock)
    return clock


def work(clock: Clock) -> None:
    clock.pass_(1)
    with part("forward"):
        clock.pass_(2)
        with part("communication"):
            clock.pass_(4)
        clock.pass_(8)
    with suppress(KeyError), part("backward"):
        clock.pass_(16)
        raise KeyError
    clock.pass_(32)


EXPECTED = {**dict.fromkeys(PARTS, 0.0), "other": 33, "forward": 10, "communication": 4, "backward": 16}


def test_a_part_inside_another_stops_it_and_the_rest_is_other(clock: Clock) -> None:
    clock.pass_(1000)
    with Stopwatch(CPU) as counted:
        for _ in range(2):
            work(clock)
            assert counted.lap() == EXPECTED
    work(clock)  # without a stopwatch: nothing happens
    with Stopwatch(CPU) as again:
        assert sum(again.lap().values()) == 0


def test_the_wait_for_an_item_is_charged_and_the_work_on_it_is_not(clock: Clock) -> None:
    def slow() -> Iterator[int]:
        for item in range(3):
            clock.pass_(1)
            with part("augment"):
                clock.pass_(2)
            yield item
        clock.pass_(4)

    with Stopwatch(CPU) as counted:
        seen = []
        for item in timed("data", slow()):
            clock.pass_(10)
            seen.append(item)
        assert seen == [0, 1, 2]
        assert counted.lap() == {**dict.fromkeys(PARTS, 0.0), "data": 7, "augment": 6, "other": 30}


def test_other_threads_are_not_timed(clock: Clock) -> None:
    def elsewhere() -> None:
        with part("augment"):
            clock.pass_(5)

    with Stopwatch(CPU) as counted, part("data"):
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert counted.lap()["data"] == 5


def test_counting_costs_less_than_a_hundredth_of_a_step_of_ten_milliseconds() -> None:
    """A step has about ten parts, and a hundred more where every BatchNorm of a ResNet-50 communicates."""

    def seconds_of_a_step() -> float:
        started = time.process_time()
        for _ in range(1000):
            with part("forward"):
                pass
        return (time.process_time() - started) / 1000 * 10

    with Stopwatch(CPU):
        assert min(seconds_of_a_step() for _ in range(5)) < 1e-4


class FakeEvent:
    """What is used of torch.cuda.Event, on a stream that runs behind the processor."""

    now = 0.0
    waits = 0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = FakeEvent.now

    def synchronize(self) -> None:
        FakeEvent.waits += 1

    def elapsed_time(self, end: "FakeEvent") -> float:
        return 1000 * (end.at - self.at)


def test_on_a_gpu_nothing_waits_before_the_lap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(FakeEvent, "waits", 0)
    stream = Clock()
    stream.pass_ = lambda seconds: setattr(FakeEvent, "now", FakeEvent.now + seconds)  # type: ignore[method-assign]
    with Stopwatch(torch.device("cuda")) as counted:
        for lap in (1, 2):
            before = FakeEvent.waits
            for _ in range(3):
                work(stream)
            assert FakeEvent.waits == before
            assert counted.lap() == {name: pytest.approx(3 * seconds) for name, seconds in EXPECTED.items()}
            assert FakeEvent.waits == lap + 1  # the first when the stopwatch was started


def test_without_ddp_there_is_no_exchange() -> None:
    seconds = {"backward": 3.0, "communication": 1.0}
    assert with_exchange(seconds, nn.Linear(2, 2), 10) == seconds


@pytest.mark.parametrize("wrapped", [False, pytest.param(True, marks=pytest.mark.seconds)])  # by torch.compile
def test_the_exposed_exchange_moves_from_backward_to_communication(
    wrapped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ddp = DistributedDataParallel.__new__(DistributedDataParallel)
    nn.Module.__init__(ddp)
    model = torch.compile(ddp) if wrapped else ddp
    counted = {"avg_backward_comm_time": 300_000_000, "avg_backward_compute_comm_overlap_time": 100_000_000}
    monkeypatch.setattr(DistributedDataParallel, "_get_ddp_logging_data", lambda _: counted)
    seconds = {"backward": 3.0, "communication": 1.0}
    assert with_exchange(seconds, model, 10) == pytest.approx({"backward": 1.0, "communication": 3.0})
    assert with_exchange(seconds, model, 100) == pytest.approx({"backward": 0.0, "communication": 4.0})


def steps(rank: int) -> dict[str, float]:
    model = DistributedDataParallel(nn.Linear(300, 300), gradient_as_bucket_view=True)
    views = torch.randn(8, 300)
    with Stopwatch(CPU) as counted:
        for _ in range(5):
            with part("forward"):
                loss = nt_xent(*model(views).chunk(2), 0.5)
            with part("backward"):
                torch.autograd.backward(loss)
        seconds = counted.lap()
    moved = with_exchange(seconds, model, 5)
    return {"gathers": seconds["communication"], "all": moved["communication"], "sum": sum(moved.values())} | {
        "wall": sum(seconds.values())
    }


@pytest.mark.slow
def test_two_ranks_count_the_gathers_of_the_loss_and_the_exchange(on_ranks: Callable[..., list[Any]]) -> None:
    for seconds in on_ranks(2, steps):
        assert 0 < seconds["gathers"] < seconds["all"] < seconds["wall"]
        assert seconds["sum"] == pytest.approx(seconds["wall"])
