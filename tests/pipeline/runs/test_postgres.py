"""Dagster's history in a real PostgreSQL: runs, the queue and the sensor, also across a restart of the database."""

import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import psycopg2
import pytest
import yaml
from dagster_postgres.utils import DagsterPostgresException

from pipeline.workspace import Workspace

PASSWORD = "planted-postgres-password"
VARIABLE = "SIMCLR_POSTGRES_URL"
STORAGE = {"storage": {"postgres": {"postgres_url": {"env": VARIABLE}}}}
DEFINITIONS = """
from pathlib import Path
import dagster as dg

@dg.op
def work(context):
    context.log.info("worked")

@dg.job
def tiny():
    work()

@dg.sensor(job=tiny, minimum_interval_seconds=1, default_status=dg.DefaultSensorStatus.RUNNING)
def batches(context):
    for batch in Path(__file__).with_name("batches").read_text().split():
        yield dg.RunRequest(run_key=batch, tags={"batch": batch})

defs = dg.Definitions(jobs=[tiny], sensors=[batches])
"""


class Database:
    """A PostgreSQL server of our own, on a free port of this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.user = folder, "nobody" if os.geteuid() == 0 else getpass.getuser()
        if os.geteuid() == 0:  # which PostgreSQL refuses to run as
            shutil.chown(folder, self.user)
        password = folder / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        options = ["--no-sync", "--auth=scram-sha-256", f"--pwfile={password}", "--username=dagster", "--encoding=UTF8"]
        self._execute("initdb", *options, "--locale=C", "--pgdata", str(folder / "data"))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        # SQLAlchemy 2.1 takes `postgresql://` for psycopg 3, and dagster-postgres brings psycopg2.
        self.url = f"postgresql+psycopg2://dagster:{PASSWORD}@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": str(self.folder),
            "fsync": "off",
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        command = [binary("postgres"), "-D", str(self.folder / "data"), *options]
        self.log = (self.folder / "log").open("ab")
        self.process = subprocess.Popen(command, cwd=self.folder, stdout=self.log, stderr=self.log, **self._as_user())
        wait_for(self._answers, "PostgreSQL does not answer")

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)  # "fast": it ends every connection
        self.process.wait(30)
        self.log.close()

    def _answers(self) -> bool:
        try:
            psycopg2.connect(self.url.replace("+psycopg2", "")).close()
        except psycopg2.OperationalError:
            return False
        return True

    def _execute(self, name: str, *arguments: str) -> None:
        subprocess.run([binary(name), *arguments], cwd=self.folder, check=True, capture_output=True, **self._as_user())

    def _as_user(self) -> dict[str, object]:
        return {"user": self.user, "extra_groups": []} if os.geteuid() == 0 else {}


def binary(name: str) -> str:
    """A program of PostgreSQL; Debian keeps it out of the PATH."""
    beside = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    found = shutil.which(name) or (str(beside[-1]) if beside else None)
    assert found, f"{name} is not here: install Debian's package `postgresql`"
    return found


def wait_for(condition: Callable[[], object], otherwise: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.1)


@pytest.fixture
def database() -> Iterator[Database]:
    # Not below pytest's folder, which only its owner may enter.
    with tempfile.TemporaryDirectory(prefix="simclr-postgres-", ignore_cleanup_errors=True) as folder:
        server = Database(Path(folder))
        server.start()
        yield server
        if server.process.poll() is None:
            server.stop()


@pytest.fixture
def workspace_on_postgres(workspace: Workspace) -> Workspace:
    settings = yaml.safe_load((workspace.root / "dagster.yaml").read_text())
    (workspace.root / "dagster.yaml").write_text(yaml.safe_dump(settings | STORAGE))
    (workspace.root / "tiny.py").write_text(DEFINITIONS)
    (workspace.root / "batches").write_text("one")
    return workspace


@pytest.mark.slow
def test_queue_sensor_and_records_survive_a_restart_of_the_database(
    workspace_on_postgres: Workspace, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = workspace_on_postgres.root
    monkeypatch.setenv(VARIABLE, database.url)
    monkeypatch.setenv("DAGSTER_HOME", str(root))
    log = root / "daemon.log"
    command = [sys.executable, "-m", "dagster._daemon", "run", "--python-file", str(root / "tiny.py")]
    with dg.DagsterInstance.from_config(str(root)) as instance, log.open("wb") as output:

        def succeeded(batch: str) -> bool:
            found = instance.get_runs(dg.RunsFilter(tags={"batch": batch}))
            return [run.status for run in found] == [dg.DagsterRunStatus.SUCCESS]

        daemon = subprocess.Popen(command, cwd=root, stdout=output, stderr=output)
        try:
            wait_for(lambda: succeeded("one"), "the first run has not ended")
            database.stop()
            with pytest.raises(DagsterPostgresException, match="DB connection") as raised:
                instance.get_runs()
            assert PASSWORD not in f"{raised.value} {raised.value.__cause__}"
            (root / "batches").write_text("one two")
            database.start()
            wait_for(lambda: succeeded("two"), "the second run has not ended")
            assert daemon.poll() is None
        finally:
            daemon.send_signal(signal.SIGINT)
            daemon.wait(60)
        assert len(instance.get_runs()) == 2
        (selector,) = instance.all_instigator_state()
        ticks = instance.get_ticks(selector.instigator_origin_id, selector.selector_id)
        assert {key for tick in ticks for key in tick.run_keys} == {"one", "two"}
        messages = [entry.user_message for run in instance.get_runs() for entry in instance.all_logs(run.run_id)]
        assert messages.count("worked") == 2
    assert not (root / "history").exists()
    files = [path for path in root.rglob("*") if path.is_file()]
    assert [str(path) for path in files if PASSWORD.encode() in path.read_bytes()] == []


def test_without_the_variable_nothing_starts_and_nothing_is_kept_elsewhere(
    workspace_on_postgres: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = workspace_on_postgres.root
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(dg.DagsterInvalidConfigError, match=VARIABLE):
        dg.DagsterInstance.from_config(str(root))
    assert not (root / "history").exists()
