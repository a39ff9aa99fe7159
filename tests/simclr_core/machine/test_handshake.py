"""Processes that meet, differ, fail or do not come: each ends with a sentence, and none waits for long."""

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from simclr_core import launch
from simclr_core.errors import DatasetError, DeviceError, LaunchError, SimclrError
from simclr_core.launch import Member
from simclr_core.machine import handshake
from simclr_core.machine.handshake import Said, describe_difference, meet, shortened
from simclr_core.machine.place import Place
from simclr_core.machine.settings import START_SECONDS
from tests.processes import call
from tests.processes.busy import stretched
from tests.sentences import assert_plain

Acts = Callable[[Member], object]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


replace = pytest.MonkeyPatch().setattr  # for good: the processes end with the test


class Work(NamedTuple):
    facts: Mapping[str, object]


STAGE, FACTS = ["linear_eval"], {"data/prepared": "ab" * 32, "linear_eval.seed": 0}  # of this process


def join(folder: Path, environment: Mapping[str, str], before: Callable[[], object] | None, act: Acts) -> None:
    """As a process that a launcher has started: what it returns or raises, and the seconds that it took."""
    os.environ.update(environment, GLOO_SOCKET_IFNAME="lo", OMP_NUM_THREADS="1")
    replace(handshake, "GRACE", 1.0)
    began = time.monotonic()
    if before is not None:
        before()
    try:
        with launch.member(STAGE[0], lambda _: Work(FACTS)) as (member, _):
            said: object = act(member)
    except (SimclrError, RuntimeError) as error:
        said = f"{type(error).__name__}: {error}"
    file = folder / f"{environment['RANK']}.json"
    file.write_text(json.dumps((said, time.monotonic() - began)))


@pytest.fixture
def in_a_group(tmp_path: Path) -> Callable[..., list[Any]]:
    """What two processes say that join by ``launch.member``, within ten seconds; None for one that was ended.

    ``before`` and ``acts`` are by rank, functions at the top of this file.
    """

    def run(acts: Sequence[Acts], before: Mapping[int, Callable[[], object]], **rank_one: str) -> list[Any]:
        common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        common[START_SECONDS] = "20"
        processes = []
        for rank, act in enumerate(acts):
            own = {**common, "RANK": str(rank), "LOCAL_RANK": str(rank), **(rank_one if rank else {})}
            called = partial(join, tmp_path, own, before.get(rank), act)
            processes.append(call.start(tmp_path / f"call-{rank}", called))
        for process in processes:
            process.wait(stretched(40))
        files = [tmp_path / f"{rank}.json" for rank in range(len(acts))]
        found = [json.loads(file.read_text()) if file.exists() else (None, 0.0) for file in files]
        assert max(seconds for _, seconds in found) < stretched(10)
        return [said for said, _ in found]

    return run


def look_around(member: Member) -> object:
    return [member.gathered(member.rank), member.from_first(member.rank), torch.distributed.get_backend()]


def never(_: Member) -> object:
    raise AssertionError("it works on something else than the other one")


def wait_long(member: Member) -> object:
    threading.Event().wait(60)
    return "has waited"


def fail(member: Member) -> object:
    raise DatasetError("data/prepared: does not exist")


def be_another_version() -> None:
    replace(handshake, "version", lambda name: "0.0.9")


def be_another_stage() -> None:
    STAGE[0] = "finetune-0.1"
    FACTS.update({"data/prepared": "cd" * 32, "linear_eval.seed": 7})


def have_an_old_driver() -> None:
    def refuse(local_rank: int) -> torch.device:
        raise DeviceError("/dev/nvidia0 is there, but CUDA does not start")

    replace(launch, "choose_device", refuse)


@pytest.mark.seconds
def test_processes_meet(in_a_group: Callable[..., list[Any]]) -> None:
    assert in_a_group([look_around, look_around], {}) == [[[0, 1], 0, "gloo"]] * 2


@pytest.mark.seconds
@pytest.mark.parametrize(
    ("before", "environment", "said"),
    [
        ({1: be_another_version}, {}, "simclr-pipeline is "),
        ({}, {"WORLD_SIZE": "3"}, "the number of processes is 2 on rank 0 ("),
    ],
    ids=["versions", "numbers"],
)
def test_processes_of_two_kinds_say_the_same_sentence(
    before: Mapping[int, Callable[[], object]],
    environment: dict[str, str],
    said: str,
    in_a_group: Callable[..., list[Any]],
) -> None:
    first, second = in_a_group([look_around, look_around], before, **environment)
    assert first == second
    assert first.startswith(f"GroupError: the processes do not belong together: {said}")
    assert " on rank 1 (" in first
    assert_plain(first)


@pytest.mark.seconds
def test_no_process_works_before_all_have_the_same(in_a_group: Callable[..., list[Any]]) -> None:
    first, second = in_a_group([never, never], {1: be_another_stage})
    assert first == second
    here, there = (f"on rank {rank} ({socket.gethostname()})" for rank in (0, 1))
    assert first.startswith(
        "GroupError: the 2 processes would not work on the same thing: "
        f"the stage is linear_eval {here}, finetune-0.1 {there}; "
        f"data/prepared is abababababab {here}, cdcdcdcdcdcd {there}; linear_eval.seed is 0 {here}, 7 {there}; "
        "give every machine the same params.yaml, data/prepared, models and packages"
    )
    assert_plain(first)


@pytest.mark.seconds
def test_one_that_fails_is_named_by_one_that_waits_for_it(in_a_group: Callable[..., list[Any]]) -> None:
    first, second = in_a_group([look_around, fail], {})
    assert second == "DatasetError: data/prepared: does not exist"
    assert first.startswith("GroupError: rank 1 on ")
    assert first.endswith("has failed, and this process with it: data/prepared: does not exist")


@pytest.mark.seconds
def test_one_that_fails_ends_one_that_cannot_hear_of_it(in_a_group: Callable[..., list[Any]]) -> None:
    """As in a collective of NCCL, which no exception interrupts."""
    assert in_a_group([wait_long, fail], {}) == [None, "DatasetError: data/prepared: does not exist"]


@pytest.mark.seconds
def test_a_device_that_one_cannot_use_ends_both(in_a_group: Callable[..., list[Any]]) -> None:
    first, second = in_a_group([look_around, look_around], {1: have_an_old_driver})
    assert first is None
    assert second == "DeviceError: /dev/nvidia0 is there, but CUDA does not start"


@pytest.mark.seconds
@pytest.mark.parametrize(("rank", "said"), [(1, "rank 0 does not answer"), (0, "not all others have come to rank 0")])
def test_one_that_is_alone_says_so_in_time(rank: int, said: str) -> None:
    port, began = free_port(), time.monotonic()
    with pytest.raises(LaunchError) as caught:
        meet(Place(rank, 2, 0, "127.0.0.1", port), 1)
    assert f"rank {rank} of 2 processes, on {socket.gethostname()}: {said} at 127.0.0.1:{port} within 1 s" in str(
        caught.value
    )
    assert time.monotonic() - began < stretched(10)


def test_two_processes_with_one_gpu_are_refused() -> None:
    with pytest.raises(
        LaunchError, match="ranks 0 and 2 on a have the same GPU, GPU-1; start one process for each GPU"
    ):
        handshake._require_own_gpus([Said(0, "a", {}, "GPU-1"), Said(1, "b", {}, "GPU-1"), Said(2, "a", {}, "GPU-1")])
    handshake._require_own_gpus([Said(0, "a", {}), Said(1, "a", {})])


def test_a_difference_names_each_value_and_who_has_it() -> None:
    everyone = [Said(0, "a", {"x": "1", "y": "2"}), Said(1, "b", {"x": "1", "y": "3"}), Said(2, "b", {"x": "1"})]
    assert describe_difference(everyone) == "y is 2 on rank 0 (a), 3 on rank 1 (b), unknown on rank 2 (b)"
    assert describe_difference(everyone[:1] * 3) is None
    many = [Said(rank, "a", {name: str(rank) for name in "abcde"}) for rank in range(2)]
    assert (describe_difference(many) or "").endswith("; and 2 more")


def test_a_hash_is_shortened_and_a_number_is_not() -> None:
    assert shortened("ab" * 32) == "abababababab"
    assert shortened(0.1) == "0.1"
