"""Try a bundle out where it can do no harm: in a process of its own, with limits on its memory and its time.

    candidate.check(Path("registry/v0.0.3")).id

onnxruntime is native code that reads a graph from elsewhere: one that makes it crash, or that asks for more memory than
there is, must not take a server with it. The process embeds the golden images as well, so what passes also computes.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from deploy import errors
from deploy.bundle import FP32
from deploy.encoder import Fidelity, load
from deploy.errors import ArgumentError, CandidateError, DeployError, ImageError
from deploy.failpoint import failpoint

MEMORY_MB = 4096  # of address space: Python and onnxruntime take under 300, with an ONNX file of 100 MB under 500
SECONDS = 300.0  # beside a busy server the half second of work may take a minute
NICENESS = 19  # what a server beside it does not need; its requests wait half as long as they would at 0
OUTPUT = 1 << 20  # bytes
UNCHANGED = "it does not replace what serves"


@dataclass(frozen=True)
class Checked:
    """A bundle that passed: the ``Encoder.id`` it has, and how close its golden images came."""

    id: str
    fidelity: Fidelity


def check(directory: Path, memory_mb: int = MEMORY_MB, seconds: float = SECONDS, variant: str = FP32) -> Checked:
    """Load a bundle and embed its golden images in a limited process, on one thread.

    What is loaded afterwards should have the id that was checked.

    Args:
        memory_mb: address space of the process; give 500 and some times the size of the ONNX file.
        seconds: of wall-clock time, and of processor time.

    Raises:
        CandidateError: the process crashed, ran out of time or memory, or could not be started.
        DeployError: what ``load`` and ``verify`` raise, as in this process.
    """
    if memory_mb < 1 or not seconds > 0:
        raise ArgumentError(f"memory_mb={memory_mb}, seconds={seconds}; give positive numbers")
    command = [sys.executable, "-m", "deploy.candidate", os.fspath(directory), str(memory_mb), str(seconds), variant]
    # The module is found where this process found it; no path means the folder at hand.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)}
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as complaints:
        process = subprocess.Popen(command, stdout=output, stderr=complaints, env=environment, start_new_session=True)
        try:
            code = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise CandidateError(f"{directory}: not done after {seconds:g} s; {UNCHANGED}") from None
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        return _verdict(directory, code, _last_line(output), _last_line(complaints))


def _verdict(directory: Path, code: int, said: str, complaint: str) -> Checked:
    if code == 0 and said:
        report = json.loads(said)
        if "error" not in report:
            return Checked(report["id"], Fidelity(**report["fidelity"]))
        kind = getattr(errors, report["error"])
        assert issubclass(kind, DeployError)
        raise kind(report["message"])
    died = f"signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"exit code {code}"
    reason = f"{died}: {complaint}" if complaint else died
    raise CandidateError(f"{directory}: trying it out ended with {reason}; {UNCHANGED}")


def _last_line(file: BinaryIO) -> str:
    file.seek(0)
    lines = file.read(OUTPUT).decode("utf-8", "replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "")


def _limit(memory_mb: int, seconds: float) -> None:
    os.setpriority(os.PRIO_PROCESS, 0, NICENESS)
    resource.setrlimit(resource.RLIMIT_AS, (memory_mb << 20, memory_mb << 20))
    whole = int(seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (whole, whole))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (OUTPUT, OUTPUT))  # what it prints, and it has nothing else to write


def main(directory: str, memory_mb: str, seconds: str, variant: str) -> None:
    """The limited process: prints one line of JSON, also for an error that is foreseen."""
    _limit(int(memory_mb), float(seconds))
    try:
        encoder = load(directory, threads=1, variant=variant)
        failpoint("candidate.loaded")
        report: dict[str, object] = {"id": encoder.id, "fidelity": asdict(encoder.verify())}
    except MemoryError:
        report = {"error": "CandidateError", "message": f"{directory}: needs over {memory_mb} MB"}
    except ImageError as error:
        report = {"error": "BundleFormatError", "message": f"{directory}: golden images: {error}"}
    except DeployError as error:
        report = {"error": type(error).__name__, "message": str(error)}
    print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
