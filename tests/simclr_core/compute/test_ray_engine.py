"""What the driver does when workers end, fail, are lost, or are asked to stop; the stage itself is a short script."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from deploy.errors import ClusterError
from simclr_core.compute import ray_engine, worker, workers
from simclr_core.compute.record import Ran
from simclr_core.compute.settings import Where
from tests.conftest import write_prepared
from tests.processes.busy import stretched
from tests.simclr_core.compute.fake_ray import FakeRay
from tests.simclr_core.conftest import results

Stage = Callable[..., int]
STAGE = """
import json, os, signal, sys, time
from pathlib import Path
from deploy.artifact import publish
workspace, rank, size = Path(sys.argv[2]), int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
runs = workspace / ".simclr" / "runs" / "key"
def save(step):
    with publish(runs / f"step-{step:08d}", replace=True) as work:
        (work / "training.json").write_text(str(step))
def event(**fields):
    with open(os.environ["SIMCLR_EVENTS"], "a") as file:
        file.write(json.dumps(fields) + chr(10))
def fail(message):
    Path(os.environ["TORCHELASTIC_ERROR_FILE"]).write_text(json.dumps({"message": message}))
    sys.exit(2)
def until(condition):
    while not condition():
        time.sleep(0.02)
"""


@pytest.fixture
def ran() -> Ran:
    return Ran("ray", [], 0)


@pytest.fixture
def stage(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ran: Ran) -> Stage:
    """``stage(script)``: the exit code of a stage that is this script on every worker."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    for module in (ray_engine, workers):
        monkeypatch.setattr(module, "LOOK_SECONDS", 0.05)
        monkeypatch.setattr(module, "GRACE_SECONDS", 0.3)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    monkeypatch.setenv("SIMCLR_EVENTS", str(tmp_path / "events"))

    def run(
        script: str,
        count: int = 2,
        cluster: FakeRay | None = None,
        arguments: Sequence[str] = ("pretrain",),
        shares: Callable[[int], bool] = bool,
        **wanted: Any,
    ) -> int:
        fake = cluster or FakeRay({"a": 1, "b": 1})

        @contextmanager
        def connected(*_: object) -> Iterator[FakeRay]:
            yield fake

        monkeypatch.setattr(ray_engine, "connected", connected)
        if script:
            monkeypatch.setattr(worker, "COMMAND", (sys.executable, "-c", STAGE + script))
        where = Where(engine="ray", workers=count, **wanted)
        code = ray_engine.run(prepared, arguments[0], arguments, where, ran, shares)
        assert not list((tmp_path / "tmp").iterdir())
        assert not fake.groups
        return code

    return run


DONE = """
assert (workspace / "data" / "prepared" / "dataset.json").exists()
event(event="progress", rank=rank, size=size)
print(f"said by {rank}")
if rank == 0:
    (workspace / "reports").mkdir()
    (workspace / "reports" / "pretrain.json").write_text("{}")
"""


@pytest.mark.seconds
def test_the_first_worker_makes_the_result_and_alone_is_heard(
    stage: Stage, prepared: Path, tmp_path: Path, ran: Ran, capfd: Any
) -> None:
    assert stage(DONE) == 0
    assert (prepared / "reports" / "pretrain.json").read_text() == "{}"
    assert json.loads((tmp_path / "events").read_text()) == {"event": "progress", "rank": 0, "size": 2}
    assert capfd.readouterr().out == "said by 0\n"
    assert (ran.workers, ran.attempts, len(ran.nodes)) == (2, 1, 1)  # two nodes of the same name and address
    assert ran.seconds > 0


@pytest.mark.seconds
def test_an_error_is_said_once_and_not_tried_again(stage: Stage, ran: Ran, capfd: Any) -> None:
    script = "fail('rank 1 on x has failed, and this process with it: why') if rank == 0 else fail('the reason')"
    assert stage(script) == 2
    assert capfd.readouterr().err == "error: the reason\n"
    assert ran.attempts == 1


AGAIN = """
step = max([int(path.name[5:]) for path in runs.glob("step-*")], default=0)
if rank == 0:
    save(step + 1)
    if step < 2:
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)
    (workspace / "reports").mkdir()
    (workspace / "reports" / "pretrain.json").write_text(str(step))
else:
    time.sleep(1000 if os.environ["SIMCLR_HANGS"] == "1" else 0)
"""


@pytest.mark.seconds
def test_a_killed_process_continues_from_its_last_checkpoint(
    stage: Stage, prepared: Path, ran: Ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIMCLR_HANGS", "0")
    assert stage(AGAIN) == 0
    assert (prepared / "reports" / "pretrain.json").read_text() == "2"
    assert ran.attempts == 3


@pytest.mark.seconds
def test_without_progress_it_ends(stage: Stage, monkeypatch: pytest.MonkeyPatch, ran: Ran) -> None:
    with pytest.raises(ClusterError, match=r"process 1 on .* was ended, 3 times without a new checkpoint"):
        stage("os.kill(os.getpid(), signal.SIGKILL) if rank else time.sleep(1000)")
    assert ran.attempts == 3


@pytest.mark.seconds
def test_a_lost_node_is_replaced_or_waited_for(stage: Stage, prepared: Path, ran: Ran, tmp_path: Path) -> None:
    """The second node goes, and does not come back: one worker will do."""
    cluster = FakeRay({"a": 1, "b": 1})

    def lose() -> None:
        while len(cluster.actors) < 2 or not list((prepared / ".simclr").glob("runs/key/step-*")):
            time.sleep(0.02)
        del cluster.cpus["b"]
        cluster.actors[1].lose()

    thread = threading.Thread(target=lose)
    thread.start()
    script = "save(size) if rank == 0 else 0\nuntil(lambda: size == 1)"
    assert stage(script, cluster=cluster, least_workers=1) == 0
    thread.join()
    said = (tmp_path / "events").read_text()
    assert "beginning again from step 2" in said
    assert "continuing with 1 worker of 2, as least_workers allows" in said
    assert ran.workers == 1


@pytest.mark.seconds
def test_the_largest_number_that_can_share_the_work_is_taken(stage: Stage, ran: Ran) -> None:
    cluster = FakeRay({"a": 3})
    assert stage("pass", count=4, cluster=cluster, least_workers=1, shares=lambda count: count in (1, 2, 4)) == 0
    assert ran.workers == 2


@pytest.mark.seconds
def test_without_the_head_it_ends_and_says_so(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def knock(_: str) -> None:
        raise ConnectionRefusedError

    monkeypatch.setattr(workers, "knock", knock)
    monkeypatch.setattr(workers, "HEAD_SECONDS", 0.2)
    with pytest.raises(ClusterError, match=r"the head of the Ray cluster, auto, does not answer any more \(Conn"):
        stage("time.sleep(1000)")


@pytest.mark.seconds
def test_what_it_waits_for_is_said_until_it_is_stopped(stage: Stage, tmp_path: Path) -> None:
    events = tmp_path / "events"

    def stop() -> None:
        while not events.exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    assert stage("pass", count=3) == 128 + signal.SIGTERM
    thread.join()
    assert "waiting for room for 3 workers (1 CPU each): 2 of 2 CPUs are free on 2 nodes" in events.read_text()


STOPPED = """
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
if rank == 0:
    save(1)
until(lambda: asked)
if rank == 0:
    save(2)
sys.exit(143)
"""


@pytest.mark.seconds
def test_a_request_to_stop_reaches_all_and_what_they_save_is_kept(stage: Stage, prepared: Path) -> None:
    def stop() -> None:
        until = time.monotonic() + stretched(30)
        while not list((prepared / ".simclr").glob("runs/key/step-*")) and time.monotonic() < until:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    assert stage(STOPPED) == 128 + signal.SIGTERM
    thread.join()
    assert {path.name for path in (prepared / ".simclr" / "runs" / "key").iterdir()} == {
        "step-00000001",
        "step-00000002",
    }


def test_other_versions_are_refused(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "versions", lambda: {"torch": "1.0"})
    with pytest.raises(ClusterError, match=r"has torch .*, and this machine has 1\.0; install the same versions"):
        stage(DONE)


def test_other_data_are_refused(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    real = ray_engine.shared
    monkeypatch.setattr(
        ray_engine, "shared", lambda *given: [type(one)(one.name, one.path, "other") for one in real(*given)]
    )
    with pytest.raises(ClusterError, match="data/prepared is not what the driver has under this path"):
        stage(DONE)


@pytest.mark.slow
def test_every_stage_of_a_group_gives_the_bytes_of_processes(stage: Stage, prepared: Path, tmp_path: Path) -> None:
    """With another number of workers than of nodes; fine-tuning and evaluation read what was trained."""
    local = write_prepared(tmp_path / "local")
    for arguments in (["pretrain"], ["linear_eval"], ["finetune", "--fraction", "0.1"]):
        assert stage("", count=2, arguments=arguments) == 0
        command = [sys.executable, "-m", "simclr_core", "--workspace", str(local), *arguments]
        subprocess.run(command, env={**os.environ, "SIMCLR_PROCESSES": "2"}, check=True, capture_output=True)
    assert results(prepared) == results(local)
    assert not (prepared / ".simclr" / "runs").exists() or not any((prepared / ".simclr" / "runs").glob("*/step-*"))
