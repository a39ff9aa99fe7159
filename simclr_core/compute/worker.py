"""One worker of a stage on a cluster: a folder on its node, and in it the stage's command as a child process.

A child, because training has to have the main thread, for signals, and because a child can be killed at any moment.
It ends with the worker, which ends with the driver. Whatever it writes stays in the folder until the driver takes it.
Loads neither torch nor Ray.
"""

import atexit
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

from deploy.artifact import MANIFEST
from deploy.errors import DeployError
from deploy.failure import describe
from simclr_core.compute.inputs import PARAMS
from simclr_core.errors import SimclrError
from simclr_core.machine.settings import LAUNCHER
from simclr_core.reporter import ERROR_FILE, EVENTS

COMMAND = (sys.executable, "-P", "-m", "simclr_core")
PREFIX = "simclr-worker-"
PACKAGES = ("simclr-pipeline", "torch")
TAIL = 4000  # bytes of a traceback that are worth showing
HIDDEN = (".lock",)


class Source(Protocol):
    """An input, which puts itself into the workspace of a worker."""

    def place(self, workspace: Path) -> None: ...


@dataclass(frozen=True)
class Described:
    """Where a worker is, and what is installed there."""

    node: str
    host: str
    address: str
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Look:
    """What is new since the last look: output and events, and of every file below the folder size and time of change;
    of a published folder, that of its manifest."""

    output: bytes
    errors: bytes
    events: bytes
    files: Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class Ended:
    """How the command ended; ``said`` is its error as one sentence, ``tail`` the end of what it printed."""

    code: int
    said: str = ""
    tail: str = ""


@dataclass
class Worker:
    """Ray makes one in a process on its node; the methods may be called at the same time."""

    node: str
    address: str
    _folder: Path = field(init=False)
    _child: "subprocess.Popen[bytes] | None" = field(init=False, default=None)
    _read: dict[str, int] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        remove_abandoned()
        self._folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))
        (self._folder / "workspace" / ".simclr").mkdir(parents=True)
        atexit.register(self.close)

    @property
    def workspace(self) -> Path:
        return self._folder / "workspace"

    def describe(self) -> Described:
        return Described(self.node, socket.gethostname(), self.address, versions())

    def free_port(self) -> int:
        """One on which this node can be met; another process could take it before it is."""
        with socket.create_server((self.address, 0)) as found:
            port: int = found.getsockname()[1]
            return port

    def prepare(self, params: bytes, sources: Sequence[Source]) -> str:
        """Put the inputs in place; returns why that is not possible, otherwise nothing."""
        try:
            (self.workspace / PARAMS).write_bytes(params)
            for source in sources:
                source.place(self.workspace)
        except (SimclrError, DeployError) as error:
            return str(error)
        except OSError as error:
            return describe(error)
        return ""

    def write(self, name: str, content: bytes) -> None:
        """Put a file into the workspace."""
        path = self.workspace / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def run(self, arguments: Sequence[str], variables: Mapping[str, str]) -> Ended:
        """``python -m simclr_core ARGUMENTS`` in the folder; returns when it has ended."""
        said = self._folder / "error.json"
        own = {LAUNCHER: str(os.getpid()), ERROR_FILE: str(said), EVENTS: str(self._folder / "events")}
        command = [*COMMAND, "--workspace", str(self.workspace), *arguments]
        with (self._folder / "output").open("wb") as output, (self._folder / "errors").open("wb") as errors:
            self._child = subprocess.Popen(
                command, env={**os.environ, **variables, **own}, stdin=subprocess.DEVNULL, stdout=output, stderr=errors
            )
            code = self._child.wait()
        sentence = json.loads(said.read_text(encoding="utf-8"))["message"] if said.exists() else ""
        tail = (self._folder / "errors").read_bytes()[-TAIL:].decode(errors="replace")
        return Ended(code, *(text.replace(str(self.workspace), ".") for text in (sentence, tail)))

    def look(self) -> Look:
        """What is new; lines that are not complete yet are left for the next look."""
        output, errors, events = (self._new_lines(name) for name in ("output", "errors", "events"))
        return Look(output, errors, events, dict(_files(self.workspace)))

    def read(self, name: str, start: int, size: int) -> bytes | None:
        """A part of a file of the workspace; None if the file is not there any more."""
        try:
            with (self.workspace / name).open("rb") as file:
                file.seek(start)
                return file.read(size)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Send the child a signal, if there is one."""
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(number)

    def close(self) -> None:
        """End the child, and remove the folder."""
        self.stop(signal.SIGKILL)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _new_lines(self, name: str) -> bytes:
        path = self._folder / name
        if not path.exists():
            return b""
        with path.open("rb") as file:
            file.seek(self._read.get(name, 0))
            found = file.read()
        whole = found[: found.rfind(b"\n") + 1]
        self._read[name] = self._read.get(name, 0) + len(whole)
        return whole.replace(str(self.workspace).encode(), b".")


def versions() -> dict[str, str]:
    """Of what has to be the same everywhere."""
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def remove_abandoned() -> None:
    """Folders of workers that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        owner = folder.name.removeprefix(PREFIX).partition("-")[0]
        if not Path(f"/proc/{owner}").exists():
            shutil.rmtree(folder, ignore_errors=True)


def _files(workspace: Path) -> list[tuple[str, tuple[int, int]]]:
    """Of each file, and of each published folder as a whole, what changes with it; inputs are links, and left out."""
    found, pending = [], [workspace]
    while pending:
        folder = pending.pop()
        try:
            entries = list(os.scandir(folder))
            manifest = next((one for one in entries if one.name == MANIFEST), None)
            if manifest is not None:
                found.append((folder, manifest.stat()))
                continue
            for one in entries:
                partial = one.name.startswith(".") and folder != workspace
                if one.is_symlink() or partial or one.name.endswith(HIDDEN) or one.name == PARAMS:
                    continue
                if one.is_dir():
                    pending.append(Path(one.path))
                else:
                    found.append((Path(one.path), one.stat()))
        except FileNotFoundError:  # removed meanwhile
            continue
    return [(path.relative_to(workspace).as_posix(), (is_.st_size, is_.st_mtime_ns)) for path, is_ in found]
