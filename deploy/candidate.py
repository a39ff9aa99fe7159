"""Try out a bundle in a separate process with limits on its memory and time.

    candidate.check(Path("registry/v0.0.3")).id

onnxruntime is native code that reads a graph from an outside source. A graph that crashes it, or that allocates more
memory than the machine has, must not bring down the server. The process also embeds the golden images, so a bundle that
passes is known to compute correctly.
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
from deploy.errors import ArgumentError, CandidateError, DeployError, ModelMemoryError, as_path, require_positive
from deploy.failpoint import failpoint

MEMORY_MB = 4096  # of address space: Python and onnxruntime take under 300, with an ONNX file of 100 MB under 500
SECONDS = 300.0  # next to a busy server the half second of work may take a minute
NICENESS = 19  # takes only idle CPU time: requests to a server on this machine wait half as long as with niceness 0
OUTPUT = 1 << 20  # bytes
UNCHANGED = "it does not replace the current model"


@dataclass(frozen=True)
class CheckResult:
    """A bundle that passed: its ``Encoder.id``, and how close its embeddings of the golden images are."""

    id: str
    fidelity: Fidelity


def check(
    directory: str | Path,
    memory_mb: int = MEMORY_MB,
    seconds: float = SECONDS,
    variant: str = FP32,
    trust: str | Path | None = None,
) -> CheckResult:
    """Load a bundle and embed its golden images in a process with limited resources, on one thread.

    A caller that loads the bundle afterwards should compare its id with the id in the result.

    Args:
        memory_mb: address space of the process; give 500 plus several times the size of the ONNX file.
        seconds: limit of wall-clock time, and of processor time.
        trust: file of trusted keys, as in ``load``.

    Raises:
        CandidateError: the process crashed or ran out of time or memory. Try again later.
        OSError: the process could not be started.
        DeployError: ``load`` or ``verify`` failed in the process; the error is raised again here.
    """
    directory, trusted = as_path(directory=directory), [] if trust is None else [str(as_path(trust=trust))]
    require_positive(memory_mb=memory_mb)
    if not isinstance(seconds, int | float) or not 0 < seconds < 2**31:
        raise ArgumentError(f"seconds={seconds!r:.80}; give a positive number")
    if not isinstance(variant, str) or "\0" in variant:
        raise ArgumentError(f"variant={variant!r:.80}; give the name of a variant, such as {FP32}")
    arguments = [str(directory), str(memory_mb), str(seconds), variant, *trusted]
    command = [sys.executable, "-P", "-m", __name__, *arguments]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(_import_path())}
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors_output:
        process = subprocess.Popen(
            command, stdout=output, stderr=errors_output, env=environment, start_new_session=True
        )
        try:
            code = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise CandidateError(f"{directory}: the trial did not finish within {seconds:g} s; {UNCHANGED}") from None
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        return _read_result(directory, code, _last_line(output), _last_line(errors_output))


def _import_path() -> list[str]:
    """Return where the process finds the modules of this one, without those that lie in the current folder."""
    folders = [entry for entry in sys.path if entry and Path(entry).resolve() != Path.cwd()]
    return [*folders, str(Path(__file__).parents[1])]


def _read_result(directory: Path, code: int, output: str, error_output: str) -> CheckResult:
    if code == 0 and output:
        report = json.loads(output)
        if "error" not in report:
            return CheckResult(report["id"], Fidelity(**report["fidelity"]))
        kind = getattr(errors, report["error"])
        assert issubclass(kind, DeployError)
        raise kind(report["message"])
    end = f"signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"exit code {code}"
    reason = f"{end}: {error_output}" if error_output else end
    raise CandidateError(f"{directory}: the trial process ended with {reason}; {UNCHANGED}")


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
    resource.setrlimit(resource.RLIMIT_FSIZE, (OUTPUT, OUTPUT))  # its output is the only file it writes


def main(directory: str, memory_mb: str, seconds: str, variant: str, trust: str | None = None) -> None:
    """Run in the limited process: print one line of JSON, also for a DeployError."""
    _limit(int(memory_mb), float(seconds))
    try:
        encoder = load(directory, threads=1, variant=variant, trust=trust)
        failpoint("candidate.loaded")
        report: dict[str, object] = {"id": encoder.id, "fidelity": asdict(encoder.verify())}
    except (MemoryError, ModelMemoryError) as error:
        message = f"{directory}: gets no memory, under a limit of {memory_mb} MB: {error}; {UNCHANGED}"
        report = {"error": "CandidateError", "message": message}
    except DeployError as error:
        report = {"error": type(error).__name__, "message": str(error)}
    print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
