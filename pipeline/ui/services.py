"""What `simclr ui` runs: code server, daemon and guarded UI, each started again alone when it dies.

    code     loads the definitions and answers over a socket        .simclr/logs/services/code.log
    daemon   schedules, sensors, the queue of runs; launches them   .simclr/logs/services/daemon.log
    web      ``pipeline.ui.web``                                       .simclr/logs/services/web.log

One that hangs is killed, and started again too (``pipeline.ui.health``). They end with this process, also when it is
killed. Runs do not: they are separate processes, and the next `simclr ui` finds them again
(``pipeline.runs.launcher``). Where a stop takes all processes with it, as in a container, SIMCLR_UI_STOP_RUNS=1 has
SIGTERM interrupt the runs first.
"""

import hashlib
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType

import dagster as dg
import yaml

from deploy.lock import held
from pipeline.environment import WORKSPACE
from pipeline.errors import ServiceError
from pipeline.redact import redactor
from pipeline.runs import output
from pipeline.runs.clock import forget_the_future
from pipeline.runs.dagster_internals import DAEMON, serialize_value
from pipeline.runs.database import describe, unreachable
from pipeline.runs.instance import opened, reference
from pipeline.runs.launcher import LOGS, reap, retry_again, stop_runs
from pipeline.runs.stalled import Stalled
from pipeline.ui import web
from pipeline.ui.access import read_access
from pipeline.ui.health import Health, Watch, answers, watches
from pipeline.workspace import Workspace
from simclr_core.parent import die_with

DEFINITIONS = LOCATION = "pipeline.definitions"
POLL_SECONDS = 0.2
FIRST_DELAY, LONGEST_DELAY = 0.5, 30.0  # seconds before a service is started again; doubles while it keeps dying
STABLE_SECONDS = 30.0  # after which the first delay holds again
STOP_SECONDS = 5.0
RETRY_SECONDS = 10.0  # how often to look for killed runs that Dagster could not launch again
STOP_RUNS = "SIMCLR_UI_STOP_RUNS"  # of the environment: 1 when the end of this process is the end of runs too
SAVE_SECONDS = 90.0  # for runs to save, stop and be gone: a stage may take 75 s


@dataclass
class Service:
    """One service, and the child process that provides it now.

    Attributes:
        may_start: whether what it needs is there.
        log: what writes down what it prints.
        watch: says whether it hangs.
    """

    name: str
    command: Sequence[str]
    may_start: Callable[[], bool]
    process: "subprocess.Popen[bytes] | None" = None
    log: "subprocess.Popen[bytes] | None" = None
    watch: Watch | None = None
    started: float = 0.0
    delay: float = FIRST_DELAY
    due: float = field(default_factory=time.monotonic)

    def keep(self, root: Path, environment: Mapping[str, str]) -> None:
        """Start it if it should run and does not."""
        log = root / ".simclr" / "logs" / "services" / f"{self.name}.log"
        if self.process is not None and self.process.poll() is not None:
            code = self.process.returncode
            self.end()
            self.delay = (
                FIRST_DELAY if time.monotonic() - self.started > STABLE_SECONDS else min(2 * self.delay, LONGEST_DELAY)
            )
            self.due = time.monotonic() + self.delay
            _say(f"{self.name} ended with exit code {code} (log: {log}); it is started again in {self.delay:g} s")
        if self.process is None and time.monotonic() >= self.due and self.may_start():
            output.rotate(log)
            with output.started(root, log) as written:
                self.process = subprocess.Popen(
                    self.command,
                    cwd=root,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=written.stdin,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C is for this process, which ends the others in its own way
                    preexec_fn=partial(die_with, os.getpid()),  # no service is left behind when this process is killed
                )
            self.started, self.log = time.monotonic(), written

    def kill_if_hanging(self) -> None:
        """It is started again by ``keep``."""
        if self.process is not None and self.watch is not None and self.watch.hangs(self.started):
            _say(f"{self.name} no longer answers; it is killed")
            self.process.kill()
            self.process.wait()

    def ask_to_end(self) -> None:
        if self.process is not None:
            self.process.terminate()

    def end(self, patience: float = 0.0) -> None:
        """Kill what is left of it after this number of seconds."""
        if self.process is None:
            return
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(patience)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process = None
        if self.log is not None:
            with suppress(subprocess.TimeoutExpired):
                self.log.wait(output.PATIENCE)


def serve(
    workspace: Workspace,
    host: str = "127.0.0.1",
    port: int = 3000,
    definitions: str = DEFINITIONS,
    health: Health = Health(),  # noqa: B008  it is frozen
) -> None:
    """Keep the services of a workspace alive until SIGINT, SIGTERM or SIGHUP; ends within seconds.

    Args:
        definitions: the module with Dagster's definitions.

    Raises:
        ServiceError: it has its services already, the port is taken, a password is missing for this host, or Dagster's
            records cannot be reached or read.
    """
    read_access(host, os.environ, b"")
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    with _interruptible(), _alone(workspace, url):
        _require_free(host, port)
        address = _socket(workspace)
        _write_target(workspace, address)
        for log in output.list_outdated(workspace.root / LOGS):
            log.unlink(missing_ok=True)
        with opened(workspace.root) as instance:
            reap(instance, launching=False)
            services = _services(workspace, address, host, port, definitions)
            for service in services:
                service.watch = watches(instance, url, address, health)[service.name]
            stop = signal.SIGINT
            try:
                _watch(workspace, instance, services, url)
            except KeyboardInterrupt as interrupt:
                stop = next(iter(interrupt.args), stop)
            finally:
                _end(services)
            if stop == signal.SIGTERM and os.environ.get(STOP_RUNS) == "1":
                _say(f"stopping; runs in progress have {SAVE_SECONDS:g} s to save their state")
                stop_runs(instance, SAVE_SECONDS)
            else:
                _say("stopping; a run in progress continues")


def _end(services: Sequence[Service]) -> None:
    for service in services:
        service.ask_to_end()
    deadline = time.monotonic() + STOP_SECONDS
    for service in services:
        service.end(max(0.0, deadline - time.monotonic()))


def _services(workspace: Workspace, address: Path, host: str, port: int, definitions: str) -> list[Service]:
    def reachable() -> bool:
        with socket.socket(socket.AF_UNIX) as connection:
            return connection.connect_ex(str(address)) == 0

    # With --lazy-load-user-code a fault in the definitions is shown in the UI, and ends nothing.
    listen = ("--socket", str(address), "--lazy-load-user-code", "--log-level", "warning")
    module = ("--module-name", definitions, "--location-name", LOCATION, "--empty-working-directory")
    code = ("dagster", "api", "grpc", *listen, *module)
    records = ("--instance-ref", serialize_value(reference(workspace.root)))
    daemon = (DAEMON, "run", "--workspace", str(web.TARGET), "--log-level", "warning", *records)
    guarded = (web.__name__, "--host", host, "--port", str(port))
    return [
        Service("code", (sys.executable, "-P", "-m", *code), lambda: True),
        Service("daemon", (sys.executable, "-P", "-m", *daemon), reachable),
        Service("web", (sys.executable, "-P", "-m", *guarded), reachable),
    ]


def _watch(workspace: Workspace, instance: dg.DagsterInstance, services: Sequence[Service], url: str) -> None:
    environment = _environment(workspace)
    announced, stalled = False, Stalled()
    looked, look_at = time.time(), time.monotonic()
    while True:
        for service in services:
            service.kill_if_hanging()
            service.keep(workspace.root, environment)
        if not announced and answers(url, seconds=1.0):
            announced = True
            _say(f"the UI of {workspace.root} is at {url} (Ctrl-C ends it, but no run)")
        if time.monotonic() >= look_at:
            since, looked = looked - 6 * RETRY_SECONDS, time.time()
            try:
                for line in stalled.look(instance):  # first: a stopped run may hold the lock of the database
                    _say(line)
                retry_again(instance, since)
                for name in forget_the_future(instance):
                    _say(f"{name}: its last tick is in the future: the clock was set back; it ticks again from now on")
            except Exception as error:
                if not unreachable(error):
                    raise
                looked = since  # a locked or absent database must not end the services
                _say(redactor(workspace.root)(f"the runs cannot be read: {describe(workspace.root, error)}"))
            look_at = time.monotonic() + RETRY_SECONDS
        time.sleep(POLL_SECONDS)


def _environment(workspace: Workspace) -> dict[str, str]:
    """Of the services, and so of the runs. Files in the workspace are not importable (PYTHONSAFEPATH)."""
    root = str(workspace.root)
    ours = {"DAGSTER_HOME": root, WORKSPACE: root, "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}
    ours["DAGSTER_EVENT_LOG_CONSUMER_DAEMON_INTERVAL_SECONDS"] = "2"  # how soon a killed run is launched again
    if given := os.environ.get("PYTHONPATH"):
        # Dagster leaves out the first entry, which without PYTHONSAFEPATH would be the current folder.
        ours["PYTHONPATH"] = os.pathsep.join([str(workspace.scratch / "services"), given])
    return {**os.environ, **ours}


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM and SIGHUP do what Ctrl-C does, also when the shell that started this had it ignored."""

    def interrupt(number: int, _: FrameType | None) -> None:
        raise KeyboardInterrupt(number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    except KeyboardInterrupt:
        return
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _alone(workspace: Workspace, url: str) -> Iterator[None]:
    def served(holder: str) -> ServiceError:
        return ServiceError(f"{workspace.root}: its UI is already served by {holder}")

    ours = f"process {os.getpid()} at {url}; use it, or stop it with `kill -INT {os.getpid()}`"
    with held(workspace.scratch / "services" / "lock", ours, served):
        yield


def _require_free(host: str, port: int) -> None:
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            pass
    except OSError as error:
        raise ServiceError(f"{host}:{port}: cannot listen there ({error.strerror}); choose another --port") from None


def _socket(workspace: Workspace) -> Path:
    """Where the code server listens: the same for a workspace every time, for this user only, and a short path."""
    folder = Path(tempfile.gettempdir()) / f"simclr-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise ServiceError(f"{folder}: is not a folder that only this user can enter; remove it")
    return folder / f"{hashlib.sha256(os.fsencode(workspace.root)).hexdigest()[:16]}.sock"


def _write_target(workspace: Workspace, address: Path) -> None:
    target = {"load_from": [{"grpc_server": {"socket": str(address), "location_name": LOCATION}}]}
    (workspace.root / web.TARGET).write_text(yaml.safe_dump(target), encoding="utf-8")


def _say(line: str) -> None:
    with suppress(BrokenPipeError):
        print(line, file=sys.stderr, flush=True)
