"""`dvc repro` under our client: what it did, what it says when it fails, and that nothing of it is left."""

import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import psutil
import pytest
import yaml

from benchmarks.pipeline.soak import wait_for
from deploy.lock import held
from pipeline.cli.status import look_at_stages
from pipeline.dvc import client, processes
from pipeline.dvc.client import DVC, LOCK, Outcome, add, changed_stages, exclusive, execute, holder, repro
from pipeline.dvc.explained import explain
from pipeline.errors import BusyError, DvcError, StageFailedError
from pipeline.workspace import Workspace
from simclr_core.progress import Tick
from tests.pipeline.small_graph import log_of, write_graph
from tests.processes import program
from tests.processes.alive import is_alive
from tests.processes.busy import stretched


def write_stage(workspace: Workspace, command: str, out: str = "out") -> Workspace:
    """One stage, ``s``."""
    return write_graph(workspace, yaml.safe_dump({"stages": {"s": {"cmd": command, "outs": [out]}}}))


def lines_of(workspace: Workspace, stage: str) -> tuple[Outcome, list[str], list[str]]:
    events: list[str] = []
    output: list[str] = []
    outcome = repro(workspace.root, stage, events.append, output.append).outcome
    return outcome, events, output


@pytest.mark.seconds
def test_it_runs_skips_and_restores(graph: Workspace) -> None:
    assert lines_of(graph, "prepare")[0] is Outcome.EXECUTED
    assert lines_of(graph, "prepare")[0] is Outcome.SKIPPED
    shutil.rmtree(graph.root / "data" / "prepared")
    outcome, _, output = lines_of(graph, "prepare")
    assert outcome is Outcome.RESTORED
    assert "this is prepare" not in output
    assert (graph.prepared / "all.txt").read_text() == "abc"
    (graph.raw / "two.txt").write_text("de")
    assert lines_of(graph, "prepare")[0] is Outcome.EXECUTED


@pytest.mark.seconds
def test_events_and_output_are_passed_on_and_kept(graph: Workspace) -> None:
    repro(graph.root, "prepare")
    _, events, output = lines_of(graph, "pretrain")
    assert events == ["epoch 1", "epoch 2"]
    assert "this is pretrain" in output
    assert log_of(graph, "pretrain").read_text().splitlines()[0] == "Running stage 'pretrain':"
    repro(graph.root, "pretrain")
    assert lines_of(graph, "pretrain")[1] == []  # a skipped stage does not repeat the events of an earlier one


@pytest.mark.seconds
def test_how_far_a_stage_is_reaches_the_one_who_watches(workspace: Workspace) -> None:
    """The stage waits until that was seen: reading the pipe ends when it is opened for writing."""
    os.mkfifo(workspace.root / "seen")
    tick = json.dumps(Tick(3, 9, "images")._asdict())
    write_stage(workspace, f"echo '{tick}' > .simclr/events/s.tick; cat seen", "out")
    found: list[Tick] = []

    def watch(tick: Tick | None) -> None:
        if tick is not None and not found:  # opened a second time, it would wait for a reader that is gone
            found.append(tick)
            (workspace.root / "seen").write_text("")

    with pytest.raises(DvcError, match="'out' does not exist"):
        repro(workspace.root, "s", on_tick=watch)
    assert found == [Tick(3, 9, "images")]
    assert not (workspace.scratch / "events" / "s.tick").exists()


@pytest.mark.slow
def test_only_the_given_stage_of_a_matrix_runs(graph: Workspace) -> None:
    for stage in ("prepare", "pretrain", "finetune@0.01"):
        repro(graph.root, stage)
    assert [path.name for path in (graph.root / "models" / "finetuned").iterdir() if path.is_dir()] == ["0.01"]


@pytest.mark.seconds
def test_python_in_dvc_yaml_is_this_python_and_ignores_what_is_in_the_workspace(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    (workspace.root / "json.py").write_text("raise SystemExit('the workspace shadows the standard library')")
    write_stage(workspace, 'python -c "import json, sys; print(sys.prefix)"', "none")
    output: list[str] = []
    with pytest.raises(DvcError, match="'none' does not exist"):
        repro(workspace.root, "s", on_output=output.append)
    assert sys.prefix in output


@pytest.mark.seconds
@pytest.mark.parametrize(
    ("command", "cause"),
    [
        (
            "echo working; echo 'error: batch_size is 0; must be positive' >&2; echo bye; exit 2",
            "batch_size is 0; must be",
        ),
        ("exit 3", "exited with 3"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("echo almost; echo 'ValueError: bad number' >&2; exit 1", "ValueError: bad number"),
                ("printf 'no end of line'; exit 1", "no end of line"),
                ("kill -9 $$", "its process was killed by SIGKILL, most often by the kernel"),
                ("echo epoch 3 of 40; kill -9 $$", "its process was killed by SIGKILL"),
                ("sh -c 'echo epoch 3 of 40; kill -9 $$'; exit $?", "its process was killed by SIGKILL"),
                ("echo epoch 3 of 40; exit 143", "its process was killed by SIGTERM"),
                ("echo 'error: out of luck' >&2; exit 137", "out of luck"),
            )
        ),
    ],
)
def test_a_failed_stage_is_named_with_its_last_line(workspace: Workspace, command: str, cause: str) -> None:
    write_stage(workspace, command)
    with pytest.raises(StageFailedError) as raised:
        repro(workspace.root, "s")
    message = str(raised.value)
    assert message.startswith(f"stage s: {cause}")
    assert ".simclr/logs/s.log" in message
    assert "\n" not in message


@pytest.mark.seconds
@pytest.mark.parametrize(
    ("graph_text", "stage", "cause"),
    [
        ("stages: {train: {cmd: 'true', outs: [model]}}", "train", "'model' does not exist"),
        ("stages: {train: {cmd: 'true', deps: [nothing], outs: [model]}}", "train", "nothing"),
        ("stages: {train: {cmd: 'true', outs: [model]}}", "tran", "tran"),
    ],
)
def test_an_error_of_dvc_itself_is_not_a_stage_failure(
    workspace: Workspace, graph_text: str, stage: str, cause: str
) -> None:
    write_graph(workspace, graph_text)
    with pytest.raises(DvcError, match=cause) as raised:
        repro(workspace.root, stage)
    assert "\n" not in str(raised.value)


@pytest.mark.slow
def test_a_stage_that_hangs_is_stopped_with_all_its_processes(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has stopped itself, as a process in the hands of a debugger or of a dead disk."""
    write_stage(workspace, "echo $$ > out; sleep 600 & kill -STOP $$")
    monkeypatch.setenv("SIMCLR_SILENT_HOURS", str(3 / 3600))
    with pytest.raises(StageFailedError, match="stage s: has reported nothing for 3 s"):
        repro(workspace.root, "s", grace_seconds=0.2)
    assert not [one for one in psutil.process_iter(["cwd"]) if one.info["cwd"] == str(workspace.root)]
    with exclusive(workspace.root, "the next run"):
        pass


@pytest.mark.seconds
@pytest.mark.parametrize(
    ("missing", "advice"), [("data/raw", "`simclr ingest`"), ("models/champion", "`simclr run --select champion`")]
)
def test_what_no_stage_makes_is_named_with_the_command_that_does(
    workspace: Workspace, missing: str, advice: str
) -> None:
    write_graph(workspace, f"stages: {{train: {{cmd: 'true', deps: [{missing}], outs: [model]}}}}")
    with pytest.raises(DvcError, match=f"^stage train: {missing} is missing; .*{advice}"):
        repro(workspace.root, "train")


def test_who_holds_the_workspace_is_known_without_holding_it(workspace: Workspace) -> None:
    assert holder(workspace.root) == ""
    with exclusive(workspace.root, "test"):
        assert f"process {os.getpid()}; wait until it ends" in holder(workspace.root)
    assert holder(workspace.root) == ""


def test_a_stopped_holder_is_named_as_such(workspace: Workspace) -> None:
    """It takes no other signal, so the advice to stop it would not help."""
    with subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"]) as process:
        try:
            with held(workspace.root / LOCK, f"stage prepare of process {process.pid}; wait", BusyError):
                assert "stopped" not in holder(workspace.root)
                process.send_signal(signal.SIGSTOP)
                wait_for(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED, 30, "the stop")
                advice = f"it is stopped, and `kill -CONT {process.pid}` lets it continue"
                assert advice in holder(workspace.root)
                with pytest.raises(BusyError, match=advice), exclusive(workspace.root, "a test"):
                    pass
        finally:
            process.kill()
        process.wait()
        with held(workspace.root / LOCK, f"stage prepare of process {process.pid}; wait", BusyError):
            assert "stopped" not in holder(workspace.root)


@pytest.mark.slow
def test_a_dvc_of_a_person_at_work_is_named_instead_of_its_lock(workspace: Workspace) -> None:
    write_graph(workspace, "stages: {train: {cmd: sleep 300, outs: [model]}}")
    with subprocess.Popen([*DVC, "repro"], cwd=workspace.root, start_new_session=True) as working:
        rwlock = workspace.root / ".dvc" / "tmp" / "rwlock"
        deadline = time.monotonic() + 90
        while not (rwlock.exists() and str(working.pid) in rwlock.read_text()):
            assert working.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        try:
            with pytest.raises(BusyError, match=f"busy with process {working.pid} .*kill -INT {working.pid}`$"):
                changed_stages(workspace.root)
            assert look_at_stages(workspace).running
        finally:
            os.killpg(working.pid, signal.SIGKILL)


@pytest.mark.seconds
def test_a_broken_event_does_not_stop_the_stage(workspace: Workspace) -> None:
    write_stage(workspace, "echo '{half' >> \"$SIMCLR_EVENTS\"; echo > out")
    assert lines_of(workspace, "s")[1] == ["{half"]


def test_a_changed_block_of_params_is_named(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = {"params.yaml": {"pretrain": "modified"}, "data/x": "deleted"}
    said = {"pretrain": [{"changed deps": changed}, "always changed"]}
    monkeypatch.setattr(client, "execute", lambda *_: json.dumps(said))
    assert changed_stages(workspace.root) == {
        "pretrain": ["pretrain in params.yaml has changed", "data/x is missing", "always changed"]
    }


@pytest.mark.seconds
def test_changed_stages_names_the_reasons(graph: Workspace) -> None:
    repro(graph.root, "prepare")
    assert "prepare" not in changed_stages(graph.root)
    (graph.raw / "two.txt").write_text("de")
    assert changed_stages(graph.root)["prepare"] == ["data/raw has changed"]


def test_add_tracks_a_folder_and_passes_on_what_dvc_says(graph: Workspace) -> None:
    add(graph.root, graph.raw)
    assert yaml.safe_load((graph.root / "data" / "raw.dvc").read_text())["outs"][0]["nfiles"] == 1
    with pytest.raises(DvcError, match=r"dvc .*add.* failed: .*missing"):
        add(graph.root, graph.root / "missing")


@pytest.mark.seconds
def test_the_second_client_learns_which_process_holds_the_workspace(graph: Workspace) -> None:
    with (
        exclusive(graph.root, "ingest"),
        pytest.raises(BusyError, match=rf"busy with ingest of process {os.getpid()}; .*`kill -INT {os.getpid()}`"),
    ):
        repro(graph.root, "prepare")
    assert not log_of(graph, "prepare").exists()
    assert repro(graph.root, "prepare").outcome is Outcome.EXECUTED


@pytest.mark.seconds
def test_a_stage_holds_the_workspace_also_when_its_client_is_killed(workspace: Workspace) -> None:
    write_stage(workspace, 'echo started >> "$SIMCLR_EVENTS"; exec sleep 600')
    client = start_client(workspace, "s")
    client.kill()
    client.wait()
    with pytest.raises(BusyError) as raised, exclusive(workspace.root, "ingest"):
        pass
    # The message gives the command that frees it.
    subprocess.run(["sh", "-c", str(raised.value).split("`")[1]], check=True)
    with (workspace.root / ".dvc" / "tmp" / "simclr.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)


# One process that ignores what it can, and one in its own session, as torchrun starts its workers.
STUBBORN = r"""
import os, signal, subprocess, sys, time
if sys.argv[1:]:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with open("pids", "a") as pids:
        pids.write(f"{os.getpid()}\n")
    if sys.argv[1] == "worker":
        with open(os.environ["SIMCLR_EVENTS"], "a") as events:
            events.write("started\n")
    time.sleep(600)
subprocess.Popen([sys.executable, __file__, "child"])
while not os.path.exists("pids"):
    time.sleep(0.01)
subprocess.Popen([sys.executable, __file__, "worker"], start_new_session=True)
time.sleep(600)
"""


@pytest.fixture
def stubborn(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    monkeypatch.setattr(processes, "TERMINATE_SECONDS", 0.2)
    (workspace.root / "stubborn.py").write_text(STUBBORN)
    yield write_stage(workspace, "python stubborn.py")
    for pid in pids_of(workspace):
        if is_alive(pid):
            os.kill(pid, signal.SIGKILL)


def pids_of(workspace: Workspace) -> list[int]:
    path = workspace.root / "pids"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


@pytest.mark.seconds
def test_an_exception_leaves_no_process_that_ignores_signals(stubborn: Workspace) -> None:
    def fail(_: str) -> None:
        raise RuntimeError("the thread of the op was stopped")

    with pytest.raises(RuntimeError, match="was stopped"):
        repro(stubborn.root, "s", on_event=fail, grace_seconds=0.2)
    assert len(pids_of(stubborn)) == 2
    assert not [pid for pid in pids_of(stubborn) if is_alive(pid)]
    with exclusive(stubborn.root, "the next"):
        pass


@pytest.mark.seconds
def test_a_process_in_another_session_is_not_waited_for(workspace: Workspace) -> None:
    """Torchrun stops its workers before it ends, so one that is left then is lost already."""
    (workspace.root / "stubborn.py").write_text(STUBBORN)
    launch = "import subprocess; subprocess.Popen(['python', 'stubborn.py', 'worker'], start_new_session=True)"
    write_stage(workspace, f'python -c "{launch}"; exec sleep 600')

    def interrupt(_: str) -> None:
        raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        repro(workspace.root, "s", on_event=interrupt)
    assert time.monotonic() - began < stretched(30)
    assert not [pid for pid in pids_of(workspace) if is_alive(pid)]


@pytest.mark.seconds
def test_processes_left_by_a_failed_stage_are_killed(workspace: Workspace) -> None:
    (workspace.root / "stubborn.py").write_text(STUBBORN)
    write_stage(workspace, "python stubborn.py worker & until test -s pids; do :; done; exit 7")
    with pytest.raises(StageFailedError):
        repro(workspace.root, "s")
    assert pids_of(workspace)
    assert not [pid for pid in pids_of(workspace) if is_alive(pid)]


@pytest.mark.seconds
def test_a_stage_that_handles_sigterm_has_time_to_save(workspace: Workspace) -> None:
    script = (
        "import os, signal\n"
        "def save(*_):\n"
        "    open('saved', 'w').close()\n"
        "    raise SystemExit(130)\n"
        "signal.signal(signal.SIGINT, save)\n"
        "print('started', file=open(os.environ['SIMCLR_EVENTS'], 'a'), flush=True)\n"
        "signal.pause()\n"
    )
    (workspace.root / "polite.py").write_text(script)
    write_stage(workspace, "python polite.py")
    client = start_client(workspace, "s")
    client.send_signal(signal.SIGINT)
    assert client.wait(timeout=30) != 0
    assert (workspace.root / "saved").exists()


def start_client(workspace: Workspace, stage: str) -> subprocess.Popen[bytes]:
    """A client in its own process; returns when its stage has reported the first event."""
    # A line that it prints when the pipe is closed would be the first interrupt, and the signal of the test the second.
    code = (
        "import pathlib, sys, pipeline.dvc.client as c; "
        "c.repro(pathlib.Path(sys.argv[1]), sys.argv[2], on_output=lambda line: None)"
    )
    command = program.command(code, workspace.root, stage)
    client = subprocess.Popen(command, cwd=program.ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert client.stdout is not None
    with client.stdout:
        for line in client.stdout:
            if line == b"started\n":
                return client
    raise AssertionError("the stage has not started")


@pytest.mark.slow
def test_a_held_dvc_lock_does_not_lose_the_result(graph: Workspace) -> None:
    """`dvc push` in another terminal, at the moment in which a training ends: DVC alone gives up after 3 seconds."""
    reached = threading.Event()
    (graph.root / "wait.py").write_text(
        "import os\nprint('started', file=open(os.environ['SIMCLR_EVENTS'], 'a'), flush=True)\n"
        "open('end').read()\nopen('out', 'w').close()\n"
    )
    os.mkfifo(graph.root / "end")
    write_stage(graph, "python wait.py")
    holder = (
        "import sys, time\nfrom zc.lockfile import LockFile\n"
        "lock = LockFile(sys.argv[1])\nprint('held', flush=True)\ntime.sleep(5)\n"
    )

    def hold() -> None:
        reached.wait()
        lock = str(graph.root / ".dvc" / "tmp" / "lock")
        with subprocess.Popen([sys.executable, "-c", holder, lock], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"held\n"
            (graph.root / "end").write_text("now")

    other = threading.Thread(target=hold)
    other.start()
    try:
        outcome = repro(graph.root, "s", on_event=lambda _: reached.set()).outcome
    finally:
        other.join()
    assert outcome is Outcome.EXECUTED
    assert yaml.safe_load((graph.root / "dvc.lock").read_text())["stages"]["s"]["outs"][0]["path"] == "out"


@pytest.mark.seconds
def test_no_secret_that_a_stage_prints_is_left_anywhere(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_TOKEN", "planted-token")
    (workspace.root / ".dvc" / "config.local").write_text(
        "['remote \"r\"']\n    url = ssh://h/p\n    password = planted-password\n"
    )
    script = """
        echo $STORAGE_TOKEN
        cat .dvc/config.local
        echo 's3://me:planted-user@b/?X-Amz-Signature=planted-sig&a=1' >&2
        echo '{"message": "epoch 1 '$STORAGE_TOKEN'"}' >> "$SIMCLR_EVENTS"
        echo "error: $STORAGE_TOKEN"
        exit 2
    """
    (workspace.root / "stage.sh").write_text(script)
    write_stage(workspace, "sh stage.sh")
    events: list[str] = []
    output: list[str] = []
    with pytest.raises(StageFailedError, match=r"^stage s: \*\*\* ") as raised:
        repro(workspace.root, "s", events.append, output.append)
    assert events == ["epoch 1 ***"]
    assert "s3://***@b/?X-Amz-Signature=***&a=1" in output
    assert log_of(workspace, "s").read_text().splitlines()[-1].startswith("ERROR: failed to reproduce")
    assert "planted" not in f"{raised.value} {output}"
    assert planted_files(workspace) == []
    with pytest.raises(DvcError) as raised_by_dvc:
        add(workspace.root, workspace.root / "planted-token")
    assert "planted" not in str(raised_by_dvc.value)


def test_no_secret_is_left_when_the_client_is_killed(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_TOKEN", "planted-token")
    write_stage(workspace, 'printf $STORAGE_TOKEN; echo started >> "$SIMCLR_EVENTS"; exec sleep 600')
    client = start_client(workspace, "s")
    client.kill()
    client.wait()
    assert planted_files(workspace) == []
    with pytest.raises(BusyError) as raised, exclusive(workspace.root, "ingest"):
        pass
    subprocess.run(["sh", "-c", str(raised.value).split("`")[1]], check=True)


def planted_files(workspace: Workspace) -> list[str]:
    """Files of the scratch folder with a planted secret."""
    files = [path for path in workspace.scratch.rglob("*") if path.is_file()]
    return [path.name for path in files if b"planted" in path.read_bytes()]


@pytest.mark.slow
def test_a_persons_status_and_push_during_a_stage_never_lose_its_result(graph: Workspace, tmp_path: Path) -> None:
    """Stages run one after the other until two people at a shell have each got in three commands at least."""
    execute(graph.root, "remote", "add", "--default", "store", str(tmp_path / "store"))
    stages = {
        f"s{n}": {"cmd": f"cp data/raw/one.txt out{n}", "deps": ["data/raw"], "outs": [f"out{n}"]} for n in (0, 1)
    }
    write_graph(graph, yaml.safe_dump({"stages": stages}))
    stop = threading.Event()
    people: dict[str, list[int]] = {"status": [], "push": []}

    def work(command: str) -> None:
        arguments = [sys.executable, "-m", "dvc", command, "--quiet"]
        while not stop.is_set():
            done = subprocess.run(arguments, cwd=graph.root, capture_output=True, check=False)
            people[command].append(done.returncode)

    others = [threading.Thread(target=work, args=(command,)) for command in people]
    for other in others:
        other.start()
    try:
        for number in count():
            if number >= 3 and all(len(codes) >= 3 for codes in people.values()):
                break
            (graph.raw / "one.txt").write_text(str(number))
            for stage in ("s0", "s1"):
                assert repro(graph.root, stage).outcome is Outcome.EXECUTED
            lock = yaml.safe_load((graph.root / "dvc.lock").read_text())["stages"]
            for n in (0, 1):
                data = (graph.root / f"out{n}").read_bytes()
                assert data == f"{number}".encode()
                assert lock[f"s{n}"]["outs"][0]["md5"] == hashlib.md5(data).hexdigest()
    finally:
        stop.set()
        for other in others:
            other.join()
    assert changed_stages(graph.root) == {}


def test_what_dvc_does_not_foresee_is_shown_without_its_chatter_and_with_the_next_step(tmp_path: Path) -> None:
    said = explain(
        tmp_path,
        "`dvc status` failed: unexpected error - [Errno 30] Read-only file system: '/w/.dvc/tmp/lock' Having any "
        "troubles? Hit us up at https://dvc.org/support, we are always happy to help!",
    )
    assert said == (
        "`dvc status` failed: Read-only file system: '/w/.dvc/tmp/lock'; this file system is read-only: choose another "
        "folder, or mount it writable"
    )


@pytest.mark.parametrize(
    ("said", "refused"),
    [
        ("remote store cannot be used: Forbidden", True),
        ("`dvc push` failed: An error occurred (403) when calling the HeadObject operation", True),
        ("`dvc push` failed: Unable to locate credentials", True),
        ("`dvc push` failed: 403 files could not be found", False),
    ],
)
def test_a_storage_that_refuses_is_named_as_that(tmp_path: Path, said: str, refused: bool) -> None:
    assert explain(tmp_path, said).startswith(said)
    assert ("correct its credentials" in explain(tmp_path, said)) == refused
