"""DVC, the stages and small programs without their start: forked from a process that has imported them before.

Imports are most of what a small stage costs. ``install`` replaces the one function with which ``subprocess`` starts a
program: for those in ``IMPORTS``, a *nursery* forks a process and makes it a child of the caller. It has the arguments,
environment, folder, open files, session, limits and ignored signals that the caller asked for, and /proc shows them.
Each such process has a nursery, too, for what it starts in turn. Every other program starts as usual, and while
coverage is measured, so do these.
"""

import array
import ctypes
import fcntl
import gc
import importlib
import os
import pickle
import re
import resource
import runpy
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What each program imports, also what it imports only when it runs. None that imports polars or onnxruntime: these
# start threads at once, which a fork does not have. The thread of jemalloc, which pyarrow brings, survives one.
IMPORTS = {
    "dvc": """configobj dvc.cachemgr dvc.cli.parser dvc.data_cloud dvc.dirs dvc.lock dvc.repo.add dvc.repo.artifacts
        dvc.repo.brancher dvc.repo.datasets dvc.repo.graph dvc.repo.index dvc.repo.metrics dvc.repo.open_repo
        dvc.repo.params dvc.repo.plots dvc.repo.push dvc.repo.reproduce dvc.repo.stage dvc.repo.trie dvc.repo.worktree
        dvc.rwlock dvc.scm dvc.stage.run dvc.utils.strictyaml dvc_data.hashfile._progress dvc_data.hashfile.db.index
        dvc_data.hashfile.db.local dvc_data.hashfile.status dvc_data.index.checkout dvc_data.index.fetch
        dvc_data.index.push networkx platformdirs rich._emoji_codes rich.live rich.padding rich.status rich.table
        ruamel.yaml scmrepo.git""",
    "simclr_core": """simclr_core.evaluation.compare simclr_core.evaluation.finetune simclr_core.evaluation.linear_eval
        simclr_core.export.export simclr_core.pretraining.initial simclr_core.pretraining.pretrain
        networkx onnxscript onnxscript.function_libs.torch_lib scipy.integrate scipy.interpolate scipy.optimize
        scipy.sparse.csgraph scipy.sparse.linalg scipy.spatial scipy.stats sklearn.decomposition sklearn.manifold
        torch._functorch.partitioners torch.distributed.elastic.multiprocessing torch.export._trace
        torch.onnx._internal.exporter._core torch.testing""",
    "pipeline.validation": """PIL.Image asyncio botocore.session boto3 great_expectations
        great_expectations.data_context.types.base jinja2 jsonschema marshmallow numpy.testing pandas
        pipeline.config pipeline.workspace pyarrow.parquet requests scipy.integrate scipy.interpolate scipy.optimize
        scipy.spatial scipy.stats sqlalchemy""",
    "pipeline": """dagster dvc.repo.add dvc.repo.index dvc.repo.status dvc.stage.run pipeline.cli.main
        pipeline.cli.status pipeline.cli.summary pipeline.defs pipeline.run""",
    "pipeline.embedding_drift": "pipeline.config pyarrow.parquet scipy.stats",
    "pipeline.explore": "PIL.Image pipeline.config pyarrow.parquet sklearn.decomposition sklearn.manifold",
    "pipeline.prepare": "PIL.Image pipeline.config pyarrow.parquet simclr_core.data.shards simplejpeg",
    "pipeline.runs.launcher": "dagster pipeline.defs pipeline.run pipeline.runs.launcher",
    "pipeline.runs.output": "pipeline.runs.output",
    "dagster": """dagster._cli dagster._cli.api dagster._grpc.server dagster._grpc.client pipeline.defs
        benchmarks.pipeline.soak""",
    "dagster._daemon": "dagster._daemon.cli dagster._grpc.client dagster._scheduler pipeline.runs.launcher",
    "pipeline.ui.web": """dagster_webserver.webserver pipeline.ui.web uvicorn.loops.auto uvicorn.protocols.http.auto
        uvicorn.protocols.websockets.auto""",
    "tests.processes.call": """matplotlib.figure pyarrow.parquet pytest scipy.stats simclr_core.evaluation.finetune
        simclr_core.evaluation.linear_eval simclr_core.pretraining.pretrain sklearn.linear_model sklearn.metrics
        torch._dynamo torch.distributed torch.multiprocessing torch.testing torchvision""",
    "tests.processes.program": "pipeline.dvc.client pipeline.release.champion pipeline.release.release",
}
SHELLS = {"sh", "bash", "dash"}
READ_AT_IMPORT = re.compile(
    rb"(OMP_|GOMP_|MKL_|KMP_(?!DUPLICATE_LIB_OK|INIT_AT_FORK)|PYTHON(PATH|HOME|WARNINGS|HASHSEED)|LD_|CUDA_|POLARS_|RAY_)"
)
ROOM = 1 << 15  # bytes of /proc/PID/cmdline and of /proc/PID/environ each
HIGH = 500  # where no program has its open files
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER, of <linux/prctl.h>
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
LIMITS = tuple(getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_"))
LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Program:
    """What a process becomes."""

    arguments: list[str]
    environment: dict[bytes, bytes]
    folder: str
    files: list[int]  # the numbers that the files sent along get
    session: bool
    group: int
    ignored: list[signal.Signals]
    blocked: list[int]
    prepare: Callable[[], object] | None  # what it calls before it begins
    limits: dict[int, tuple[int, int]]


class Nursery:
    """The caller's end of a nursery."""

    def __init__(self, connection: socket.socket, pid: int, environment: Mapping[bytes, bytes]) -> None:
        self.connection, self.pid, self.owner, self.lock = connection, pid, os.getpid(), threading.Lock()
        self.environment = _read_at_import(environment)

    def fork(self, program: Program, files: list[int]) -> int | None:
        """The number of the new process, a child of this one; None if this nursery cannot make it."""
        if self.owner != os.getpid() or _read_at_import(program.environment) != self.environment:
            return None
        content = pickle.dumps(program)
        sent = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))]
        with self.lock, suppress(OSError, EOFError):
            LIBC.prctl(SUBREAPER, 1, 0, 0, 0)  # whose parent ends now becomes a child of this process
            try:
                self.connection.sendmsg([len(content).to_bytes(4, "big")], sent)
                self.connection.sendall(content)
                return int.from_bytes(_receive(self.connection, 4), "big") or None
            finally:
                LIBC.prctl(SUBREAPER, 0, 0, 0, 0)
        return None


nursery: Nursery | None = None
asked: Path | None = None
cold = subprocess._fork_exec  # type: ignore[attr-defined]


def install(folder: Path) -> None:
    """From now on, this process starts such programs from a nursery. It keeps notes in the folder."""
    global nursery, asked
    if any(name.startswith("COVERAGE") for name in os.environ):
        return
    ours, theirs = socket.socketpair()
    with theirs:
        # Its arguments and its environment leave room for those of others.
        command = [sys.executable, "-P", "-u", __file__, str(theirs.fileno()), str(folder), " " * ROOM]
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
        room = {"ROOM": " " * ROOM}
        process = subprocess.Popen(command, env=os.environ | room, cwd="/", pass_fds=[theirs.fileno()], **streams)
    process.returncode = 0  # it is waited for in ``uninstall``
    nursery, asked = Nursery(ours, process.pid, os.environb), folder
    subprocess._fork_exec = _start  # type: ignore[attr-defined]


def expect(*programs: str) -> None:
    """Import them before the next program is started, which may start these: its nursery would import them alone."""
    if asked is not None:
        for program in programs:
            (asked / program).touch()


def uninstall() -> None:
    global nursery
    subprocess._fork_exec = cold  # type: ignore[attr-defined]
    if nursery is not None:
        nursery.connection.close()
        os.waitpid(nursery.pid, 0)
        nursery = None


def _start(*arguments: Any) -> int:
    """``_posixsubprocess.fork_exec``: its arguments are those of ``subprocess.Popen``, prepared."""
    command, close_fds, keep, folder, environment = arguments[0], *arguments[2:6]
    (stdin, _, _, stdout, _, stderr), errpipe = arguments[6:12], arguments[12:14]
    session, group, *unusual, prepare = arguments[15:22]
    variables = dict(os.environb) if environment is None else dict(one.split(b"=", 1) for one in environment)
    program = _program([os.fsdecode(part) for part in command], os.fsdecode(variables.get(b"PATH", b"")))
    if program and close_fds and nursery and all(value in (None, -1) for value in unusual):
        kept = [number for number in keep if number not in errpipe]
        streams = [number if wanted == -1 else wanted for number, wanted in enumerate((stdin, stdout, stderr))]
        pid = nursery.fork(
            Program(
                program,
                variables,
                str(Path.cwd() / os.fsdecode(folder or "")),
                [0, 1, 2, *kept],
                bool(session),
                os.getpgrp() if group in (None, -1) else group,
                [number for number in SIGNALS if signal.getsignal(number) is signal.SIG_IGN],
                [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
                prepare,
                {limit: resource.getrlimit(limit) for limit in LIMITS},
            ),
            [*streams, *kept],
        )
        if pid is not None:
            return pid
    return int(cold(*arguments))


def _program(command: list[str], path: str) -> list[str] | None:
    """The command if it is in ``IMPORTS``, also if a shell would become it."""
    if Path(command[0]).name in SHELLS and command[-2:-1] == ["-c"]:
        command = shlex.split(command[-1]) if re.fullmatch(r"python [\w .=/@-]+", command[-1]) else [""]
        command[0] = shutil.which(command[0], path=path) or ""
    options, _, module = " ".join(command[:5]).partition(" -m ")
    executable, *others = options.split() or [""]
    ours = Path(executable).parent == Path(sys.executable).parent
    return command if ours and set(others) <= {"-P", "-u"} and module.split(" ")[0] in IMPORTS else None


def _read_at_import(environment: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    return {name: value for name, value in environment.items() if READ_AT_IMPORT.match(name)}


def _receive(connection: socket.socket, size: int) -> bytes:
    content = b""
    while len(content) < size:
        if not (part := connection.recv(size - len(content))):
            raise EOFError
        content += part
    return content


def serve(connection: socket.socket, notes: Path) -> Program:
    """Fork what is asked for until the owner ends; returns in each new process, with what that has to be.

    The notes name what was ever asked for, also of the nurseries of others: it is imported before the next fork.
    """
    while True:
        files = array.array("i")
        size, control, _, _ = connection.recvmsg(4, socket.CMSG_SPACE(64 * files.itemsize))
        if not size:
            os._exit(0)
        for _, _, data in control:
            files.frombytes(data)
        program: Program = pickle.loads(_receive(connection, int.from_bytes(size, "big")))
        (notes / _module(program)).touch()
        _import({note.name for note in notes.iterdir()})
        adopted, ready = os.pipe(), os.pipe()
        if between := os.fork():
            os.waitpid(between, 0)
            for one in (*adopted, ready[1], *files):
                os.close(one)
            connection.sendall(os.read(ready[0], 4).rjust(4, b"\0"))
            os.close(ready[0])
        elif os.fork():
            os._exit(0)
        else:
            connection.close()
            os.close(adopted[1])
            os.read(adopted[0], 1)
            for one in (adopted[0], ready[0]):
                os.close(one)
            return _become(program, list(files), ready[1], notes)


def _module(program: Program) -> str:
    return program.arguments[program.arguments.index("-m") + 1]


_imported: set[str] = set()


def _import(modules: set[str]) -> None:
    for module in sorted(modules - _imported):
        for name in IMPORTS[module].split():
            importlib.import_module(name)
        _imported.add(module)
        gc.collect()
        gc.freeze()
    threads = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    assert len(threads) - threads.count("jemalloc_bg_thd") == 1, f"what is forked has one thread, not {threads}"


def _become(program: Program, files: list[int], ready: int, notes: Path) -> Program:
    """Take on everything that tells a process from another; returns in those that its nursery forks, too."""
    global nursery, asked
    asked = notes
    if program.session:
        os.setsid()
    else:
        os.setpgid(0, program.group)
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        for number in (ours.detach(), ready, *files):
            os.close(number)
        os.setpgid(0, 0)
        return serve(theirs, notes)
    theirs.close()
    nursery = Nursery(socket.socket(fileno=fcntl.fcntl(ours, fcntl.F_DUPFD_CLOEXEC, HIGH)), pid, os.environb)
    ours.close()
    low = (*files, ready)
    *high, ready = [fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, HIGH) for number in low]
    for number in low:
        os.close(number)
    for number, wanted in zip(high, program.files, strict=True):
        os.dup2(number, wanted)
        os.close(number)
    os.chdir(program.folder)
    os.environ.clear()
    os.environb.update(program.environment)
    variables = [b"=".join(pair) for pair in program.environment.items()]
    _show([os.fsencode(argument) for argument in program.arguments], variables)
    for number in SIGNALS:
        default = signal.default_int_handler if number is signal.SIGINT else signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN if number in program.ignored else default)
    signal.pthread_sigmask(signal.SIG_SETMASK, program.blocked)
    for limit, values in program.limits.items():
        if resource.getrlimit(limit) != values:
            resource.setrlimit(limit, values)
    tempfile.tempdir = None
    if program.prepare is not None:
        program.prepare()
    os.write(ready, os.getpid().to_bytes(4, "big"))
    os.close(ready)
    return program


def _show(arguments: list[bytes], variables: list[bytes]) -> None:
    """In /proc/PID/cmdline and /proc/PID/environ, which read the memory where the kernel once put them."""
    fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
    places = [int(field) for field in fields[45:49]]
    for start, end, parts in ((places[0], places[1], arguments), (places[2], places[3], variables)):
        content = b"".join(part + b"\0" for part in parts)
        assert len(content) < end - start
        ctypes.memset(start, 0, end - start)
        ctypes.memmove(start, content, len(content))


def main() -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    subprocess._fork_exec = _start  # type: ignore[attr-defined]
    program = serve(socket.socket(fileno=int(sys.argv[1])), Path(sys.argv[2]))
    options = program.arguments[: program.arguments.index("-m")]
    if "-P" not in options and not os.environ.get("PYTHONSAFEPATH"):
        sys.path.insert(0, str(Path.cwd()))
    sys.orig_argv = program.arguments
    sys.argv = program.arguments[program.arguments.index("-m") + 1 :]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    # By its name, as others import it: what this process keeps in its variables, they find there.
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from tests.processes import warm

    del sys.path[0]
    warm.main()
