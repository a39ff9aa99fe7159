"""A GPU makes a batch ahead on another stream; on a CPU nothing is made before it is asked for."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from simclr_core.data.side_stream import made_ahead


@dataclass
class Streams:
    """What ``torch.cuda`` is asked, in its order, and by which thread."""

    asked: list[tuple[str, ...]] = field(default_factory=list)
    entered: threading.local = field(default_factory=threading.local)

    def say(self, *words: str) -> None:
        self.asked.append(words)


class Stream:
    def __init__(self, streams: Streams, name: str) -> None:
        self._streams, self.name = streams, name

    def wait_stream(self, other: "Stream") -> None:
        self._streams.say(self.name, "waits for", other.name)

    def wait_event(self, event: str) -> None:
        self._streams.say(self.name, "waits for", event)

    def record_event(self) -> str:
        made = sum(words[1] == "made" for words in self._streams.asked)
        return f"event {made}"


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> Streams:
    found = Streams()

    @contextmanager
    def entered(stream: object) -> Iterator[None]:
        found.entered.stream = stream
        yield
        found.entered.stream = None

    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: Stream(found, "main"))
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: Stream(found, "side"))
    monkeypatch.setattr(torch.cuda, "stream", entered)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: setattr(found.entered, "device", device))
    monkeypatch.setattr(Tensor, "record_stream", lambda one, stream: found.say(stream.name, "keeps", str(int(one))))
    return found


def test_a_gpu_makes_one_ahead_on_another_stream(streams: Streams) -> None:
    main, second, device = threading.current_thread(), threading.Event(), torch.device("cuda", 3)

    def make(number: int) -> Tensor:
        assert threading.current_thread() is not main
        assert streams.entered.device == device
        streams.say(streams.entered.stream.name, "made", str(number))
        if number == 1:
            second.set()
        return torch.tensor(number)

    made = made_ahead(range(5), make, device)
    assert int(next(made)) == 0
    assert second.wait(timeout=60)  # without being asked for
    assert [int(one) for one in made] == [1, 2, 3, 4]
    assert streams.asked[0] == ("side", "waits for", "main")
    for number in range(5):
        order = [
            streams.asked.index(words)
            for words in (
                ("side", "made", str(number)),
                ("main", "waits for", f"event {number + 1}"),
                ("main", "keeps", str(number)),
            )
        ]
        assert order == sorted(order)


def test_a_cpu_makes_each_when_it_is_asked_for() -> None:
    asked: list[int] = []

    def make(number: int) -> Tensor:
        asked.append(number)
        return torch.tensor(number)

    made = made_ahead(range(3), make, torch.device("cpu"))
    assert int(next(made)) == 0
    assert asked == [0]
    assert [int(one) for one in made] == [1, 2]


def test_an_error_reaches_the_one_who_takes(streams: Streams) -> None:
    def make(number: int) -> Tensor:
        if number == 1:
            raise ValueError("the second")
        return torch.tensor(number)

    made = made_ahead(range(3), make, torch.device("cuda", 0))
    assert int(next(made)) == 0
    with pytest.raises(ValueError, match="the second"):
        next(made)
