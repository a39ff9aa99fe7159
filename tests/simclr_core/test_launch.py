"""One command, several processes: they start together, stop together, and no one is left behind."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import psutil
import pytest
import torch
from torch.distributed.elastic.multiprocessing import SignalException

from simclr_core import launch
from simclr_core.errors import LaunchError
from simclr_core.launch import Member, StopRequest
from simclr_core.machine import settings
from tests.processes.alive import is_alive
from tests.processes.busy import stretched
from tests.repetitions import repeated, repetitions
from tests.simclr_core.conftest import configure

DEADLINE = 90  # seconds; a busy machine takes a while to import torch three times


JOINED = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*JOINED, settings.PROCESSES):
        monkeypatch.delenv(name, raising=False)


def see(monkeypatch: pytest.MonkeyPatch, gpus: int) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)


def test_machines_that_have_not_met_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where SIMCLR_NODE is forgotten: each takes itself for number 0."""

    def alone(*_: object) -> Callable[..., None]:
        def meet(*_: object) -> None:
            raise torch.distributed.DistStoreError("Timed out after 61 seconds.\n1/2 clients joined.")

        return meet

    monkeypatch.setattr(launch, "elastic_launch", alone)
    monkeypatch.setattr(launch.logging, "disable", lambda: None)
    for variable in ("OMP_NUM_THREADS", settings.LAUNCHER):
        monkeypatch.setenv(variable, "1")
    with pytest.raises(LaunchError, match=r"^machine 0 of 2 has not met the others at a:1 .* SIMCLR_NODE, 0 to 1"):
        launch.launch(1, ["pretrain"], launch.Nodes(2, 0, "a:1"))
    with pytest.raises(torch.distributed.DistStoreError):
        launch.launch(2, ["pretrain"])


@pytest.mark.parametrize(("gpus", "given", "expected"), [(0, None, 1), (0, "3", 3), (4, None, 4), (4, "2", 2)])
def test_one_process_per_gpu_or_the_requested_number(
    monkeypatch: pytest.MonkeyPatch, gpus: int, given: str | None, expected: int
) -> None:
    see(monkeypatch, gpus)
    if given is not None:
        monkeypatch.setenv(settings.PROCESSES, given)
    assert launch.processes() == expected
    monkeypatch.setenv("SIMCLR_DEVICE", "cpu")
    assert launch.processes() == int(given or 1)
    for name, value in JOINED.items():  # under a launcher, ours or another, nothing more is started
        monkeypatch.setenv(name, value)
    assert launch.processes() == 1


@pytest.mark.parametrize(("gpus", "given"), [(0, "0"), (0, "two"), (0, "-1"), (0, ""), (2, "3")])
def test_a_nonsensical_number_is_refused_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, gpus: int, given: str
) -> None:
    see(monkeypatch, gpus)
    monkeypatch.setenv(settings.PROCESSES, given)
    with pytest.raises(LaunchError, match=f"SIMCLR_PROCESSES='?{given}"):
        launch.processes()


class Nothing(NamedTuple):
    facts: Mapping[str, object] = MappingProxyType({})


def read_nothing(_: torch.device) -> Nothing:
    return Nothing()


def test_one_process_alone_has_no_process_group() -> None:
    with launch.member("work", read_nothing) as (member, _):
        assert (member.rank, member.size) == (0, 1)
        assert not torch.distributed.is_initialized()


def test_no_stage_enters_a_group_without_having_agreed() -> None:
    package = Path(launch.__file__).parent
    entrances = re.compile(r"\binit_process_group\(|launch\._joined")
    found = [path.name for path in package.rglob("*.py") if entrances.search(path.read_text(encoding="utf-8"))]
    assert found == ["launch.py"]


def test_what_another_tool_left_is_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("RANK", "0")
    with launch.member("work", read_nothing) as (member, _):
        assert (member.rank, member.size) == (0, 1)
    assert "RANK=0 in the environment, but nothing has started several processes" in caplog.text


@pytest.mark.parametrize(("ours", "said"), [(True, "the launcher (SIMCLR_LAUNCHER), has ended"), (False, "")])
def test_a_process_ends_with_the_launcher_that_started_it(
    ours: bool, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ours may have ended before the process could join. A run of torchrun may have any name."""
    for name, value in {**JOINED, "TORCHELASTIC_RUN_ID": f"simclr-{os.getpid()}"}.items():
        monkeypatch.setenv(name, value)
    if ours:
        monkeypatch.setenv(launch.LAUNCHER, str(os.getpid()))  # not the parent of this process
    asked: list[int] = []
    monkeypatch.setattr(launch, "die_with", asked.append)
    monkeypatch.setattr(launch, "meet", _stop)
    with pytest.raises(InterruptedError), launch.member("work", read_nothing):
        pass
    assert asked == [os.getpid() if ours else os.getppid()]
    assert said in capsys.readouterr().err


def _stop(*_: object) -> None:
    raise InterruptedError


def agree(rank: int) -> int:
    with StopRequest() as stop:
        if rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return int(stop.agreed(Member(rank, 2, torch.device("cpu"))))


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_after_the_same_step(on_ranks: Callable[..., list[Any]]) -> None:
    assert on_ranks(2, agree) == [signal.SIGTERM, signal.SIGTERM]


ALONE = Member(0, 1, torch.device("cpu"))


def test_sigterm_is_one_request_however_often_it_comes() -> None:
    with StopRequest() as stop:
        for _ in range(20):
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.agreed(ALONE) == signal.SIGTERM
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.agreed(ALONE) == signal.SIGTERM


def test_the_second_ctrl_c_ends_the_process() -> None:
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.agreed(ALONE) == signal.SIGINT
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(
    ("sent", "raised", "first"),
    [
        ([signal.SIGTERM] * 3, 1, signal.SIGTERM),
        ([signal.SIGTERM, signal.SIGINT, signal.SIGTERM], 1, signal.SIGTERM),
        ([signal.SIGINT, signal.SIGTERM], 1, signal.SIGINT),
        ([signal.SIGINT, signal.SIGINT], 2, signal.SIGINT),
        ([signal.SIGTERM, signal.SIGINT, signal.SIGINT], 2, signal.SIGTERM),
    ],
)
def test_the_launcher_asks_once_and_ends_at_the_second_ctrl_c(
    sent: list[signal.Signals], raised: int, first: signal.Signals
) -> None:
    signals, asked = launch._Signals(), []
    for number in sent:
        try:
            signals.note(number, None)
        except SignalException as request:
            asked.append(request.sigval)
    assert asked == [signal.SIGTERM] * raised  # what the processes are sent
    assert signals.first == first


class Training:
    """``python -m simclr_core pretrain`` in two processes, and what it says."""

    def __init__(self, workspace: Path, **environment: str) -> None:
        self.workspace = workspace
        command = [sys.executable, "-m", "simclr_core", "--workspace", str(workspace), "pretrain"]
        variables = {**os.environ, settings.PROCESSES: "2", "SIMCLR_EVENTS": str(workspace / "events"), **environment}
        self.launcher = subprocess.Popen(
            command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def wait(self) -> int:
        self.output, self.errors = self.launcher.communicate(timeout=stretched(DEADLINE))
        return self.launcher.returncode

    def is_training(self) -> list[psutil.Process]:
        """Wait for the first epoch; the two processes that train."""
        events = self.workspace / "events"
        until(lambda: (events.exists() and '"progress"' in events.read_text()) or self.launcher.poll() is not None)
        assert self.launcher.poll() is None, self.launcher.communicate()
        workers = [child for child in psutil.Process(self.launcher.pid).children() if "pretrain" in child.cmdline()]
        assert len(workers) == 2
        return workers


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + stretched(DEADLINE)
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def endless(prepared: Path) -> Path:
    """A workspace whose training would take far longer than a test."""
    configure(prepared, epochs=10_000)
    return prepared


@pytest.fixture
def train() -> Iterator[Callable[..., Training]]:
    started: list[Training] = []

    def start(workspace: Path, **environment: str) -> Training:
        started.append(Training(workspace, **environment))
        return started[-1]

    yield start
    for training in started:
        training.launcher.kill()
        training.launcher.wait()


def weights(workspace: Path) -> bytes:
    return (workspace / "models" / "pretrained" / "encoder.safetensors").read_bytes()


@pytest.mark.slow
def test_two_processes_train_and_after_sigkill_of_one_resume_to_the_same_bytes(
    prepared: Path, train: Callable[..., Training]
) -> None:
    whole = train(prepared)
    assert whole.wait() == 0, whole.errors
    assert [line.split(":")[0] for line in whole.output.splitlines()] == ["epoch 1/2", "epoch 2/2"]  # said once
    undisturbed = weights(prepared)
    assert json.loads((prepared / "reports" / "pretrain.json").read_text())["steps"] == 12

    (prepared / "models" / "pretrained" / "encoder.safetensors").unlink()
    killed = train(prepared, SIMCLR_FAILPOINT="pretrain.step:kill@8")
    assert killed.wait() == 128 + signal.SIGKILL
    assert killed.errors.splitlines()[-1].endswith(
        "was killed by SIGKILL; the same command continues from the last checkpoint"
    )
    resumed = train(prepared)
    assert resumed.wait() == 0, resumed.errors
    assert re.search(r"continuing from step [46]\b", resumed.errors)  # the sixth was being written
    assert weights(prepared) == undisturbed


def steps(workspace: Path) -> list[int]:
    """Those of the checkpoints."""
    return sorted(int(path.name[-8:]) for path in (workspace / ".simclr" / "runs").glob("*/step-*"))


def assert_saved(training: Training, workers: list[psutil.Process], asked: float) -> None:
    assert training.wait() == 128 + signal.SIGTERM
    assert time.monotonic() - asked < stretched(10)
    assert not any(worker.is_running() for worker in workers)
    assert "the same command continues from there" in training.errors


@pytest.mark.slow
def test_sigterm_to_the_launcher_saves_and_leaves_no_process(endless: Path, train: Callable[..., Training]) -> None:
    training = train(endless)
    workers, asked = training.is_training(), time.monotonic()
    training.launcher.terminate()
    assert_saved(training, workers, asked)
    assert len(steps(endless)) == 2


@repeated
@pytest.mark.slow
@pytest.mark.timeout(repetitions(300, 1800))
def test_sigterm_to_every_process_at_once_saves_each_time(endless: Path, train: Callable[..., Training]) -> None:
    """As systemd and Slurm send it, and again: in another order each time, to the training that the last one left."""
    before, events = 0, endless / "events"
    for turn in range(repetitions(2, 20)):
        events.unlink(missing_ok=True)
        training = train(endless)
        workers = training.is_training()
        everyone, asked = [*workers, training.launcher], time.monotonic()
        for process in everyone[turn % 3 :] + everyone[: turn % 3] + everyone:
            with suppress(psutil.NoSuchProcess):
                process.terminate()
        assert_saved(training, workers, asked)
        saved = steps(endless)
        assert saved[-1] > before, turn
        before = saved[-1]


@pytest.mark.slow
def test_sigkill_of_the_launcher_leaves_no_process(endless: Path, train: Callable[..., Training]) -> None:
    training = train(endless)
    workers = training.is_training()
    training.launcher.kill()
    training.wait()
    until(lambda: not any(is_alive(worker.pid) for worker in workers))


@pytest.mark.slow
def test_an_error_of_every_process_is_reported_once_in_one_line(prepared: Path, train: Callable[..., Training]) -> None:
    configure(prepared, micro_batch_size=16)
    training = train(prepared)
    assert training.wait() == 2
    policy, line = training.errors.splitlines()
    assert policy.startswith("OpenMP threads ")
    assert line.startswith("error: pretrain.micro_batch_size is 16, but each of 2 processes has 8")
