"""How one service is kept alive, with commands of milliseconds; the real ones are in test_services."""

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from dagster._daemon.types import DaemonHeartbeat
from sqlalchemy.exc import OperationalError

from benchmarks.pipeline.soak import free_port, wait_for
from pipeline.errors import ServiceError
from pipeline.runs import output
from pipeline.runs.instance import opened
from pipeline.runs.launcher import identify
from pipeline.ui import services
from pipeline.ui.health import Health, Watch, watches
from pipeline.ui.services import Service, _environment, _socket, _watch
from pipeline.workspace import Workspace

NOWHERE = Path("/nowhere")
SLEEP = (sys.executable, "-S", "-c", "import time; time.sleep(600)")


@pytest.mark.seconds
def test_a_service_that_keeps_crashing_is_restarted_less_and_less_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(services, "FIRST_DELAY", 0.01)
    monkeypatch.setattr(services, "LONGEST_DELAY", 0.08)
    service = Service("web", ("sh", "-c", "echo no port; exit 3"), lambda: True, delay=0.01)
    delays: list[float] = []

    def died() -> bool:
        service.keep(tmp_path, os.environ)
        if not delays or service.delay != delays[-1]:
            delays.append(service.delay)
        return delays[-1] == 0.08

    wait_for(died, 30, "the longest delay")
    assert capfd.readouterr().err.count("web ended with exit code 3") == 3
    assert delays == [0.01, 0.02, 0.04, 0.08]
    service.end()
    assert "no port\n" in (tmp_path / ".simclr" / "logs" / "services" / "web.log").read_text()


def test_a_service_waits_for_what_it_needs(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    service = Service("daemon", SLEEP, ready.exists)
    service.keep(tmp_path, os.environ)
    assert service.process is None
    ready.touch()
    service.keep(tmp_path, os.environ)
    assert service.process is not None
    service.ask_to_end()
    service.end(5.0)
    assert service.process is None


@pytest.mark.slow
def test_services_end_when_their_supervisor_is_killed(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, sys, time; from pipeline.ui.services import Service;"
        f"service = Service('daemon', {SLEEP!r}, lambda: True); service.keep(pathlib.Path(sys.argv[1]), os.environ);"
        "print(service.process.pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as supervisor:
        assert supervisor.stdout is not None
        service = int(supervisor.stdout.readline())
        assert identify(service)
        supervisor.kill()
    wait_for(lambda: not identify(service), 60, "the end of the service")


def test_a_database_that_cannot_be_read_does_not_end_the_services(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    answers = iter([OperationalError("select", {}, OSError("database is locked")), KeyboardInterrupt()])

    def retry_again(*_: object) -> None:
        raise next(answers)

    monkeypatch.setattr(services, "retry_again", retry_again)
    monkeypatch.setattr(services, "RETRY_SECONDS", 0.0)
    instance = SimpleNamespace(get_runs=lambda filters: [])
    with pytest.raises(KeyboardInterrupt):
        _watch(Workspace(tmp_path), instance, [], "http://127.0.0.1:9")  # type: ignore[arg-type]
    assert "the runs cannot be read: Dagster's records in SQLite" in capfd.readouterr().err


def test_the_code_server_listens_where_only_this_user_has_access(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services.tempfile, "gettempdir", lambda: str(tmp_path))
    deep = Workspace(tmp_path / ("a folder with a long name" * 9))
    address = _socket(deep)
    assert address == _socket(deep) != _socket(Workspace(tmp_path))
    assert stat.S_IMODE(address.parent.stat().st_mode) == 0o700
    address.parent.chmod(0o755)
    with pytest.raises(ServiceError, match="only this user"):
        _socket(deep)


def test_dagster_may_leave_out_the_first_entry_of_a_python_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert "PYTHONPATH" not in _environment(Workspace(tmp_path))
    monkeypatch.setenv("PYTHONPATH", "/a:/b")
    assert _environment(Workspace(tmp_path))["PYTHONPATH"] == f"{tmp_path}/.simclr/services:/a:/b"


@pytest.mark.seconds
def test_a_service_that_hangs_is_killed_and_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(services, "FIRST_DELAY", 0.01)
    port = free_port()
    command = (sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1")
    service = Service("web", command, lambda: True)
    health = Health(interval=0.05, answer=0.2, misses=3)
    service.watch = watches(None, f"http://127.0.0.1:{port}", NOWHERE, health)["web"]  # type: ignore[arg-type]
    seen: set[int] = set()

    def look() -> None:
        service.kill_if_hanging()
        service.keep(tmp_path, os.environ)
        if service.process is not None:
            seen.add(service.process.pid)

    def answered() -> bool:
        look()
        return services.answers(f"http://127.0.0.1:{port}", 1.0)

    wait_for(answered, 120, "the first process")
    before = len(seen)
    assert service.process is not None
    os.kill(service.process.pid, signal.SIGSTOP)
    wait_for(lambda: (look(), len(seen) > before)[1], 120, "another process")
    wait_for(answered, 120, "its answer")
    assert "web no longer answers; it is killed" in capfd.readouterr().err
    service.end()


@pytest.mark.slow
def test_a_code_server_that_is_stopped_does_not_answer(workspace: Workspace, tmp_path: Path) -> None:
    """It still accepts connections: its kernel does."""
    address = tmp_path / "code.sock"
    code = watches(None, "", address, Health(answer=0.5))["code"]  # type: ignore[arg-type]
    assert not code.look(0.0)
    listen = ("api", "grpc", "--socket", str(address), "--lazy-load-user-code", "--empty-working-directory")
    command = [sys.executable, "-m", "dagster", *listen, "--module-name", "pipeline.definitions"]
    with subprocess.Popen(command, cwd=workspace.root) as server:
        try:
            wait_for(lambda: bool(code.look(0.0)), 240, "the code server answers")
            os.kill(server.pid, signal.SIGSTOP)
            wait_for(lambda: not code.look(0.0), 60, "the code server is stopped")
            with socket.socket(socket.AF_UNIX) as connection:
                assert connection.connect_ex(str(address)) == 0
            os.kill(server.pid, signal.SIGCONT)
            wait_for(lambda: bool(code.look(0.0)), 60, "it answers again")
        finally:
            server.kill()


def test_a_web_server_that_speaks_no_http_does_not_answer() -> None:
    """It raised in the thread that looks, so that such a server was never killed."""
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(services.answers, f"http://127.0.0.1:{listener.getsockname()[1]}", 30.0)
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"garbage\r\n\r\n")
        assert asked.result(30) is False


def test_a_daemon_without_heartbeats_counts_as_hanging_unless_it_just_started(workspace: Workspace) -> None:
    with opened(workspace.root) as instance:
        daemon = watches(instance, "", NOWHERE, Health(heartbeat=60.0))["daemon"]
        assert daemon.look(30.0)
        assert not daemon.look(90.0)
        instance.add_daemon_heartbeat(DaemonHeartbeat(time.time() - 90, "SENSOR", "one"))
        instance.add_daemon_heartbeat(DaemonHeartbeat(time.time() + 3600, "ASSET", "before the clock was set back"))
        assert not daemon.look(90.0)
        instance.add_daemon_heartbeat(DaemonHeartbeat(time.time() - 10, "SCHEDULER", "two"))
        assert daemon.look(90.0)


def test_one_good_answer_or_a_new_process_resets_the_failure_count() -> None:
    said: list[bool | None] = []
    watch = Watch(lambda _: said.pop() if said else None, 0.0, misses=2)

    def after(*answers: bool | None) -> bool:
        said.extend(reversed(answers))
        wait_for(lambda: (watch.hangs(1.0), not said)[1], 120, "the looks")
        assert watch._thread is not None
        watch._thread.join()
        return watch._missed >= watch.misses

    assert not after(False, True, None, False)
    assert after(False)
    assert not watch.hangs(2.0)


def test_logs_of_services_are_rotated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "ROTATE_BYTES", 10)
    log = tmp_path / "web.log"
    for number in range(8):
        log.write_text(f"log number {number}")
        output.rotate(log)
    assert {path.name: path.read_text()[-1] for path in tmp_path.iterdir()} == {
        f"web.log.{place}": str(8 - place) for place in range(1, 5)
    }
    log.write_text("short")
    output.rotate(log)
    assert log.exists()
