"""Both names of a call, on any torch; `make versions` runs all tests on the oldest and the newest."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.elastic.multiprocessing import api

from simclr_core import torch_calls


@pytest.mark.parametrize(("given", "taken"), [("all_gather_into_tensor", 1), ("all_gather_single", 2)])
def test_the_newer_name_is_taken_where_there_is_one(given: str, taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(number: int) -> Any:
        return lambda output, given: output.fill_(number)

    monkeypatch.setattr(dist, "all_gather_into_tensor", fill(1))
    monkeypatch.delattr(dist, "all_gather_single", raising=False)
    monkeypatch.setattr(dist, given, fill(taken), raising=False)
    output = torch.zeros(2)
    torch_calls.all_gather_single(output, torch.ones(1))
    assert output.tolist() == [taken] * 2


class Older(nn.Module):
    def __init__(
        self, module: nn.Module, *, gradient_as_bucket_view: bool = False, broadcast_buffers: bool = True
    ) -> None:
        super().__init__()
        self.given = (gradient_as_bucket_view, broadcast_buffers)


class Newer(nn.Module):
    def __init__(
        self,
        module: nn.Module,
        *,
        gradient_as_bucket_view: bool = False,
        broadcast_buffers: bool | None = None,
        forward_sync_buffers: bool | None = None,
    ) -> None:
        super().__init__()
        assert broadcast_buffers is None, "torch warns of this name"
        self.given = (gradient_as_bucket_view, forward_sync_buffers)


@pytest.mark.parametrize("version", [Older, Newer])
def test_the_buffers_are_not_exchanged(version: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_calls, "DistributedDataParallel", version)
    assert torch_calls.data_parallel(nn.Linear(1, 1)).given == (True, False)


def two_buffers(rank: int) -> Tensor:
    """A buffer after a step in training, before which the ranks had 0 and 1."""
    norm = nn.BatchNorm1d(1)
    network = torch_calls.data_parallel(norm)
    norm.running_mean.fill_(rank)
    network(torch.zeros(2, 1))
    return norm.running_mean


@pytest.mark.seconds
def test_each_rank_keeps_its_buffers(on_ranks: Any) -> None:
    """torch's default would replace those of rank 1 by those of rank 0."""
    first, second = on_ranks(2, two_buffers)
    assert float(second) > float(first) == 0


def test_a_launcher_without_a_time_limit_is_not_given_one(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass
    class Launcher:
        shutdown_timeout: int | None = None

    @dataclass
    class OlderLauncher:
        max_restarts: int = 0

    monkeypatch.setattr(torch_calls, "LaunchConfig", Launcher)
    assert torch_calls.shutdown_within(30) == {"shutdown_timeout": 30}
    monkeypatch.setattr(torch_calls, "LaunchConfig", OlderLauncher)
    assert torch_calls.shutdown_within(30) == {}


def test_the_launcher_of_torch_takes_another_handler_of_signals_and_gets_its_own_back() -> None:
    """The private name is still there: without it, torch's handler would raise again at every signal."""
    own = getattr(api, torch_calls.HANDLER)
    noted: list[int] = []
    with torch_calls.handling_signals_by(lambda number, _: noted.append(number)):
        getattr(api, torch_calls.HANDLER)(15, None)
    assert noted == [15]
    assert getattr(api, torch_calls.HANDLER) is own


def test_a_launcher_without_that_name_keeps_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(api, torch_calls.HANDLER)
    with torch_calls.handling_signals_by(lambda *_: None):
        assert not hasattr(api, torch_calls.HANDLER)
